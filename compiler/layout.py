"""Where a compilation puts things: the model folder and its library.

mlc compile MODEL                dist/<name>-<quantization>-MLC/   dist/libs/<name>-<quantization>-<device>.so
mlc compile MODEL -o out         out/                              out/<name>-<quantization>-<device>.so
mlc compile MODEL -o x.so        dist/<name>-<quantization>-MLC/   x.so
mlc compile out                  (as it is)                        where it was, else <out>/../libs/<out>-<device>.so
mlc compile HF://org/X-MLC       in the cache folder               in the cache folder, where it is looked for

Libraries for Apple's systems are called .dylib instead.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from ..runtime.artifact import CHAT_CONFIG_NAME, FOLDER_SUFFIX, ChatConfig, cached_library, is_address, library_name
from ..runtime.errors import UsageError
from ..runtime.hub import Progress
from ..runtime.published import fetch_published, published_place
from .options import CheckedOptions
from .target.host import parse_host

DIST = Path("dist")


@dataclass(frozen=True)
class Layout:
    """The two results of a compilation."""

    folder: Path
    library: Path


def compiled_folder(model: str, progress: Progress | None = None, *, weights: bool = True) -> Path | None:
    """The model folder that MODEL names, as itself or by its mlc-chat-config.json; None where it is a source.

    An address is downloaded; without `weights` the folder may be one of the configuration only. Raises UsageError,
    ModelFileError, EngineError.
    """
    if is_address(model):
        return fetch_published(model, progress, weights=weights)
    path = Path(model).expanduser()
    if path.name == CHAT_CONFIG_NAME and path.is_file():
        return path.parent
    return path if (path / CHAT_CONFIG_NAME).is_file() else None


def source_layout(name: str, quantization: str, options: CheckedOptions) -> Layout:
    """Where a source model called `name` goes. Raises UsageError where that is the source itself."""
    stem = f"{re.sub(r'[^A-Za-z0-9._+-]+', '-', name).strip('.-') or 'model'}-{quantization}"
    library = f"{stem}-{options.target.device}{parse_host(options.target.host_triple).suffix}"
    if options.output is not None and not options.names_library:
        if options.output.exists() and Path(options.model).expanduser().exists():
            source = Path(options.model).expanduser().resolve()
            if options.output.resolve() in (source, source.parent if source.is_file() else source):
                raise UsageError(f"-o {options.output} is the folder of the source weights: choose another folder")
        return Layout(options.output, options.output / library)
    default = DIST / "libs" / library
    return Layout(DIST / f"{stem}{FOLDER_SUFFIX}", options.output if options.output is not None else default)


def folder_layout(folder: Path, config: ChatConfig, options: CheckedOptions) -> Layout:
    """Where the library of a compiled folder goes. Raises UsageError for -o with another folder."""
    device, suffix = options.target.device, parse_host(options.target.host_triple).suffix
    if is_address(options.model):
        folder = published_place(options.model)
    if options.output is not None:
        if not options.names_library:
            raise UsageError(f"-o {options.output}: {options.model} is compiled already and only its library is built: "
                             "name a .so file")  # fmt: skip
        return Layout(folder, options.output)
    if is_address(options.model):
        return Layout(folder, cached_library(folder, config, device, suffix))
    inside = sorted(folder.glob(f"*-{device}{suffix}"))
    if len(inside) == 1:
        return Layout(folder, inside[0])
    parent = folder.parent if folder.name not in ("", "..") else folder.resolve().parent
    return Layout(folder, parent / "libs" / library_name(folder, device, suffix))
