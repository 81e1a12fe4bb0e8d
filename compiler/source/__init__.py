"""Where weights, configuration and tokenizer come from."""

import contextlib
import difflib
import itertools
from pathlib import Path

from ...runtime.artifact import is_address
from ...runtime.errors import ModelFileError, UsageError
from .source import Progress, Source, TensorSpec

__all__ = ["Progress", "Source", "TensorSpec", "open_source"]

_FORMS = "a Hugging Face or compiled folder, its config.json, a .gguf file, HF://org/name or a built-in name"
_MAX_SIBLINGS = 1000  # of a folder's entries, compared with a name that does not exist


def open_source(model: str, *, progress: Progress | None = None) -> Source:
    """Open a model by path, `HF://org/name[@revision]` or built-in name, downloading it where needed.

    Raises UsageError where `model` names nothing, ModelFileError where files are damaged or of a kind that is not
    read, EngineError where a download or the disk fails.
    """
    if is_address(model):
        from .hub import open_hub

        return open_hub(model, progress=progress)
    path = Path(model)
    try:
        path = path.expanduser()
        if model and path.is_dir():
            from .huggingface import HuggingFaceSource

            return HuggingFaceSource(path)
        if path.is_file():
            return _open_file(path)
    except (OSError, ValueError, RuntimeError) as error:  # no permission, a name that no file can have, no such ~user
        raise UsageError(f"{model!r:.200} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    from .registry import RECIPES, open_registered

    if model.lower() in RECIPES:
        return open_registered(model, progress=progress)
    raise UsageError(_unknown(model, path, list(RECIPES)))


def _open_file(path: Path) -> Source:
    from .gguf import GGUFSource
    from .gguf_file import MAGIC
    from .huggingface import CONFIG_NAME, PICKLE_SUFFIXES, HuggingFaceSource

    if path.name == CONFIG_NAME:
        return HuggingFaceSource(path.parent)
    if path.suffix in PICKLE_SUFFIXES:
        raise ModelFileError(f"{path}: only safetensors and GGUF are read (no pickle)")
    with path.open("rb") as file:
        starts_as_gguf = file.read(len(MAGIC)) == MAGIC
    if path.suffix.lower() == ".gguf" or starts_as_gguf:
        return GGUFSource(path)
    hint = f"expected {_FORMS}"
    if path.suffix == ".safetensors":
        hint = f"name its folder, {path.parent}"
    elif path.suffix in (".so", ".dylib"):
        hint = "name the model's folder, and a library with --model-lib"
    raise UsageError(f"{path} is not a model: {hint}")


def _unknown(model: str, path: Path, names: list[str]) -> str:
    """One line about a model that is neither a path nor a name, with the nearest of both."""
    close = difflib.get_close_matches(model.lower(), names, 1)
    if not close:
        with contextlib.suppress(OSError):
            siblings = [str(entry) for entry in itertools.islice(path.parent.iterdir(), _MAX_SIBLINGS)]
            close = difflib.get_close_matches(str(path), siblings, 1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return f"{model!r:.200} does not exist{hint}: expected {_FORMS} ({', '.join(names)})"
