"""Where a model's folder and its library are; downloading a folder, and compiling a library, that is missing."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.artifact import CHAT_CONFIG_NAME, FOLDER_SUFFIX, ChatConfig, is_address, library_places
from ..runtime.devices.device import parse_device, resolve_device
from ..runtime.errors import ModelFileError
from ..runtime.ffi import Device
from ..runtime.library import MODEL_FOLDER, Library, read_device
from ..runtime.policy import jit_policy

if TYPE_CHECKING:
    from ..runtime.hub import Progress

DIST = Path("dist")


def find_folder(model: str) -> Path:
    """The model folder that `model` names: by its path, by its mlc-chat-config.json, or by its name below `dist`.

    `HF://org/name[@revision]` is downloaded the first time. Raises UsageError, ModelFileError, EngineError.
    """
    if is_address(model):
        from ..runtime.published import fetch_published

        published = fetch_published(model, _show_download())
        if published is None:
            raise ModelFileError(
                f"{model} holds source weights and no compiled model ({CHAT_CONFIG_NAME}): run `mlc compile {model}` "
                "and name the folder that it makes"
            )
        return published
    folder = local_folder(model)
    if folder is not None:
        return folder
    if Path(model).expanduser().exists():
        raise ModelFileError(f"{model} has no {CHAT_CONFIG_NAME}: run `mlc compile {model}`")
    raise ModelFileError(f"{model} is neither a model folder nor the name of one in {DIST}/: run `mlc compile {model}`")


def local_folder(model: str) -> Path | None:
    """The model folder on this machine that `model` names."""
    path = Path(model).expanduser()
    if path.name == CHAT_CONFIG_NAME and path.is_file():
        return path.parent
    places = (path, DIST / model, DIST / f"{model}{FOLDER_SUFFIX}")
    return next((folder for folder in places if (folder / CHAT_CONFIG_NAME).is_file()), None)


def find_library(folder: Path, config: ChatConfig, device: str, model_lib: str | None = None) -> Path | None:
    """Where the library of a model folder is: `model_lib` where it is named; None where there is none yet."""
    if model_lib is not None:
        return Path(model_lib).expanduser()
    return next((place for place in library_places(folder, config, parse_device(device).kind) if place.is_file()), None)


def choose_device(name: str, folder: Path, config: ChatConfig, model_lib: str | None = None) -> str:
    """The device that a model runs on: the one that is named; for "auto" that of the library that is named, else the
    best one of this machine, if there is a library for it or one can be compiled. Raises UsageError, ModelFileError."""
    if name == "auto" and model_lib is not None:
        return read_device(Path(model_lib).expanduser())
    device = resolve_device(name)
    if name != "auto" or device == "cpu" or find_library(folder, config, device) is not None:
        return device
    from ..compiler.target import target_here

    return "cpu" if target_here(device, auto=True) == "cpu" else device


def open_library(folder: Path, config: ChatConfig, device: str, model_lib: str | None = None) -> Library:
    """The library of a model folder: `model_lib` where it is named, else the one that lies beside it or in the cache.

    What is found by itself and does not fit, or is missing, is compiled on the spot with a line on stderr that says
    so, as far as MLC_JIT_POLICY allows. Raises ModelFileError for a named library that does not fit and for one that
    may not be compiled, and what the compiler raises.
    """
    wanted = parse_device(device)
    if model_lib is not None:
        try:
            return Library.load(Path(model_lib).expanduser(), config=config, device=wanted)
        except ModelFileError as error:
            raise ModelFileError(str(error).replace(MODEL_FOLDER, shlex.quote(str(folder)))) from None
    policy = jit_policy()
    places = library_places(folder, config, wanted.kind)
    reason, output = f"{folder} has no library for {device}", _output(places)
    found = find_library(folder, config, device)
    if found is not None:
        output = found
        if policy == "REDO":
            return _compile(folder, config, wanted, output, "MLC_JIT_POLICY is REDO", force=True)
        try:
            return Library.load(found, config=config, device=wanted)
        except ModelFileError as error:
            reason = str(error).partition(": run `")[0]
    if policy in ("OFF", "READONLY"):
        raise ModelFileError(f"{reason}, and MLC_JIT_POLICY is {policy}: run `mlc compile {folder} --device {device}`")
    return _compile(folder, config, wanted, output, reason)


def _output(places: list[Path]) -> Path:
    """Where to put a library: beside the folder if libraries are kept there, else in the cache."""
    beside, cached = places[-2:]
    return beside if beside.parent.is_dir() else cached


def _compile(
    folder: Path, config: ChatConfig, device: Device, output: Path, reason: str, *, force: bool = False
) -> Library:
    from ..runtime.weights import WeightStore

    WeightStore(folder).close()  # what is wrong with the weights shows now, and not after the compilation
    print(f"{reason}: compiling {output}", file=sys.stderr, flush=True)
    from ..compiler.compile import compile_library
    from ..compiler.target import target_here

    library = compile_library(folder, output, device=target_here(str(device), auto=False), force=force)
    return Library.load(library, config=config, device=device)


def _show_download() -> "Progress":
    """A line on stderr when a download begins; on a terminal it counts to 100 %."""
    shown = ""

    def report(done: int, total: int, what: str) -> None:
        nonlocal shown
        line = f"{what}: downloading {total / 2**20:.0f} MiB"
        if sys.stderr.isatty():
            line += f", {100 * done // max(total, 1)} %"
            if line != shown:
                print(f"\r{line}", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif not shown:
            print(line, file=sys.stderr, flush=True)
        shown = line

    return report
