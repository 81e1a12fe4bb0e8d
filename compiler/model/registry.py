"""The table of architectures, by Hugging Face's `model_type`."""

import difflib
import importlib

from ...runtime.errors import ModelFileError
from .architecture import Architecture

# model_type -> module in this folder that defines ARCHITECTURE; modules load on first use
_MODULES = {"llama": "llama"}


def supported() -> list[str]:
    """The model types that can be compiled."""
    return sorted(_MODULES)


def get_architecture(model_type: str) -> Architecture:
    """Look an architecture up. Raises ModelFileError with the nearest name."""
    if model_type not in _MODULES:
        near = difflib.get_close_matches(model_type, _MODULES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ModelFileError(f"unknown architecture {model_type!r}{hint} Supported: {', '.join(supported())}")
    module = importlib.import_module(f".{_MODULES[model_type]}", __package__)
    architecture: Architecture = module.ARCHITECTURE
    return architecture
