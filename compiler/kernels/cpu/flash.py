"""The running softmax of decode attention.

Attention over many keys is done in blocks of `KEY_BLOCK` keys with a running maximum m, a running sum of weights and
an output that is rescaled whenever m grows (FlashAttention, arXiv:2205.14135). Scores are in units of log2 e, so
weights are powers of two. A row is one query head of one token.
"""

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from .vector import Expr, VectorUnit, add, constant, exp2, reduce, span, splat

KEY_BLOCK = 64
NO_SCORE = -1e30  # of a masked key
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class HeadShape:
    """Attention geometry and the vectors it is computed with."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # of stored keys and values: float32, float16 or int8
    unit: VectorUnit

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def fused_width(self) -> int:
        """Numbers of one token's query, key and value heads, which follow each other in that order."""
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def vectors(self) -> VectorUnit:
        return self.unit.dividing(self.head_dim, KEY_BLOCK)

    @property
    def tile_rows(self) -> int:
        """Rows of a register tile. 6 rows by 4 columns leave room for operands in 32 registers, 6 by 2 in 16."""
        return 6

    @property
    def tile_columns(self) -> int:
        return 4 if self.unit.registers >= 32 else 2


@dataclass(frozen=True)
class RowState:
    """What a row carries from block to block. `rescale` is the factor of this block for what came before it."""

    maximum: Any  # [rows]
    total: Any  # [rows, lanes], partial sums of weights
    output: Any  # [rows, head_dim]
    rescale: Any  # [rows]

    @staticmethod
    def allocate(shape: HeadShape, rows: int) -> "RowState":
        return RowState(
            T.alloc_buffer((rows,), "float32"),
            T.alloc_buffer((rows, shape.vectors.lanes), "float32"),
            T.alloc_buffer((rows, shape.head_dim), "float32"),
            T.alloc_buffer((rows,), "float32"),
        )

    def clear(self, shape: HeadShape, rows: Expr) -> None:
        lanes = shape.vectors.lanes
        with T.serial(rows) as row:
            T.buffer_store(self.maximum, T.float32(NO_SCORE), [row])
            T.buffer_store(self.total, constant(0.0, lanes), [row, span(0, lanes)])
            for d in range(0, shape.head_dim, lanes):
                T.buffer_store(self.output, constant(0.0, lanes), [row, span(d, lanes)])

    def weight_sum(self, shape: HeadShape, row: Expr) -> Expr:
        """The sum of a row's weights."""
        lanes = shape.vectors.lanes
        return reduce(T.bind(self.total[row, span(0, lanes)]), lanes, add)


def softmax_row(
    shape: HeadShape, scores: Any, tile_row: Expr, state: RowState, row: Expr, low: Expr, high: Expr
) -> None:
    """Turn the scores of a row into weights; only columns low <= column < high of the block are visible to it."""
    lanes = shape.vectors.lanes
    low, high = T.bind(splat(low, lanes)), T.bind(splat(high, lanes))
    none, whole = constant(NO_SCORE, lanes), span(0, lanes)
    peak = T.alloc_buffer((lanes,), "float32")
    T.buffer_store(peak, none, [whole])
    with T.serial(KEY_BLOCK // lanes) as part:
        columns = span(part * lanes, lanes)
        visible = tirx.Select(columns >= low, tirx.Select(columns < high, scores[tile_row, columns], none), none)
        T.buffer_store(scores, visible, [tile_row, columns])
        T.buffer_store(peak, T.max(peak[whole], scores[tile_row, columns]), [whole])
    before = T.bind(state.maximum[row])
    after = T.bind(T.max(before, reduce(peak[whole], lanes, T.max)))
    factor = exp2(before - after, 1)
    T.buffer_store(state.maximum, after, [row])
    T.buffer_store(state.rescale, factor, [row])
    T.buffer_store(peak, state.total[row, whole] * splat(factor, lanes), [whole])
    with T.serial(KEY_BLOCK // lanes) as part:
        columns = span(part * lanes, lanes)
        score = T.bind(scores[tile_row, columns])
        weight = exp2(score - splat(after, lanes), lanes)
        T.buffer_store(scores, tirx.Select(score > none, weight, constant(0.0, lanes)), [tile_row, columns])
        T.buffer_store(peak, peak[whole] + scores[tile_row, columns], [whole])
    T.buffer_store(state.total, peak[whole], [row, whole])
