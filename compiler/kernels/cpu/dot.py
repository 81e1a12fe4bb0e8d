"""Integer dot products, by instruction set: 16 sums of four products of unsigned weights and signed activations.

    weights      int32 x 16: lane n holds four unsigned bytes, those of output n for four inputs
    activations  int32: four signed bytes, for the same inputs

AVX-512 and AVX VNNI have an instruction for this (vpdpbusd).
"""
# mypy: ignore-errors

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ...target import CompileTarget
from .storage import TILE


@dataclass(frozen=True)
class IntegerDot:
    """How one instruction set multiplies bytes."""

    name: str
    accumulate: Callable  # (sums int32x16, weights int32x16, activations int32) -> int32x16


def _vpdpbusd(sums, weights, activations):
    return T.call_llvm_pure_intrin(
        "llvm.x86.avx512.vpdpbusd.512",
        sums,
        T.reinterpret(weights, dtype="uint8x64"),
        T.reinterpret(T.broadcast(activations, TILE), dtype="int8x64"),
        dtype="int32x16",
    )


AVX512_VNNI = IntegerDot("avx512_vnni", _vpdpbusd)


def integer_dot(target: CompileTarget) -> IntegerDot | None:
    """The best of the target's instruction sets; None where float32 arithmetic is faster."""
    return AVX512_VNNI if "avx512_vnni" in target.cpu_features else None
