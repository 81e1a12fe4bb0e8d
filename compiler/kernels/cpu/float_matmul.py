"""y = x W^T (+ bias) (+ residual) in float32 arithmetic: for plain weights, and where no integer kernel fits.

`gemv` is for one row of x: weights stream through once, four accumulators per tile hide the latency of FMA.
`gemm` is for any number of rows: x is repacked into blocks of `rows` rows, and a pair of weight tiles is widened
to float32 once and then used by all blocks.

    x block [K, rows]          weight tiles [K, 2 x 16]         accumulators [rows, 2 x 16] in registers
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel, load, local, splat, store, zeros
from ..operations import Matmul
from ..storage import TILE, DenseStorage, GroupStorage, PackedWeight, lanes, tiles
from .matmul import store_tile

_ACCUMULATORS = 4
_MAX_WIDENED_COLUMNS = 2048  # 256 KB for a pair of tiles: fits the L2 cache of anything recent


def tiling(lanes_of_register: int, registers: int) -> dict[str, int]:
    """Rows and weight tiles of a GEMM block: the accumulators fill the vector registers, two or three spare."""
    registers_per_tile = TILE // lanes_of_register
    tiles_at_once = 2 if lanes_of_register == TILE else 1
    spare = tiles_at_once * registers_per_tile + 1
    rows = (registers - spare) // (tiles_at_once * registers_per_tile)
    return {"rows": min(rows, 12), "tiles_at_once": tiles_at_once}


def gemv(op: Matmul) -> tirx.PrimFunc:
    """x [1, 1, in_features] -> y [1, 1, out_features]."""
    with kernel("gemv") as k:
        a = op.declare(k, 1, 1)
        x, weight, bias, residual, y = a.x, a.weight, a.bias, a.residual, a.y
        with k.body():
            grouped = isinstance(op.storage, GroupStorage)
            row, sums = _padded_row(op, x) if grouped else (_widened_row(op, x), None)
            with T.parallel(0, tiles(op.out_features)) as tile:
                total = local()
                store(total, zeros())
                if grouped:
                    _group_dot(op, row, sums, weight, tile, total)
                else:
                    _dense_dot(op, row, weight, tile, total)
                store_tile(op, load(total), tile, (0, 0), bias, residual, y)
    return k.function


def _widened_row(op: Matmul, x):
    """x [1, 1, in_features] as float32 [in_features]."""
    row = T.sblock_alloc_buffer((op.in_features,), "float32")
    with T.serial(0, op.in_features) as i:
        T.buffer_store(row, T.cast(x[0, 0, i], "float32"), [i])
    return row


def _padded_row(op: Matmul, x):
    """x as float32, padded with zeros to whole groups, and the sum of x over each group."""
    groups, size = op.storage.groups(op.in_features), op.storage.group_size
    row = T.sblock_alloc_buffer((op.padded_columns,), "float32")
    sums = T.sblock_alloc_buffer((groups,), "float32")
    total = local(1)
    with T.serial(0, groups) as g:
        T.buffer_store(total, T.float32(0), [0])
        with T.serial(0, size) as i:
            column = g * size + i
            value = x[0, 0, column]
            if op.padded_columns != op.in_features:
                value = T.if_then_else(column < op.in_features, value, T.float32(0))
            T.buffer_store(total, total[0] + value, [0])
            T.buffer_store(row, value, [column])
        T.buffer_store(sums, total[0], [g])
    return row, sums


def _group_dot(op: Matmul, row, sums, weight: PackedWeight, tile, total) -> None:
    storage = op.storage
    partial = [local() for _ in range(_ACCUMULATORS)]
    word = local(TILE, "int32")
    with T.serial(0, storage.groups(op.in_features)) as g:
        store(partial[0], splat(sums[g] * T.float32(-storage.zero_point)))
        for p in partial[1:]:
            store(p, zeros())
        for w in range(storage.words_per_group):
            store(word, weight.word(tile, g * storage.words_per_group + w))
            for i in range(storage.codes_per_word):
                p = partial[i % _ACCUMULATORS]
                column = g * storage.group_size + w * storage.codes_per_word + i
                store(p, load(p) + splat(row[column]) * storage.code(load(word), i))
        dot = (load(partial[0]) + load(partial[1])) + (load(partial[2]) + load(partial[3]))
        store(total, load(total) + dot * weight.scale(tile, g))
        if storage.minimum:
            store(total, load(total) + splat(sums[g]) * weight.minimum(tile, g))


def _dense_dot(op: Matmul, row, weight, tile, total) -> None:
    partial = [local() for _ in range(_ACCUMULATORS)]
    for p in partial:
        store(p, zeros())

    def accumulate(column, p) -> None:
        store(p, load(p) + splat(row[column]) * weight.column(tile, column))

    whole = op.in_features // _ACCUMULATORS
    with T.serial(0, whole) as step:
        for i, p in enumerate(partial):
            accumulate(step * _ACCUMULATORS + i, p)
    for i in range(op.in_features % _ACCUMULATORS):
        accumulate(whole * _ACCUMULATORS + i, partial[i])
    store(total, (load(partial[0]) + load(partial[1])) + (load(partial[2]) + load(partial[3])))


def gemm(op: Matmul, *, rows: int, tiles_at_once: int) -> tirx.PrimFunc:
    """x [batch, seq, in_features] -> y [batch, seq, out_features], both leading dimensions symbolic.

    `rows` x `tiles_at_once` accumulators of 16 floats must fit the target's vector registers.
    """
    with kernel("gemm") as k:
        batch, seq = T.int64(), T.int64()
        a = op.declare(k, batch, seq)
        x, weight, bias, residual, y = a.x, a.weight, a.bias, a.residual, a.y
        count = batch * seq
        blocks = T.floordiv(count + (rows - 1), rows)

        def position(m):
            return T.floordiv(m, seq), T.floormod(m, seq)

        with k.body():
            packed = T.sblock_alloc_buffer((blocks, op.padded_columns, rows), "float32")
            _pack_blocks(op, x, packed, blocks, count, rows, position)
            with T.parallel(0, tiles(op.out_features) // tiles_at_once) as pair:
                for first, columns in _column_blocks(op):
                    widened = T.alloc_buffer((columns, tiles_at_once, TILE), "float32")
                    for j in range(tiles_at_once):
                        _widen_tile(op, weight, pair * tiles_at_once + j, first, columns, widened, j)
                    with T.serial(0, blocks) as block:
                        sums = [[local() for _ in range(tiles_at_once)] for _ in range(rows)]
                        for acc in (acc for row in sums for acc in row):
                            store(acc, zeros())
                        with T.serial(0, columns) as c:
                            for r in range(rows):
                                for j in range(tiles_at_once):
                                    product = splat(packed[block, first + c, r]) * widened[c, j, lanes(0)]
                                    store(sums[r][j], load(sums[r][j]) + product)
                        # later column blocks add to what the earlier ones wrote
                        more = first > 0
                        for r in range(rows):
                            m = block * rows + r
                            with T.If(m < count), T.Then():
                                for j in range(tiles_at_once):
                                    store_tile(op, load(sums[r][j]), pair * tiles_at_once + j, position(m),
                                                None if more else bias, y if more else residual, y)  # fmt: skip
    return k.function


def _column_blocks(op: Matmul) -> list[tuple[int, int]]:
    """(first, count) of the column blocks that are widened at a time."""
    unit = op.storage.group_size if isinstance(op.storage, GroupStorage) else 1
    step = max(unit, _MAX_WIDENED_COLUMNS // unit * unit)
    return [(first, min(step, op.padded_columns - first)) for first in range(0, op.padded_columns, step)]


def _pack_blocks(op: Matmul, x, packed, blocks, count, rows: int, position) -> None:
    """x as float32 in blocks [in_features, rows]; rows past the end repeat the last one, columns past it are zero."""
    with T.parallel(0, blocks) as block:
        for r in range(rows):
            m = T.min(block * rows + r, count - 1)
            with T.serial(0, op.in_features) as c:
                T.buffer_store(packed, x[(*position(m), c)], [block, c, r])
            if op.padded_columns > op.in_features:
                with T.serial(0, op.padded_columns - op.in_features) as c:
                    T.buffer_store(packed, T.float32(0), [block, op.in_features + c, r])


def _widen_tile(op: Matmul, weight: PackedWeight, tile, first: int, columns: int, widened, j: int) -> None:
    """Columns [first, first + columns) of a weight tile as float32, in the order of the columns."""
    storage = op.storage
    if isinstance(storage, DenseStorage):
        with T.serial(0, columns) as c:
            T.buffer_store(widened, weight.column(tile, first + c), [c, j, lanes(0)])
        return
    word, scale, minimum = local(TILE, "int32"), local(), local()
    first_group = first // storage.group_size
    with T.serial(0, columns // storage.group_size) as g:
        store(scale, weight.scale(tile, first_group + g))
        if storage.minimum:
            store(minimum, weight.minimum(tile, first_group + g))
        for w in range(storage.words_per_group):
            store(word, weight.word(tile, (first_group + g) * storage.words_per_group + w))
            for i in range(storage.codes_per_word):
                column = g * storage.group_size + w * storage.codes_per_word + i
                value = (storage.code(load(word), i) - splat(T.float32(storage.zero_point))) * load(scale)
                T.buffer_store(widened, value + load(minimum) if storage.minimum else value, [column, j, lanes(0)])
