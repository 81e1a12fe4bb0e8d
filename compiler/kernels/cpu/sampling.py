"""What choosing a token needs of all logits: the maximum of each block of 64, and the block's part of the softmax.

Everything else looks only at the few blocks whose maximum says that they matter: the most likely token is in the block
with the largest maximum, and the kernel that draws one looks for tokens above a threshold.

    logits      | 0 .. 63 | 64 .. 127 | ... | the rest |       any number, at any address
    block_max   |    m0   |     m1    | ... |    m     |
"""
# mypy: ignore-errors

import math
from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import SAMPLING_BLOCK
from ..builder import kernel
from .draw import draw
from .vector import Expr, add, constant, exp2, reduce, settled, span

_LANES = 16
_VECTORS = SAMPLING_BLOCK // _LANES
_MAGNITUDE, _INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32's bits: all but the sign; those of infinity


def sampling_kernels() -> dict[str, tirx.PrimFunc]:
    """The functions that a library exports for the sampler, by name."""
    return {"block_max": block_max(), "block_exp_sum": block_exp_sum(), "draw": draw()}


def block_max() -> tirx.PrimFunc:
    """logits float32 [count], out float32 [ceil(count / 64)]: the largest logit of each block, NaN where it has one."""

    def reduced(values: list[Expr], lanes: int) -> Expr:
        largest, magnitude = values[0], _magnitude(values[0], lanes)
        for value in values[1:]:
            largest = settled(T.max(largest, value), "float32", lanes)
            magnitude = settled(T.max(magnitude, _magnitude(value, lanes)), "int32", lanes)
        largest = reduce(largest, lanes, T.max)
        magnitude = reduce(magnitude, lanes, T.max)
        return tirx.Select(magnitude > _INFINITY, T.float32(math.nan), largest)

    return _over_blocks("block_max", [], lambda values, lanes, _: reduced(values, lanes), _larger)


def block_exp_sum() -> tirx.PrimFunc:
    """logits float32 [count], largest, scale, out float32 [ceil(count / 64)]: the sum of each block's
    2^((logit - largest) * scale). `largest` is that of all logits; a scale of log2(e) / temperature gives the softmax.
    """

    def weight(exponent: Expr, lanes: int) -> Expr:
        exponent = settled(exponent, "float32", lanes)
        # so that a forbidden token has no weight, and a block of such tokens no share of a draw
        is_something = exponent > constant(-125.0, lanes)
        return settled(tirx.Select(is_something, exp2(exponent, lanes), constant(0.0, lanes)), "float32", lanes)

    def reduced(values: list[Expr], lanes: int, scalars: list[Expr]) -> Expr:
        largest, scale = (T.broadcast(s, lanes) if lanes > 1 else s for s in scalars)
        powers = [weight((value - largest) * scale, lanes) for value in values]
        total = powers[0]
        for power in powers[1:]:
            total = settled(total + power, "float32", lanes)
        return reduce(total, lanes, add)

    return _over_blocks("block_exp_sum", ["largest", "scale"], reduced, add)


def _magnitude(value: Expr, lanes: int) -> Expr:
    bits = T.reinterpret(value, dtype="int32" if lanes == 1 else f"int32x{lanes}")
    return settled(bits & constant(_MAGNITUDE, lanes, "int32"), "int32", lanes)


def _larger(a: Expr, b: Expr) -> Expr:
    """The larger of two numbers, NaN where one of them is: compared by bits, for TVM takes a != a to be false."""
    return tirx.Select(tirx.any(a > b, _magnitude(a, 1) > _INFINITY), a, b)


def _over_blocks(
    name: str,
    scalars: list[str],
    reduced: Callable[[list[Expr], int, list[Expr]], Expr],
    combine: Callable[[Expr, Expr], Expr],
) -> tirx.PrimFunc:
    """A kernel that reduces each block to a number: the vectors of a whole block at once, the elements of the last and
    incomplete one each by itself, which `combine` then puts together."""
    with kernel(name) as k:
        count, blocks = T.int64(), T.int64()
        logits = k.input("logits", (count,), "float32", align=4)
        values = [T.arg(scalar, T.float32()) for scalar in scalars]
        out = k.input("out", (blocks,), "float32", align=4)
        with k.body(), T.serial(0, blocks) as block:
            first = T.bind(block * SAMPLING_BLOCK)
            with T.If(first + SAMPLING_BLOCK <= count):
                with T.Then():
                    vectors = [T.bind(logits[span(first + i * _LANES, _LANES)]) for i in range(_VECTORS)]
                    T.buffer_store(out, reduced(vectors, _LANES, values), [block])
                with T.Else():
                    T.buffer_store(out, reduced([T.bind(logits[first])], 1, values), [block])
                    with T.serial(1, count - first) as i:
                        other = settled(reduced([T.bind(logits[first + i])], 1, values), "float32")
                        T.buffer_store(out, combine(settled(out[block], "float32"), other), [block])
    return k.function
