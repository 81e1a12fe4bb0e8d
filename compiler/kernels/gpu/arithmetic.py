"""Numbers of device threads: exact constants, vectors of four, and elementary functions.

Drivers' exp2, sin and cos differ, may be imprecise for large arguments, and AMD's code objects come without a library
of them; these are the same arithmetic everywhere. They also hold where a driver's compiler reorders sums.
"""
# mypy: ignore-errors

import math
from collections.abc import Sequence

import numpy as np
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..polynomials import EXP2
from .launch import cell

VECTOR = 4  # numbers of the widest vectors that all devices have


def variable(value, dtype: str = "float32"):
    """A value, computed here and opaque to TVM's simplifier, which cancels sums of floats."""
    return T.bind(cell(value, dtype)[0])


def float_of_bits(bits):
    """The float32 with the bits of an int32. OpenCL C reads them from a variable."""
    return variable(T.reinterpret(variable(bits, "int32"), dtype="float32"))


def exact(value: float):
    """A float32 constant. TVM writes seven digits of it into OpenCL C, CUDA and Metal sources, which is within 5e-7 of
    it: enough for the coefficients of polynomials."""
    number = np.float32(value)
    if np.float32(f"{number:e}") == number:
        return tirx.const(float(number), "float32")
    return float_of_bits(tirx.const(int(number.view(np.int32)), "int32"))


def pick(values: Sequence[float], index):
    """`values[index]`, float32, by log2(len(values)) selections: the values are constants of the code."""

    def among(first: int, last: int):
        if last - first == 1:
            return tirx.const(int(np.float32(values[first]).view(np.int32)), "int32")
        middle = (first + last) // 2
        return tirx.Select(index < middle, among(first, middle), among(middle, last))

    return float_of_bits(among(0, len(values)))


def load4(buffer, *index):
    """Four consecutive numbers, each as float32. They are read together, but for those of int8, of which TVM writes
    OpenCL C that drivers reject."""
    if str(buffer.dtype) == "int8":
        return [T.bind(T.cast(buffer[(*index[:-1], index[-1] + i)], "float32")) for i in range(VECTOR)]
    value = buffer[(*index[:-1], T.ramp(index[-1], 1, VECTOR))]
    vector = T.bind(value if str(buffer.dtype) == "float32" else T.cast(value, "float32x4"))
    return [T.bind(tirx.Shuffle([vector], [i])) for i in range(VECTOR)]


def rounded(x):
    """The nearest int32 of |x| < 2^22, ties to even. Adding 1.5 * 2^23 leaves it in the low bits of the sum."""
    bits = variable(T.reinterpret(variable(x + exact(12582912.0)), dtype="int32"), "int32")
    return T.bind(bits - tirx.const(0x4B400000, "int32"))


def exp2(x):
    """2^x for x <= 127, within 2 ulp; below -125 the result stays at 2^-125, nothing beside the largest term."""
    x = variable(T.max(x, T.float32(-125)))
    whole = rounded(x)
    f = variable(x - T.cast(whole, "float32"))
    power = T.float32(EXP2[-1])
    for coefficient in (*EXP2[-2::-1], 1.0):
        power = power * f + T.float32(coefficient)
    return float_of_bits(T.reinterpret(variable(power), dtype="int32") + (whole << 23))


_TURN = 2.0**32 / (2 * math.pi)  # a radian, where 2^32 is a full turn


def sincos(angle):
    """Sine and cosine of a float32 angle, 0 <= angle < 2^31, within 1e-7.

    The angle becomes an integer of which 2^32 are a turn, so that whole turns vanish in the overflow, however many.
    Its whole radians count for _TURN each: the whole part of that by an integer product, the rest in float32. The
    polynomials on [-pi/4, pi/4] are those of Cephes (sinf.c, cosf.c).
    """
    whole = variable(T.cast(angle, "int32"), "int32")
    rest = variable(angle - T.cast(whole, "float32"))
    each = int(_TURN)
    small = T.cast(whole, "float32") * exact(_TURN - each)
    turns = T.cast(whole, "uint32") * tirx.const(each, "uint32") + T.cast(small, "uint32")
    turns = variable(turns + T.cast(rest * exact(_TURN), "uint32"), "uint32")
    quadrant = variable((turns + tirx.const(1 << 29, "uint32")) >> tirx.const(30, "uint32"), "uint32")
    r = T.reinterpret(variable(turns - (quadrant << tirx.const(30, "uint32")), "uint32"), dtype="int32")
    r = variable(T.cast(r, "float32") * exact(1 / _TURN))
    z = variable(r * r)
    sine = T.float32(-1.9515295891e-4) * z + T.float32(8.3321608736e-3)
    sine = variable(r + r * z * (sine * z + T.float32(-1.6666654611e-1)))
    cosine = T.float32(2.443315711809948e-5) * z + T.float32(-1.388731625493765e-3)
    cosine = (cosine * z + T.float32(4.166664568298827e-2)) * z * z
    cosine = variable(cosine - T.float32(0.5) * z + T.float32(1))

    def bit(value, mask: int):
        return (value & tirx.const(mask, "uint32")) != tirx.const(0, "uint32")

    odd = bit(quadrant, 1)
    s, c = variable(tirx.Select(odd, cosine, sine)), variable(tirx.Select(odd, sine, cosine))
    s = variable(tirx.Select(bit(quadrant, 2), T.float32(0) - s, s))
    c = variable(tirx.Select(bit(quadrant + tirx.const(1, "uint32"), 2), T.float32(0) - c, c))
    return s, c
