"""The queries of a batch: rotated, scaled and laid out as the rows of a tile."""

from typing import Any

from tvm.script import tirx as T

from .flash import LOG2_E, HeadShape
from .rope import Rotation, emit_rotate
from .vector import Expr, splat


def load_queries(
    shape: HeadShape, rotation: Rotation, qkv: Any, token: tuple[Expr, ...], head: Expr, cosines: Any, sines: Any,
    rows: Any, first_row: Expr,
) -> None:  # fmt: skip
    """Write the query heads of one token that share key head `head` to rows `first_row`.. of `rows`, in units of
    log2 e over sqrt(head_dim). `token` is the index of the token's row in qkv."""
    lanes = rotation.unit(shape.vectors).lanes
    scale = T.float32(shape.head_dim**-0.5 * LOG2_E)
    with T.serial(shape.group) as g:
        source = (qkv, (*token, (head * shape.group + g) * shape.head_dim))
        target = (rows, (first_row + g, 0))
        emit_rotate(
            rotation, shape.vectors, source, target, cosines, sines, lambda vector: vector * splat(scale, lanes)
        )
