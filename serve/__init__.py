"""Chat completions with compiled models: requests in, events out. The public names load on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .async_engine import AsyncMLCEngine
    from .config import EngineConfig
    from .engine import MLCEngine

__all__ = ["AsyncMLCEngine", "EngineConfig", "MLCEngine"]

_MODULES = {"AsyncMLCEngine": ".async_engine", "EngineConfig": ".config", "MLCEngine": ".engine"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
