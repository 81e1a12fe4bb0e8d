"""What a library is compiled for."""

from .target import CompileTarget, resolve_target

__all__ = ["CompileTarget", "resolve_target"]
