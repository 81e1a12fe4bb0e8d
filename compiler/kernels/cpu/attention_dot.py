"""Number formats of attention's two products, and the instructions that multiply them.

A product is taken of a vector of 32-bit words, one word a lane, and one word that all lanes share:

    lanes     | a0 a1 | b0 b1 | c0 c1 | ...      (int16: 2 numbers a word, int8: 4, float32: 1)
    shared    | s0 s1 |
    sums     += a0*s0 + a1*s1, b0*s0 + b1*s1, ...
"""
# mypy: ignore-errors

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from tvm.script import tirx as T

from .vector import Expr, constant, settled, splat

Format = Literal["float32", "int16", "int8"]
# "mixed": scores in 16 bits, where errors grow exponentially; weights and values in 8
Mode = Literal["float32", "int16", "mixed", "int8"]

ROUND = 12582912.0  # 1.5 * 2^23: a float32 plus this has its nearest integer in its low bits
ROUND_BITS = 0x4B400000


@dataclass(frozen=True)
class Dot:
    """Products of one number format. Integer sums are exact; int8 takes the lanes as unsigned numbers."""

    format: Format
    intrinsic: str | None = None  # LLVM's name; None is multiply and add
    adds: bool = True  # whether the instruction adds to the sums by itself

    @property
    def numbers(self) -> int:
        """Numbers in one word."""
        return {"float32": 1, "int16": 2, "int8": 4}[self.format]

    @property
    def word(self) -> str:
        """The type of words and of sums."""
        return "int32" if self.quantized else "float32"

    @property
    def quantized(self) -> bool:
        return self.format != "float32"

    def add(self, sums: Expr, words: Expr, shared: Expr, lanes: int) -> Expr:
        """sums + words . shared: vectors of `lanes` words."""
        if not self.quantized:
            return sums + words * shared
        left, right = ("int16", "int16") if self.format == "int16" else ("uint8", "int8")
        count, dtype = lanes * self.numbers, f"int32x{lanes}"
        factors = T.reinterpret(words, dtype=f"{left}x{count}"), T.reinterpret(shared, dtype=f"{right}x{count}")
        if self.adds:
            return T.call_llvm_pure_intrin(self.intrinsic, sums, *factors, dtype=dtype)
        return sums + T.call_llvm_pure_intrin(self.intrinsic, *factors, dtype=dtype)

    def ones(self) -> Expr:
        """The word whose numbers are all 1."""
        return {"float32": T.float32(1), "int16": T.int32(0x00010001), "int8": T.int32(0x01010101)}[self.format]

    def pack(self, numbers: Sequence[Expr], lanes: int) -> Expr:
        """Words from `self.numbers` vectors; integers are taken from the low bits of int32 lanes."""
        if not self.quantized:
            return numbers[0]
        bits = 32 // self.numbers
        mask = constant((1 << bits) - 1, lanes, "int32")
        word = numbers[0] & mask
        for i, number in enumerate(numbers[1:-1], 1):
            word = word | ((number & mask) << constant(i * bits, lanes, "int32"))
        return word | (numbers[-1] << constant(32 - bits, lanes, "int32"))

    def consecutive(self, value: Expr, lanes: int) -> Expr:
        """Words from one float32 vector of consecutive numbers, rounded: `lanes / self.numbers` of them."""
        if not self.quantized:
            return value
        narrow = T.cast(rounded(value, lanes), f"{self.format}x{lanes}")
        count = lanes // self.numbers
        return T.reinterpret(narrow, dtype="int32" if count == 1 else f"int32x{count}")


@dataclass(frozen=True)
class Products:
    """The formats of query x key and of weight x value."""

    scores: Dot
    values: Dot


def rounded(value: Expr, lanes: int) -> Expr:
    """The nearest integers of a float32 vector of numbers below 2^22, in the low 16 bits of int32 lanes."""
    return T.reinterpret(value + splat(T.float32(ROUND), lanes), dtype="int32" if lanes == 1 else f"int32x{lanes}")


def rounded_int32(value: Expr, lanes: int) -> Expr:
    """The nearest integers of a float32 vector of numbers below 2^22."""
    return settled(rounded(value, lanes) - constant(ROUND_BITS, lanes, "int32"), "int32", lanes)


def _dot(wanted: Format, lanes: int, cpu_features: Collection[str]) -> Dot:
    if wanted != "float32" and ("avx512_vnni" in cpu_features or ("avx_vnni" in cpu_features and lanes < 16)):
        return Dot(wanted, f"llvm.x86.avx512.{'vpdpwssd' if wanted == 'int16' else 'vpdpbusd'}.{lanes * 32}")
    multiply = {16: ("avx512bw", "avx512.pmaddw.d.512"), 8: ("avx2", "avx2.pmadd.wd"), 4: ("sse2", "sse2.pmadd.wd")}
    if wanted != "float32" and lanes in multiply and multiply[lanes][0] in cpu_features:
        return Dot("int16", f"llvm.x86.{multiply[lanes][1]}", adds=False)
    return Dot("float32")


def products(mode: Mode, lanes: int, cpu_features: Collection[str]) -> Products:
    """The fastest products of at least the precision of `mode` in vectors of `lanes` 32-bit lanes, for a processor
    with these flags of /proc/cpuinfo."""
    scores, values = ("int16", "int8") if mode == "mixed" else (mode, mode)
    return Products(_dot(scores, lanes, cpu_features), _dot(values, lanes, cpu_features))
