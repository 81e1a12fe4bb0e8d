# mypy: ignore-errors
"""The rows of decode attention, a query head each, and their running softmax.

Attention over many keys is done in blocks, with a running maximum, a running sum of weights and an output that is
rescaled whenever the maximum grows (FlashAttention, arXiv:2205.14135). Scores are in units of log2 e, so weights are
powers of two.
"""

import math
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .flash import NO_SCORE, HeadShape
from .kv_pages import KEY_BLOCK, index64
from .vector import Expr, add, constant, exp2, reduce, span, splat


class Scratch:
    """What the parts of the attention keep in memory, cut from one buffer: TVM asks the runtime for each buffer above
    1 KB, which takes longer than a short text."""

    def __init__(self, parts: Expr, width: int) -> None:
        """`width`: float32 numbers of a part."""
        self.width = width
        self.buffer = T.alloc_buffer((parts, width), "float32")

    def cut(self, part: Expr, layout: dict[str, tuple[tuple[int, ...], str]]) -> dict[str, Any]:
        """The buffers of a part, by name: their shapes and types are in `layout`."""
        buffers, offset = {}, 0
        for name, (shape, dtype) in layout.items():
            first = index64(part) * self.width + offset
            buffers[name] = T.decl_buffer(shape, dtype, data=self.buffer.data, elem_offset=first)
            offset += room(shape)
        return buffers


def room(shape: tuple[int, ...]) -> int:
    """Numbers that an array takes, up to a whole cache line."""
    return -(-math.prod(shape) // 16) * 16


@dataclass(frozen=True)
class Rows:
    """What the rows carry from block to block, and their scores in the current one."""

    shape: HeadShape
    maximum: Any  # [rows, up to a whole vector]
    before: (
        Any  # likewise: the maximum before this block, then the factor for what came before it; the weight sum at last
    )
    total: Any  # [rows, lanes], partial sums of weights
    output: Any  # [rows, head_dim]
    scores: Any  # [rows, KEY_BLOCK], then weights

    @staticmethod
    def layout(shape: HeadShape) -> dict[str, tuple[tuple[int, ...], str]]:
        count, lanes = shape.num_q_heads, shape.vectors.lanes
        padded = -(-count // lanes) * lanes
        shapes = {
            "maximum": (padded,), "before": (padded,), "total": (count, lanes), "output": (count, shape.head_dim),
            "scores": (count, KEY_BLOCK),
        }  # fmt: skip
        return {name: (shape, "float32") for name, shape in shapes.items()}

    def clear(self) -> None:
        count, lanes = self.shape.num_q_heads, self.shape.vectors.lanes
        with T.serial(-(-count // lanes)) as part:
            T.buffer_store(self.maximum, constant(NO_SCORE, lanes), [span(part * lanes, lanes)])
        with T.serial(count) as row:
            T.buffer_store(self.total, constant(0.0, lanes), [row, span(0, lanes)])
            for d in range(0, self.shape.head_dim, lanes):
                T.buffer_store(self.output, constant(0.0, lanes), [row, span(d, lanes)])

    def weight_sum(self, row: Expr) -> Expr:
        """The sum of a row's weights."""
        lanes = self.shape.vectors.lanes
        return reduce(T.bind(self.total[row, span(0, lanes)]), lanes, add)

    def rescale(self, row: Expr) -> Expr:
        """The factor of this block for what came before it."""
        return T.bind(splat(self.before[row], self.shape.vectors.lanes))

    def hide(self, first: Expr, end: Expr) -> None:
        """Let all rows see the keys first <= key < end of the block only."""
        lanes = self.shape.vectors.lanes
        low, high = T.bind(splat(first, lanes)), T.bind(splat(end, lanes))
        with T.serial(KEY_BLOCK // lanes) as part:
            place = span(part * lanes, lanes)
            with T.serial(self.shape.num_q_heads) as row:
                none, score = constant(NO_SCORE, lanes), self.scores[row, place]
                seen = T.Select(place >= low, T.Select(place < high, score, none), none)
                T.buffer_store(self.scores, seen, [row, place])

    def weigh(self) -> None:
        """Turn scores into weights."""
        count, lanes = self.shape.num_q_heads, self.shape.vectors.lanes
        places = [span(d, lanes) for d in range(0, KEY_BLOCK, lanes)]
        with T.serial(count) as row:
            peak = T.bind(self.scores[row, places[0]])
            for place in places[1:]:
                peak = T.bind(T.max(peak, self.scores[row, place]))
            T.buffer_store(self.before, self.maximum[row], [row])
            T.buffer_store(self.maximum, T.max(self.maximum[row], reduce(peak, lanes, T.max)), [row])
        with T.serial(-(-count // lanes)) as part:
            place = span(part * lanes, lanes)
            T.buffer_store(self.before, exp2(self.before[place] - self.maximum[place], lanes), [place])
        with T.serial(count) as row:
            maximum = T.bind(splat(self.maximum[row], lanes))
            weights = []
            for place in places:
                weights.append(exp2(self.scores[row, place] - maximum, lanes))
                T.buffer_store(self.scores, weights[-1], [row, place])
            while len(weights) > 1:
                weights = [T.bind(a + b) for a, b in zip(weights[::2], weights[1::2], strict=True)]
            total = self.total[row, span(0, lanes)] * self.rescale(row) + weights[0]
            T.buffer_store(self.total, total, [row, span(0, lanes)])
