"""From what a user calls a model to a compiled folder: a path, a name in dist/ or the cache, an address, a source.

What is compiled already is found by looking at file names only, so that a chat starts without loading a compiler.
"""

import re
from pathlib import Path
from typing import NamedTuple

from ..runtime.artifact import (
    CHAT_CONFIG_NAME,
    HUB_PREFIX,
    TENSOR_CACHE_NAME,
    TENSOR_CACHE_OLD_NAME,
    ChatConfig,
    cache_home,
    is_address,
    load_chat_config,
)
from ..runtime.devices.device import resolve_device
from ..runtime.errors import UsageError
from ..runtime.policy import download_policy, jit_policy

DEMO_MODEL = "smollm2-135m-instruct"
DEFAULT_QUANTIZATION = "q4f16_1"
DEMO_QUANTIZATION = "q4_1"  # the blocks of its GGUF file, which are kept


class CompiledModel(NamedTuple):
    """A compiled folder; `context_limit` is the shorter context that was asked for, if one was."""

    folder: Path
    context_limit: int | None = None

    @property
    def name(self) -> str:
        """What to call the model."""
        return self.folder.resolve().name


def find_or_compile(model: str, quantization: str | None, device: str, overrides: str) -> CompiledModel:
    """The compiled folder of MODEL.

    An address of a compiled model is downloaded first. A source is compiled first: a folder or file into dist/, as
    `mlc compile` does; a built-in name or an address into `models` of the cache. Raises UsageError, ModelFileError,
    EngineError.
    """
    folder = find_compiled(model, quantization)
    if folder is None and is_address(model):
        folder = _download(model)
    if folder is not None:
        return _fitted(folder, quantization, overrides)
    policy = jit_policy()
    if policy in ("OFF", "READONLY"):
        raise UsageError(f"{model} has to be compiled first, and MLC_JIT_POLICY is {policy}: run `mlc compile {model}`")
    from ..compiler.compile import CompileOptions, compile_model
    from ..compiler.target import target_here
    from .progress import show_progress

    target = target_here(resolve_device(device), auto=device == "auto")
    output = None if Path(model).expanduser().exists() else cache_folder(model, quantization)
    options = CompileOptions(model, quantization=quantization, device=target, overrides=overrides, output=output)
    with show_progress(f"{model} is compiled first, into {output or 'dist'}") as progress:
        return CompiledModel(compile_model(options, progress).folder)


def _download(model: str) -> Path | None:
    """The folder of a compiled model at an address; None where that is a source. Raises UsageError, EngineError."""
    from ..compiler.progress import downloads
    from ..runtime.published import fetch_published
    from .progress import show_progress

    with show_progress() as progress:
        return fetch_published(model, downloads(progress))


def _fitted(folder: Path, quantization: str | None, overrides: str) -> CompiledModel:
    """A folder that was there, if it is what was asked for. Raises UsageError."""
    if quantization is None and not overrides:
        return CompiledModel(folder)
    config = load_chat_config(folder)
    if quantization not in (None, config.quantization):
        raise UsageError(f"{folder} is quantized to {config.quantization}, not {quantization}: leave -q out")
    return CompiledModel(folder, _context_limit(folder, config, overrides) if overrides else None)


def _context_limit(folder: Path, config: ChatConfig, overrides: str) -> int | None:
    """The context of `overrides`; all else has to be as it was compiled. Raises UsageError."""
    from ..compiler.overrides import parse_overrides

    limit = None
    for key, value in parse_overrides(overrides).items():
        compiled = getattr(config, key, config.architecture.get(key))
        if key == "context_window_size" and int(value) <= config.context_window_size:
            limit = int(value)
        elif compiled not in (None, value):
            raise UsageError(f"--overrides {key}={value}: {folder} was compiled with {compiled}: compile its source "
                             f"again with `mlc compile --overrides {key}={value}`")  # fmt: skip
    return limit


def find_compiled(model: str, quantization: str | None) -> Path | None:
    """The compiled folder that MODEL names; None where it is a source, or nothing. Raises UsageError if ambiguous."""
    path = Path(model).expanduser()
    if path.name == CHAT_CONFIG_NAME and path.is_file():
        return path.parent
    if path.exists():
        return path if (path / CHAT_CONFIG_NAME).is_file() else None
    if is_address(model):
        folder = cache_folder(model, quantization)
        if _is_complete(folder) and download_policy() != "REDO":
            return folder
        from ..runtime.published import find_published

        return find_published(model)
    for place in (Path("dist"), cache_home() / "models"):
        found = _find_by_name(place, model.lower(), quantization)
        if found is not None:
            return found
    return None


def cache_folder(model: str, quantization: str | None) -> Path:
    """Where MODEL, a built-in name or `HF://org/name`, goes when it is compiled to be chatted with."""
    name = model[len(HUB_PREFIX) :] if is_address(model) else model
    stem = re.sub(r"[^\w.+-]+", "--", name)
    return cache_home() / "models" / f"{stem}-{quantization or _default_quantization(name)}-MLC"


def _default_quantization(name: str) -> str:
    """What a built-in name or an address is compiled to where nobody says."""
    return DEMO_QUANTIZATION if name.lower() == DEMO_MODEL else DEFAULT_QUANTIZATION


def _is_complete(folder: Path) -> bool:
    """Whether a folder has its configuration and its weights: an interrupted compilation leaves less."""
    indices = (folder / TENSOR_CACHE_NAME, folder / TENSOR_CACHE_OLD_NAME)
    return (folder / CHAT_CONFIG_NAME).is_file() and any(index.is_file() for index in indices)


def _find_by_name(place: Path, name: str, quantization: str | None) -> Path | None:
    """The compiled folder in `place` called `name`, whatever its case; quantization and -MLC may be left out."""
    folders = {path.name.lower(): path for path in place.glob("*") if _is_complete(path)}
    wanted = [f"{name}-{quantization or _default_quantization(name)}-mlc"]
    if quantization is None:
        wanted = [name, f"{name}-mlc", *wanted]
    for candidate in wanted:
        if candidate in folders:
            return folders[candidate]
    others = [folder for key, folder in folders.items() if re.fullmatch(re.escape(name) + r"-q\d\w+-mlc", key)]
    if quantization is not None or not others:
        return None
    if len(others) > 1:
        names = ", ".join(sorted(folder.name for folder in others))
        raise UsageError(f"{name} is compiled in several quantizations: name one of {names}")
    return others[0]
