"""The small kernels between the multiplications: embedding rows, RMS norm, SwiGLU, row selection."""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel, splat
from ..layers import last_row_arguments, norm_arguments, swiglu_arguments
from ..storage import TILE, PackedWeight, Storage, lanes
from .matmul import inverse_root_mean_square, silu
from .vector import span

_FEW_ROWS = 4  # done before other threads could help


def embedding(rows: int, columns: int, storage: Storage) -> tirx.PrimFunc:
    """Token ids int32 [seq] -> rows of the packed table, float32 [seq, columns]."""
    with kernel("embedding") as k:
        seq = T.int64()
        ids = k.input("ids", (seq,), "int32")
        weight = PackedWeight(k, storage, rows, columns)
        y = k.input("y", (seq, columns), "float32")

        def row(i) -> None:
            with T.serial(0, columns) as c:
                T.buffer_store(y, weight.element(T.floordiv(ids[i], TILE), T.floormod(ids[i], TILE), c), [i, c])

        with k.body(), T.If(seq < _FEW_ROWS):
            with T.Then(), T.serial(0, seq) as i:
                row(i)
            with T.Else(), T.parallel(0, seq) as i:
                row(i)
    return k.function


def _each_row(row: Callable, batch, seq, *, single: bool) -> None:
    """`row(b, s)` for every row of [batch, seq, ...]; a single one is not worth a parallel loop."""
    if single:
        row(0, 0)
    else:
        with T.parallel(0, batch * seq) as m:
            row(T.floordiv(m, seq), T.floormod(m, seq))


def rms_norm(columns: int, eps: float, *, single: bool) -> tirx.PrimFunc:
    """x [batch, seq, columns] -> x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in float32.

    `single` is the kernel for exactly one row.
    """
    with kernel("rms_norm") as k:
        batch, seq, x, weight, y = norm_arguments(k, columns, single=single)

        def row(b, s) -> None:
            def value(column, count: int):
                return x[b, s, span(column, count)]

            inverse = inverse_root_mean_square(value, columns, eps)
            with T.serial(0, columns // TILE) as i:
                normed = value(i * TILE, TILE) * splat(inverse[0]) * weight[lanes(i * TILE)]
                T.buffer_store(y, normed, [b, s, lanes(i * TILE)])
            for i in range(columns // TILE * TILE, columns):
                T.buffer_store(y, x[b, s, i] * inverse[0] * weight[i], [b, s, i])

        with k.body():
            _each_row(row, batch, seq, single=single)
    return k.function


def silu_mul(columns: int, *, single: bool) -> tirx.PrimFunc:
    """[batch, seq, 2 x columns] (gate | up) -> silu(gate) * up [batch, seq, columns], float32 (Shazeer 2020)."""
    with kernel("silu_mul") as k:
        batch, seq, x, y = swiglu_arguments(k, columns, single=single)

        def activate(b, s, column, count: int) -> None:
            gate, up = span(column, count), span(columns + column, count)
            T.buffer_store(y, silu(x[b, s, gate], count) * x[b, s, up], [b, s, gate])

        def row(b, s) -> None:
            with T.serial(0, columns // TILE) as i:
                activate(b, s, i * TILE, TILE)
            for i in range(columns // TILE * TILE, columns):
                activate(b, s, i, 1)

        with k.body():
            _each_row(row, batch, seq, single=single)
    return k.function


def last_row(columns: int) -> tirx.PrimFunc:
    """x [1, seq, columns] -> its last row [1, 1, columns], float32."""
    with kernel("last_row") as k:
        seq, x, y = last_row_arguments(k, columns)
        with k.body(), T.serial(0, columns) as c:
            T.buffer_store(y, x[0, seq - 1, c], [0, 0, c])
    return k.function
