"""Chat completions with compiled models: requests in, events out. The public names load on first use."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import EngineConfig
    from .engine import MLCEngine

__all__ = ["EngineConfig", "MLCEngine"]


def __getattr__(name: str) -> Any:
    if name == "MLCEngine":
        from .engine import MLCEngine

        return MLCEngine
    if name == "EngineConfig":
        from .config import EngineConfig

        return EngineConfig
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
