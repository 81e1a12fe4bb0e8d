"""What choosing a token needs of all logits: the maximum of each block of 64, and the block's part of the softmax.

Everything else looks only at the few blocks whose maximum says that they matter: the most likely token is in the block
with the largest maximum, and those that a draw may give (sample_token.py) are above a threshold.

    logits      | 0 .. 63 | 64 .. 127 | ... | the rest |       any number, at any address
    block_max   |    m0   |     m1    | ... |    m     |
"""
# mypy: ignore-errors

import math
from collections.abc import Callable
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import SAMPLING_BLOCK
from ..builder import kernel
from .vector import Expr, add, constant, exp2, reduce, settled, span, splat

Buffer = Any  # tvm is not typed

_LANES = 16
_VECTORS = SAMPLING_BLOCK // _LANES
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32's bits: all but the sign; those of infinity


def block_max() -> tirx.PrimFunc:
    """logits float32 [count], out float32 [ceil(count / 64)]: the largest logit of each block, NaN where it has one."""
    with kernel("block_max") as k:
        count, blocks = T.int64(), T.int64()
        logits = k.input("logits", (count,), "float32", align=4)
        out = k.input("out", (blocks,), "float32", align=4)
        with k.body():
            reduce_to_max(logits, out)
    return k.function


def block_exp_sum() -> tirx.PrimFunc:
    """logits float32 [count], largest, scale, out float32 [ceil(count / 64)]: the sum of each block's
    2^((logit - largest) * scale). `largest` is that of all logits; a scale of log2(e) / temperature gives the softmax.
    """
    with kernel("block_exp_sum") as k:
        count, blocks = T.int64(), T.int64()
        logits = k.input("logits", (count,), "float32", align=4)
        largest, scale = T.arg("largest", T.float32()), T.arg("scale", T.float32())
        out = k.input("out", (blocks,), "float32", align=4)
        with k.body():
            reduce_to_exp_sum(logits, largest, scale, out)
    return k.function


def reduce_to_max(logits: Buffer, out: Buffer) -> None:
    """Emit the work of `block_max`."""

    def reduced(values: list[Expr], lanes: int) -> Expr:
        largest, magnitude = values[0], _magnitude(values[0], lanes)
        for value in values[1:]:
            largest = settled(T.max(largest, value), "float32", lanes)
            magnitude = settled(T.max(magnitude, _magnitude(value, lanes)), "int32", lanes)
        largest = reduce(largest, lanes, T.max)
        magnitude = reduce(magnitude, lanes, T.max)
        return tirx.Select(magnitude > _INFINITY, T.float32(math.nan), largest)

    _over_blocks(logits, out, reduced, _larger)


def reduce_to_exp_sum(logits: Buffer, largest: Expr, scale: Expr, out: Buffer) -> None:
    """Emit the work of `block_exp_sum`."""

    def weight(exponent: Expr, lanes: int) -> Expr:
        exponent = settled(exponent, "float32", lanes)
        # so that a forbidden token has no weight, and a block of such tokens no share of a draw
        is_something = exponent > constant(-125.0, lanes)
        return settled(tirx.Select(is_something, exp2(exponent, lanes), constant(0.0, lanes)), "float32", lanes)

    def reduced(values: list[Expr], lanes: int) -> Expr:
        powers = [weight((value - splat(largest, lanes)) * splat(scale, lanes), lanes) for value in values]
        total = powers[0]
        for power in powers[1:]:
            total = settled(total + power, "float32", lanes)
        return reduce(total, lanes, add)

    _over_blocks(logits, out, reduced, add)


def is_nan(value: Expr) -> Expr:
    """By its bits, for TVM takes x != x to be false."""
    return _magnitude(value, 1) > _INFINITY


def is_finite(value: Expr) -> Expr:
    return _magnitude(value, 1) < _INFINITY


def _larger(a: Expr, b: Expr) -> Expr:
    """The larger of two numbers, NaN where one of them is."""
    return tirx.Select(tirx.any(a > b, is_nan(a)), a, b)


def _magnitude(value: Expr, lanes: int) -> Expr:
    bits = T.reinterpret(value, dtype="int32" if lanes == 1 else f"int32x{lanes}")
    return settled(bits & constant(_MAGNITUDE, lanes, "int32"), "int32", lanes)


def _over_blocks(
    logits: Buffer, out: Buffer, reduced: Callable[[list[Expr], int], Expr], combine: Callable[[Expr, Expr], Expr]
) -> None:
    """Reduce each block to a number: the vectors of a whole block at once, the elements of the last and incomplete one
    each by itself, which `combine` then puts together. By one thread: waking another takes longer."""
    count, blocks = logits.shape[0], out.shape[0]
    with T.serial(0, blocks) as block:
        first = T.bind(block * SAMPLING_BLOCK)
        with T.If(first + SAMPLING_BLOCK <= count):
            with T.Then():
                vectors = [T.bind(logits[span(first + i * _LANES, _LANES)]) for i in range(_VECTORS)]
                T.buffer_store(out, reduced(vectors, _LANES), [block])
            with T.Else():
                T.buffer_store(out, reduced([T.bind(logits[first])], 1), [block])
                with T.serial(1, count - first) as i:
                    other = settled(reduced([T.bind(logits[first + i])], 1), "float32")
                    T.buffer_store(out, combine(settled(out[block], "float32"), other), [block])
