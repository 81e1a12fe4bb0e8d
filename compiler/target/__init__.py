"""What a library is compiled for."""

from .target import CompileTarget, code_generation, resolve_target, target_here

__all__ = ["CompileTarget", "code_generation", "resolve_target", "target_here"]
