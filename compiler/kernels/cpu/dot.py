"""Integer dot products, by instruction set. They multiply words of 32 bits, one for each of the 16 outputs of a tile:

    weights        lane n: four codes of output n, a byte each, or two, 16 bits each
    activations    the same word in every lane: the four or two inputs of those codes, signed

    instruction     sets                     multiplies                       adds to
    vpdpbusd        AVX-512 and AVX VNNI     4 bytes                          int32
    vpmaddubsw      AVX-512BW, AVX2, SSSE3   4 bytes                          pairs to int16, several words to int32
    vpmaddwd        AVX-512BW, AVX2, SSE2    2 numbers of 16 bits             int32
    usdot           NEON with i8mm           4 bytes                          int32
    sdot            NEON with dotprod        4 bytes, weights signed too      int32

vpmaddubsw saturates at 16 bits: products of 4-bit codes stay below that for a few words, those of 8-bit codes do not
and go through vpmaddwd. Where bytes are multiplied 16-bit activations take two passes, one for each of their bytes;
vpmaddwd does with one, but needs more instructions to take codes out of their words, which many rows of x share.

Not used: bfloat16 (vdpbf16ps, bfmmla), which multiplies two numbers of a word in the time of four bytes, and rounds;
AMX and smmla, which multiply blocks of 8-bit numbers and are worth it for many rows of x at a time only.
"""
# mypy: ignore-errors

from collections.abc import Callable
from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ...target import CompileTarget
from ..builder import load, local, splat, store
from ..storage import TILE, lanes


@dataclass(frozen=True)
class IntegerDot:
    """How one instruction set multiplies codes of weights and activations."""

    name: str
    lanes: int  # words of a vector
    multiply: Callable  # (sums, weights, activations, lanes) -> sums with the products added
    number_bits: int = 8  # of the codes and activations in a word
    signed: bool = False  # weights are taken as signed: 128 less than codes of 8 bits
    chain: int = 0  # words whose products fit sums of 16 bits; 0 where sums have 32

    def code_offset(self, bits: int) -> int:
        """What is taken off codes of `bits` before they are multiplied."""
        return 128 if self.signed and bits == 8 else 0

    def sums(self, start) -> "Sums":
        """The sums of a tile, which begin with the int32 `start`."""
        return ChainedSums(self, start) if self.chain else Sums(self, start)

    def take(self, stored, i: int, bits: int):
        """Words to multiply, taken out of stored words of codes: of each number the `bits` from i * bits on."""
        numbers = range(0, 32, self.number_bits)
        if self.code_offset(bits):  # turns the first bit of a byte around
            return T.bitwise_xor(stored, splat(_int32(sum(128 << n for n in numbers))))
        if self.number_bits == bits:
            return stored
        mask = _int32(sum((1 << bits) - 1 << n for n in numbers))
        return T.bitwise_and(T.shift_right(stored, splat(T.int32(i * bits))) if i else stored, splat(mask))


class Sums:
    """The sums of a tile, in as many vectors as it takes."""

    def __init__(self, dot: IntegerDot, start) -> None:
        self.dot, self.total = dot, local(TILE, "int32")
        self.parts = [lanes(first, dot.lanes) for first in range(0, TILE, dot.lanes)]
        for part in self.parts:
            T.buffer_store(self.total, splat(start, dot.lanes), [part])

    def add(self, weights, activations) -> None:
        """Add the products of the words in a cell of weights, int32 [16], and a word of activations."""
        dot = self.dot
        for part in self.parts:
            sums = dot.multiply(self.total[part], weights[part], splat(activations, dot.lanes), dot.lanes)
            T.buffer_store(self.total, sums, [part])

    def result(self):
        """int32 x 16."""
        return load(self.total)


class ChainedSums(Sums):
    """Sums whose products are added up in 16 bits, in pairs, for a few words at a time."""

    def __init__(self, dot: IntegerDot, start) -> None:
        super().__init__(dot, start)
        self.pairs, self.chained = [local(2 * dot.lanes, "int16") for _ in self.parts], 0

    def add(self, weights, activations) -> None:
        dot, count = self.dot, 2 * self.dot.lanes
        for part, pairs in zip(self.parts, self.pairs, strict=True):
            sums = load(pairs, count) if self.chained else splat(T.int16(0), count)
            store(pairs, dot.multiply(sums, weights[part], splat(activations, dot.lanes), dot.lanes), count)
        self.chained += 1
        if self.chained == dot.chain:
            self._widen()

    def _widen(self) -> None:
        count, self.chained = self.dot.lanes, 0
        for part, pairs in zip(self.parts, self.pairs, strict=True):
            words = T.reinterpret(load(pairs, 2 * count), dtype=f"int32x{count}")
            ones = splat(T.int32(0x00010001), count)
            T.buffer_store(self.total, vpmaddwd(self.total[part], words, ones, count), [part])

    def result(self):
        if self.chained:
            self._widen()
        return super().result()


def _int32(bits: int):
    return T.int32(bits - (bits >> 31 << 32))


def _bytes(words, dtype: str, lanes: int):
    return T.reinterpret(words, dtype=f"{dtype}x{4 * lanes}")


def vpdpbusd(sums, weights, activations, lanes: int):
    factors = _bytes(weights, "uint8", lanes), _bytes(activations, "int8", lanes)
    return T.call_llvm_pure_intrin(f"llvm.x86.avx512.vpdpbusd.{32 * lanes}", sums, *factors, dtype=f"int32x{lanes}")


def vpdpwssd(sums, weights, activations, lanes: int):
    factors = (T.reinterpret(words, dtype=f"int16x{2 * lanes}") for words in (weights, activations))
    return T.call_llvm_pure_intrin(f"llvm.x86.avx512.vpdpwssd.{32 * lanes}", sums, *factors, dtype=f"int32x{lanes}")


def vpmaddubsw(sums, weights, activations, lanes: int):
    name = {4: "ssse3.pmadd.ub.sw.128", 8: "avx2.pmadd.ub.sw", 16: "avx512.pmaddubs.w.512"}[lanes]
    factors = _bytes(weights, "uint8", lanes), _bytes(activations, "int8", lanes)
    return sums + T.call_llvm_pure_intrin(f"llvm.x86.{name}", *factors, dtype=f"int16x{2 * lanes}")


def vpmaddwd(sums, weights, activations, lanes: int):
    name = {4: "sse2.pmadd.wd", 8: "avx2.pmadd.wd", 16: "avx512.pmaddw.d.512"}[lanes]
    factors = (T.reinterpret(words, dtype=f"int16x{2 * lanes}") for words in (weights, activations))
    return sums + T.call_llvm_pure_intrin(f"llvm.x86.{name}", *factors, dtype=f"int32x{lanes}")


def usdot(sums, weights, activations, lanes: int):
    factors = _bytes(weights, "uint8", lanes), _bytes(activations, "int8", lanes)
    return T.call_llvm_pure_intrin("llvm.aarch64.neon.usdot.v4i32.v16i8", sums, *factors, dtype=f"int32x{lanes}")


def sdot(sums, weights, activations, lanes: int):
    factors = _bytes(weights, "int8", lanes), _bytes(activations, "int8", lanes)
    return T.call_llvm_pure_intrin("llvm.aarch64.neon.sdot.v4i32.v16i8", sums, *factors, dtype=f"int32x{lanes}")


_CHAIN = 8  # words of vpmaddubsw: 8 * 2 * 15 * 128 < 2^15


def _sse_and_avx(lanes: int) -> list[IntegerDot]:
    return [
        IntegerDot("vpmaddwd", lanes, vpmaddwd, number_bits=16),
        IntegerDot("vpmaddubsw", lanes, vpmaddubsw, chain=_CHAIN),
    ]


# Feature of the processor, best first, and what multiplies there; a second one is for 4-bit codes in bytes.
_INSTRUCTION_SETS = {
    "avx512_vnni": [IntegerDot("vpdpbusd", 16, vpdpbusd)],
    "avx_vnni": [IntegerDot("vpdpbusd", 8, vpdpbusd)],
    "avx512bw": _sse_and_avx(16),
    "avx2": _sse_and_avx(8),
    "ssse3": _sse_and_avx(4),
    "sse2": _sse_and_avx(4)[:1],
    "i8mm": [IntegerDot("usdot", 4, usdot)],
    "asimddp": [IntegerDot("sdot", 4, sdot, signed=True)],
}


def integer_dot(target: CompileTarget, code_bits: int, activation_bits: int, *, single: bool) -> IntegerDot | None:
    """The best of the target's instruction sets, None where float32 arithmetic is faster. `single`: for one row."""
    for feature, dots in _INSTRUCTION_SETS.items():
        if feature in target.cpu_features:
            return dots[-1] if code_bits == 4 and (single or activation_bits == 8) else dots[0]
    return None
