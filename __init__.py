"""An ahead-of-time compiler for language models on Apache TVM, with a minimal runtime."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .serve.async_engine import AsyncMLCEngine
    from .serve.engine import MLCEngine

__version__ = "0.1.0"
__all__ = ["AsyncMLCEngine", "MLCEngine", "__version__"]


_MODULES = {"AsyncMLCEngine": ".serve.async_engine", "MLCEngine": ".serve.engine"}


def __getattr__(name: str) -> Any:
    """Load the public names on first use, so that ``import mlc_llm`` costs nothing."""
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
