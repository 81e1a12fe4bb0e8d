"""Number formats of attention's products, and the instructions that multiply them.

A product is taken of a vector of 32-bit words, one word a lane, and one word that all lanes share:

    lanes     | a0 a1 | b0 b1 | c0 c1 | ...      (int16: 2 numbers a word, int8: 4, float32: 1)
    shared    | s0 s1 |
    sums     += a0*s0 + a1*s1, b0*s0 + b1*s1, ...
"""
# mypy: ignore-errors

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from tvm.script import tirx as T

from ...target.target import CompileTarget
from .dot import usdot, vpdpbusd, vpdpwssd, vpmaddwd
from .vector import Expr, constant, settled, splat

Format = Literal["float32", "int16", "int8"]

ROUND = 12582912.0  # 1.5 * 2^23: a float32 plus this has its nearest integer in its low bits
ROUND_BITS = 0x4B400000


def _multiply_and_add(sums: Expr, words: Expr, shared: Expr, lanes: int) -> Expr:
    return sums + words * shared


@dataclass(frozen=True)
class Dot:
    """Products of one number format. Integer sums are exact; int8 takes the lanes as unsigned numbers."""

    format: Format
    add: Callable[[Expr, Expr, Expr, int], Expr]  # (sums, words, shared, lanes) -> sums with the products added

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


def rounded(value: Expr, lanes: int) -> Expr:
    """The nearest integers of a float32 vector of numbers below 2^22, in the low 16 bits of int32 lanes."""
    return T.reinterpret(value + splat(T.float32(ROUND), lanes), dtype="int32" if lanes == 1 else f"int32x{lanes}")


def rounded_int32(value: Expr, lanes: int) -> Expr:
    """The nearest integers of a float32 vector of numbers below 2^22."""
    return settled(rounded(value, lanes) - constant(ROUND_BITS, lanes, "int32"), "int32", lanes)


def attention_dot(target: CompileTarget, activation_bits: int) -> Dot:
    """The target's fastest products of numbers of at least so many bits."""
    features = target.cpu_features
    vnni = "avx512_vnni" in features or "avx_vnni" in features
    if activation_bits == 8 and (vnni or "i8mm" in features):
        return Dot("int8", vpdpbusd if vnni else usdot)
    if activation_bits <= 16 and vnni:
        return Dot("int16", vpdpwssd)
    if activation_bits <= 16 and {16: "avx512bw", 8: "avx2", 4: "sse2"}[target.lanes] in features:
        return Dot("int16", vpmaddwd)
    return Dot("float32", _multiply_and_add)
