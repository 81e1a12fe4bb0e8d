"""The small kernels between the multiplications: embedding rows, RMS norm, SwiGLU, row selection. Each reads and writes
its tensors once; they are limited by memory, or by how long a launch takes."""
# mypy: ignore-errors

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...target.target import GpuTraits
from ..builder import kernel
from ..layers import last_row_arguments, norm_arguments, swiglu_arguments
from ..storage import TILE, Storage, declare_pieces
from .launch import cell, launch, strided
from .matmul import rows_of, silu
from .reduce import power_of_two, sum_of_workgroup

_THREADS = 128
_ROW_THREADS = 256  # for one row of a reduction


@contextmanager
def _inside(column, columns: int) -> Iterator[None]:
    """What threads do whose column exists."""
    with ExitStack() as stack:
        if columns % _THREADS:
            stack.enter_context(T.If(column < columns))
            stack.enter_context(T.Then())
        yield


def embedding(pieces: tuple[int, ...], columns: int, storage: Storage) -> tirx.PrimFunc:
    """Token ids int32 [seq] -> rows of the packed table, float32 [seq, columns]. `pieces`: rows of the table in each of
    the tensors that it consists of; each has a launch, which writes the rows that are in it."""
    with kernel("embedding") as k:
        seq = T.int64()
        ids = k.input("ids", (seq,), "int32")
        weights = declare_pieces(k, storage, pieces, columns)
        y = k.input("y", (seq, columns), "float32")
        grid = [-(-columns // _THREADS), T.cast(seq, "int32")]
        with k.body():
            first = 0
            for rows, weight in zip(pieces, weights, strict=True):
                with launch(grid, _THREADS) as ((block, i), (thread,)), ExitStack() as stack:
                    result, column, row = rows_of(y, columns), block * _THREADS + thread, ids[i] - first
                    stack.enter_context(_inside(column, columns))
                    if len(pieces) > 1:
                        stack.enter_context(T.If(T.And(row >= 0, row < rows)))
                        stack.enter_context(T.Then())
                    tile, lane = T.floordiv(row, TILE), T.floormod(row, TILE)
                    T.buffer_store(result, weight.element(tile, lane, column), [i, column])
                first += rows
    return k.function


def rms_norm(columns: int, eps: float, traits: GpuTraits, *, single: bool) -> tirx.PrimFunc:
    """x [batch, seq, columns] -> x / sqrt(mean(x^2) + eps) * weight (Zhang and Sennrich 2019), in float32: a workgroup
    for each row."""
    threads = min(_ROW_THREADS, power_of_two(traits.max_threads))
    with kernel("rms_norm") as k:
        batch, seq, x, weight, y = norm_arguments(k, columns, single=single)
        with k.body(), launch([T.cast(batch * seq, "int32")], threads) as ((row,), (thread,)):
            source, result = rows_of(x, columns), rows_of(y, columns)
            squares = cell(0.0)
            with strided(thread, threads, columns) as i:
                T.buffer_store(squares, squares[0] + source[row, i] * source[row, i], [0])
            mean = sum_of_workgroup(squares[0], thread, threads, traits) / T.float32(columns)
            inverse = cell(T.float32(1) / T.sqrt(mean + T.float32(eps)))
            with strided(thread, threads, columns) as i:
                T.buffer_store(result, source[row, i] * inverse[0] * weight[i], [row, i])
    return k.function


def silu_mul(columns: int, *, single: bool) -> tirx.PrimFunc:
    """[batch, seq, 2 x columns] (gate | up) -> silu(gate) * up [batch, seq, columns], float32 (Shazeer 2020)."""
    with kernel("silu_mul") as k:
        batch, seq, x, y = swiglu_arguments(k, columns, single=single)
        grid = [-(-columns // _THREADS), T.cast(batch * seq, "int32")]
        with k.body(), launch(grid, _THREADS) as ((block, row), (thread,)):
            source, result, column = rows_of(x, 2 * columns), rows_of(y, columns), block * _THREADS + thread
            with _inside(column, columns):
                T.buffer_store(result, silu(source[row, column]) * source[row, columns + column], [row, column])
    return k.function


def last_row(columns: int) -> tirx.PrimFunc:
    """x [1, seq, columns] -> its last row [1, 1, columns], float32."""
    with kernel("last_row") as k:
        seq, x, y = last_row_arguments(k, columns)
        with k.body(), launch([-(-columns // _THREADS)], _THREADS) as ((block,), (thread,)):
            column = block * _THREADS + thread
            with _inside(column, columns):
                T.buffer_store(y, rows_of(x, columns)[T.cast(seq - 1, "int32"), column], [0, 0, column])
    return k.function
