"""iPhones and iPads as a target: Metal on another system."""

from ...runtime.errors import UsageError
from .metal import code_generation
from .metal import resolve as resolve_metal
from .target import CompileTarget

__all__ = ["code_generation", "resolve"]


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device iphone` and `--host` mean. Raises UsageError."""
    if variant:
        raise UsageError(f"--device iphone:{variant} is unknown: expected iphone")
    return resolve_metal("ios", host)
