"""Where a model's folder and its library are, and compiling a library that is missing."""

import sys
from pathlib import Path

from ..runtime.artifact import CHAT_CONFIG_NAME, ChatConfig, cache_home, model_hash
from ..runtime.errors import ModelFileError
from ..runtime.library import Library

DIST = Path("dist")
_FOLDER_SUFFIX = "-MLC"


def find_folder(model: str) -> Path:
    """The model folder that `model` names: by its path, by its mlc-chat-config.json, or by its name below `dist`.

    Raises ModelFileError.
    """
    path = Path(model).expanduser()
    if path.name == CHAT_CONFIG_NAME and path.is_file():
        return path.parent
    for folder in (path, DIST / model, DIST / f"{model}{_FOLDER_SUFFIX}"):
        if (folder / CHAT_CONFIG_NAME).is_file():
            return folder
    if path.exists():
        raise ModelFileError(f"{model} has no {CHAT_CONFIG_NAME}: run `mlc compile {model}`")
    raise ModelFileError(f"{model} is neither a model folder nor the name of one in {DIST}/: run `mlc compile {model}`")


def open_library(folder: Path, config: ChatConfig, device: str, model_lib: str | None = None) -> Library:
    """The library of a model folder: `model_lib` where it is named, else the one that lies beside it or in the cache.

    What is found by itself and does not fit, or is missing, is compiled on the spot with a line on stderr that says
    so. Raises ModelFileError for a named library that does not fit, and what the compiler raises.
    """
    if model_lib is not None:
        return Library.load(Path(model_lib).expanduser(), config=config)
    places = _places(folder, config, device)
    reason, output = f"{folder} has no library for {device}", _output(places)
    for place in places:
        if place.is_file():
            try:
                return Library.load(place, config=config)
            except ModelFileError as error:
                reason, output = str(error).partition(": run `")[0], place
                break
    return _compile(folder, config, device, output, reason)


def _places(folder: Path, config: ChatConfig, device: str) -> list[Path]:
    """Where a library may be, the likeliest place first: in the folder, beside it, in the cache."""
    name = folder.resolve().name.removesuffix(_FOLDER_SUFFIX)
    inside = sorted(folder.glob(f"*-{device}.so"))
    beside = folder.resolve().parent / "libs" / f"{name}-{device}.so"
    cached = cache_home() / "model_lib" / f"{name}-{model_hash(config)}-{device}.so"
    return [*(inside if len(inside) == 1 else []), beside, cached]


def _output(places: list[Path]) -> Path:
    """Where to put a library: beside the folder if libraries are kept there, else in the cache."""
    beside, cached = places[-2:]
    return beside if beside.parent.is_dir() else cached


def _compile(folder: Path, config: ChatConfig, device: str, output: Path, reason: str) -> Library:
    print(f"{reason}: compiling {output}", file=sys.stderr, flush=True)
    from ..compiler.compile import compile_library

    return Library.load(compile_library(folder, output, device=device), config=config)
