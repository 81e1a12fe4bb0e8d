"""The table of architectures, by Hugging Face's `model_type`."""

import difflib
import importlib

from ...runtime.errors import ModelFileError, UsageError
from .architecture import Architecture

# model_type -> module in this folder that defines ARCHITECTURE; modules load on first use
_MODULES = {"llama": "llama"}


def supported() -> list[str]:
    """The model types that can be compiled."""
    return sorted(_MODULES)


def check_supported(model_type: str) -> None:
    """Raises UsageError for a model type, given by the user, that cannot be compiled."""
    if model_type not in _MODULES:
        raise UsageError(f"--model-type: {_unknown(model_type)}")


def get_architecture(model_type: str) -> Architecture:
    """Look an architecture up. Raises ModelFileError with the nearest name."""
    if model_type not in _MODULES:
        raise ModelFileError(_unknown(model_type))
    module = importlib.import_module(f".{_MODULES[model_type]}", __package__)
    architecture: Architecture = module.ARCHITECTURE
    return architecture


def _unknown(model_type: str) -> str:
    near = difflib.get_close_matches(model_type, _MODULES, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    return f"unknown architecture {model_type!r:.80}: {hint}known are {', '.join(supported())}"
