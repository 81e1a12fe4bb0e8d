"""The queries of a batch, and their loading into rows."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .flash import LOG2_E, HeadShape
from .rope import Rotation, emit_angles, emit_rotate
from .vector import Expr, load, splat, store


@dataclass(frozen=True)
class Queries:
    """The buffers and scalars of a batch of queries."""

    q: Expr
    positions: Expr
    output: Expr
    lse: Expr
    causal: Expr
    rotary_mode: Expr
    sm_scale: Expr


def either(
    rotation: Rotation | None, rotary_mode: Expr, rotated: Callable[[], None], plain: Callable[[], None]
) -> None:
    """Rotation in a kernel exists only where the cache may hold unrotated keys: TVM's sliding window that forgets."""
    if rotation is None:
        plain()
        return
    with T.If(rotary_mode == 1):
        with T.Then():
            rotated()
        with T.Else():
            plain()


def load_queries(
    shape: HeadShape, rotation: Rotation | None, queries: Queries, first: Expr, count: Expr, head: Expr, rows: Any
) -> None:
    """Write the rows `token * group + query head of the group` of `count` tokens from `first` on, scaled."""
    group, unit = shape.group, shape.vectors
    scale = T.bind(queries.sm_scale * T.float32(LOG2_E))

    def plain() -> None:
        with T.serial(count) as t, T.serial(group) as g:
            for d in range(0, shape.head_dim, unit.lanes):
                vector = load(unit, queries.q, first + t, head * group + g, d)
                store(unit, rows, vector * splat(scale, unit.lanes), t * group + g, d)

    def rotated() -> None:
        assert rotation is not None
        half, lanes = len(rotation.frequencies), rotation.unit(unit).lanes
        with T.serial(count) as t:
            cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
            emit_angles(rotation, unit, queries.positions[first + t], cosines, sines)
            with T.serial(group) as g:
                source, target = (queries.q, (first + t, head * group + g, 0)), (rows, (t * group + g, 0))
                emit_rotate(rotation, unit, source, target, cosines, sines, lambda vector: vector * splat(scale, lanes))

    either(rotation, queries.rotary_mode, rotated, plain)
