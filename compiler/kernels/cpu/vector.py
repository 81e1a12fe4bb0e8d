"""Vector code for CPU kernels: what a vector unit is, and functions that emit loads, conversions and elementary
functions.

The functions run inside a PrimFunc under construction: they take expressions, emit statements into the innermost open
loop and return expressions. A value that is used more than once is bound to a variable, so that it is computed once.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import tirx
from tvm.script import tirx as T

from ..polynomials import EXP2

Expr = Any  # a TIR expression; tvm is not typed
_MOST_WRITTEN_OUT = 8


@dataclass(frozen=True)
class VectorUnit:
    """What code generation needs to know about a CPU's vector registers."""

    lanes: int  # float32 lanes of one register: 16 for AVX-512, 8 for AVX2, 4 for SSE and NEON
    registers: int = 16
    converts_float16: bool = True  # F16C, AVX-512 and NEON do; plain x86-64 has no instruction for it

    def dividing(self, *extents: int) -> "VectorUnit":
        """The widest unit, at most this one, whose vectors divide every extent: no loop needs a tail."""
        return replace(self, lanes=math.gcd(self.lanes, *extents))


def span(start: Expr, lanes: int) -> Expr:
    """The index of `lanes` consecutive elements."""
    return start if lanes == 1 else T.ramp(start, 1, lanes)


def run(index: Sequence[Expr], lanes: int, offset: int = 0) -> tuple[Expr, ...]:
    """The index of the `lanes` elements that start `offset` after `index`."""
    return (*index[:-1], span(index[-1] + offset, lanes))


def each(count: int, emit: Callable[[Expr], None]) -> None:
    """emit(i) for 0 <= i < count: one after another where there are few, else in a loop. To compile a kernel takes time
    that grows with the square of its size."""
    if count <= _MOST_WRITTEN_OUT:
        for i in range(count):
            emit(i)
    else:
        with T.serial(count) as i:
            emit(T.bind(i))


def splat(value: Expr, lanes: int) -> Expr:
    """A vector whose lanes all hold `value`."""
    return value if lanes == 1 else T.broadcast(value, lanes)


def settled(value: Expr, dtype: str = "int32", lanes: int = 1) -> Expr:
    """A value, computed here and opaque to TVM's simplifier: its case analysis of arithmetic nested through bound
    variables takes minutes for some of these kernels. LLVM keeps the cell in a register (TVM would take one of scope
    "local" from the heap)."""
    cell = T.alloc_buffer((lanes,), dtype)
    T.buffer_store(cell, value, [span(0, lanes)])
    return T.bind(cell[span(0, lanes)])


def constant(value: float, lanes: int, dtype: str = "float32") -> Expr:
    return splat(tirx.const(value, dtype), lanes)


def table(values: Sequence[float], dtype: str = "float32") -> Expr:
    """A vector of compile-time constants."""
    lanes = [tirx.const(float(value), dtype) for value in values]
    return lanes[0] if len(lanes) == 1 else tirx.Shuffle(lanes, list(range(len(lanes))))


def _typed(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def load(unit: VectorUnit, buffer: Any, *index: Expr) -> Expr:
    """`unit.lanes` consecutive elements of a float32, float16 or int8 buffer, as float32."""
    place = run(index, unit.lanes)
    value = buffer[place]
    if str(buffer.dtype) == "float32":
        return T.bind(value)
    if str(buffer.dtype) == "int8":
        return T.bind(T.cast(T.cast(value, _typed("int32", unit.lanes)), _typed("float32", unit.lanes)))
    if unit.converts_float16:
        return T.bind(T.cast(value, _typed("float32", unit.lanes)))
    return float32_of_half_bits(T.reinterpret(value, dtype=_typed("uint16", unit.lanes)), unit.lanes)


def store(unit: VectorUnit, buffer: Any, value: Expr, *index: Expr) -> None:
    """Write a float32 vector to a float32 or float16 buffer."""
    if str(buffer.dtype) == "float16":
        if unit.converts_float16:
            value = T.cast(value, _typed("float16", unit.lanes))
        else:
            bits = _half_bits_of_float32(value, unit.lanes)
            value = T.reinterpret(bits, dtype=_typed("float16", unit.lanes))
    T.buffer_store(buffer, value, run(index, unit.lanes))


def copy(unit: VectorUnit, target: Any, to: Sequence[Expr], source: Any, at: Sequence[Expr], extent: int) -> None:
    """Copy `extent` consecutive elements between buffers of one type."""
    for offset in range(0, extent, unit.lanes):
        place = run(at, unit.lanes, offset)
        T.buffer_store(target, source[place], run(to, unit.lanes, offset))


def prefetch(buffer: Any, index: Sequence[Expr], extent: int) -> None:
    """Ask for `extent` consecutive elements to be brought into the second-level cache. The first level takes fewer
    requests at a time than memory can serve: asking for it was a third slower where all data came from memory."""
    line = 64 // (int(tvm.DataType(str(buffer.dtype)).bits) // 8)  # elements in 64 bytes
    for offset in range(0, extent, line):
        place = run(index, 1, offset)
        read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
        address = T.address_of(buffer[place])
        T.evaluate(T.call_llvm_intrin("llvm.prefetch", address, read, second_level, data, dtype="void"))


def float32_of_half_bits(bits: Expr, lanes: int) -> Expr:
    """Shift exponent and mantissa into place and correct the exponent's bias by a product: exact for subnormals too."""
    wide = settled(T.cast(bits, _typed("int32", lanes)), "int32", lanes)
    magnitude = (wide & constant(0x7FFF, lanes, "int32")) << constant(13, lanes, "int32")
    scaled = T.reinterpret(magnitude, dtype=_typed("float32", lanes)) * constant(2.0**112, lanes)
    sign = (wide & constant(0x8000, lanes, "int32")) << constant(16, lanes, "int32")
    joined = T.reinterpret(scaled, dtype=_typed("int32", lanes)) | sign
    return settled(T.reinterpret(joined, dtype=_typed("float32", lanes)), "float32", lanes)


def _half_bits_of_float32(value: Expr, lanes: int) -> Expr:
    """Round to nearest even. Subnormal halves are rounded by the adder: 0.5 has an ulp of 2^-24, the smallest half."""

    def integer(number: int) -> Expr:
        return constant(number, lanes, "int32")

    bits = settled(T.reinterpret(value, dtype=_typed("int32", lanes)), "int32", lanes)
    magnitude = settled(bits & integer(0x7FFFFFFF), "int32", lanes)
    odd = (magnitude >> integer(13)) & integer(1)
    normal = (magnitude + integer(0xFFF - (112 << 23)) + odd) >> integer(13)
    small = T.reinterpret(magnitude, dtype=_typed("float32", lanes)) + constant(0.5, lanes)
    subnormal = T.reinterpret(small, dtype=_typed("int32", lanes)) - integer(0x3F000000)
    finite = tirx.Select(magnitude < integer(113 << 23), subnormal, normal)
    half = tirx.Select(magnitude >= integer(0x47800000), integer(0x7C00), finite)
    sign = (bits >> integer(16)) & integer(0x8000)
    return T.cast(half | sign, _typed("uint16", lanes))


def reduce(vector: Expr, lanes: int, operator: Callable[[Expr, Expr], Expr]) -> Expr:
    """Combine the lanes of a vector pairwise into a scalar."""
    while lanes > 1:
        lanes //= 2
        low, high = list(range(lanes)), list(range(lanes, 2 * lanes))
        vector = T.bind(operator(tirx.Shuffle([vector], low), tirx.Shuffle([vector], high)))
    return vector


def abs_max(vectors: Sequence[Expr], lanes: int) -> Expr:
    """The largest magnitude in float32 vectors, a scalar."""
    magnitudes = [T.bind(T.max(vector, constant(0.0, lanes) - vector)) for vector in vectors]
    largest = magnitudes[0]
    for magnitude in magnitudes[1:]:
        largest = T.bind(T.max(largest, magnitude))
    return reduce(largest, lanes, T.max)


def add(a: Expr, b: Expr) -> Expr:
    return a + b


def exchange(a: Expr, b: Expr, lanes: int, stride: int) -> tuple[Expr, Expr]:
    """One butterfly of a transposition: swap the lanes of `a` that have the bit `stride` set with those of `b` that
    have it clear."""
    first = [lane + lanes - stride if lane & stride else lane for lane in range(lanes)]
    second = [lane + lanes if lane & stride else lane + stride for lane in range(lanes)]
    return tirx.Shuffle([a, b], first), tirx.Shuffle([a, b], second)


def transpose(rows: Sequence[Expr], lanes: int) -> list[Expr]:
    """Transpose `lanes` vectors of `lanes` elements in registers, by lanes * log2(lanes) shuffles."""
    rows, stride = list(rows), 1
    while stride < lanes:
        for i in range(lanes):
            if not i & stride:
                a, b = exchange(rows[i], rows[i + stride], lanes, stride)
                rows[i], rows[i + stride] = T.bind(a), T.bind(b)
        stride *= 2
    return rows


def exp2(x: Expr, lanes: int) -> Expr:
    """2^x for x <= 127, within 2 ulp; below -125 the result stays at 2^-125, which is nothing beside the largest term.

    Adding 1.5 * 2^23 rounds x to an integer n and leaves n in the low bits of the sum, ready to be shifted into the
    exponent of 2^(x - n). TVM's simplifier would cancel a float sum that is subtracted again: n is read as an integer.
    """
    x = settled(T.max(x, constant(-125.0, lanes)), "float32", lanes)
    bits = settled(T.reinterpret(x + constant(12582912.0, lanes), dtype=_typed("int32", lanes)), "int32", lanes)
    f = x - T.cast(bits - constant(0x4B400000, lanes, "int32"), _typed("float32", lanes))
    f = settled(f, "float32", lanes)
    power = constant(EXP2[-1], lanes)
    for coefficient in (*EXP2[-2::-1], 1.0):
        power = power * f + constant(coefficient, lanes)
    scaled = T.reinterpret(power, dtype=_typed("int32", lanes)) + (bits << constant(23, lanes, "int32"))
    return settled(T.reinterpret(scaled, dtype=_typed("float32", lanes)), "float32", lanes)


def log2(x: Expr) -> Expr:
    """log2 of a positive normal scalar: the exponent, plus 2 / ln 2 * atanh((m - 1) / (m + 1)) of the mantissa m."""
    bits = settled(T.reinterpret(x, dtype="int32"))
    # exponent of x / sqrt(1/2), so that m lies in [sqrt(1/2), sqrt(2))
    exponent = settled((bits - tirx.const(0x3F3504F3, "int32")) >> tirx.const(23, "int32"))
    mantissa = settled(T.reinterpret(bits - (exponent << tirx.const(23, "int32")), dtype="float32"), "float32")
    t = settled((mantissa - T.float32(1)) / (mantissa + T.float32(1)), "float32")
    square = settled(t * t, "float32")
    series = T.float32(1 / 11)
    for order in (9, 7, 5, 3, 1):
        series = series * square + T.float32(1 / order)
    return settled(T.cast(exponent, "float32") + t * series * T.float32(2 / math.log(2)), "float32")


def sincos(angle: Expr, lanes: int) -> tuple[Expr, Expr]:
    """Sine and cosine of a float32 angle of any size that positions reach, within 2 ulp of 1.

    The angle is reduced to [-pi/4, pi/4] in float64, where quadrant * pi/2 is exact enough for millions of turns; the
    polynomials are those of Cephes (sinf.c, cosf.c).
    """

    def single(value: Expr) -> Expr:
        return settled(value, "float32", lanes)

    def bit(value: Expr, mask: int) -> Expr:
        return (value & constant(mask, lanes, "int32")) != constant(0, lanes, "int32")

    wide = settled(T.cast(angle, _typed("float64", lanes)), "float64", lanes)
    shifted = wide * constant(2 / math.pi, lanes, "float64") + constant(6755399441055744.0, lanes, "float64")
    quadrant = T.cast(T.reinterpret(shifted, dtype=_typed("int64", lanes)), _typed("int32", lanes))
    quadrant = settled(quadrant, "int32", lanes)
    turns = T.cast(quadrant, _typed("float64", lanes))
    r = single(T.cast(wide - turns * constant(math.pi / 2, lanes, "float64"), _typed("float32", lanes)))
    z = single(r * r)
    sine = constant(-1.9515295891e-4, lanes) * z + constant(8.3321608736e-3, lanes)
    sine = single(r + r * z * (sine * z + constant(-1.6666654611e-1, lanes)))
    cosine = constant(2.443315711809948e-5, lanes) * z + constant(-1.388731625493765e-3, lanes)
    cosine = (cosine * z + constant(4.166664568298827e-2, lanes)) * z * z
    cosine = single(cosine - constant(0.5, lanes) * z + constant(1.0, lanes))
    odd, zero = bit(quadrant, 1), constant(0.0, lanes)
    s, c = single(tirx.Select(odd, cosine, sine)), single(tirx.Select(odd, sine, cosine))
    s = single(tirx.Select(bit(quadrant, 2), zero - s, s))
    return s, single(tirx.Select(bit(quadrant + constant(1, lanes, "int32"), 2), zero - c, c))
