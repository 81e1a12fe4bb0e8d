"""What every multiplication by packed weights shares: how rows of x are read and outputs written.
`integer_matmul.py` and `float_matmul.py` hold the kernels, `table.py` chooses."""
# mypy: ignore-errors

import math

from tvm.tirx.script.builder import ir as T

from ..builder import load, local, splat, store, zeros
from ..operations import Arguments, Matmul
from ..storage import TILE, lanes, tiles
from .vector import add, constant, exp2, reduce


def row_value(op: Matmul, arguments: Arguments, row):
    """A function (column, lanes) -> float32 values of one row of x, normed where the multiplication asks for it."""
    x = arguments.x

    def plain(column, count: int):
        return x[(*row, lanes(column, count) if count > 1 else column)]

    if op.norm_eps is None:
        return plain
    inverse = inverse_root_mean_square(plain, op.in_features, op.norm_eps)

    def normed(column, count: int):
        index = lanes(column, count) if count > 1 else column
        scale = inverse[0] if count == 1 else splat(inverse[0], count)
        return plain(column, count) * scale * arguments.norm[index]

    return normed


def inverse_root_mean_square(value, columns: int, eps: float):
    """A cell with 1 / sqrt(mean(x^2) + eps) of a row, given as `value(column, lanes)`."""
    squares, inverse = local(), local(1)
    store(squares, zeros())
    with T.serial(0, columns // TILE) as i:
        part = local()
        store(part, value(i * TILE, TILE))
        store(squares, load(squares) + load(part) * load(part))
    T.buffer_store(inverse, reduce(load(squares), TILE, add), [0])
    for column in range(columns // TILE * TILE, columns):
        T.buffer_store(inverse, inverse[0] + value(column, 1) * value(column, 1), [0])
    T.buffer_store(inverse, T.float32(1) / T.sqrt(inverse[0] / T.float32(columns) + T.float32(eps)), [0])
    return inverse


def store_outputs(op: Matmul, arguments: Arguments, values: list, tile_numbers: list, row) -> None:
    """Write the sums of some tiles, each float32 x 16, for one row: bias, activation, residual."""
    if op.swiglu:
        gate, up = (local(), local())
        for cell, value, tile in zip((gate, up), values, tile_numbers, strict=True):
            if arguments.bias is not None:
                value = value + arguments.bias[lanes(tile * TILE)]
            store(cell, value)
        T.buffer_store(arguments.y, silu(load(gate), TILE) * load(up), [*row, lanes(tile_numbers[0] * TILE)])
        return
    for tile, value in zip(tile_numbers, values, strict=True):
        store_tile(op, value, tile, row, arguments.bias, arguments.residual, arguments.y)


def silu(x, count: int):
    """x / (1 + e^-x)."""
    # e^-x would overflow float32 beyond 88, where the result is 0 anyway
    power = T.min(x * constant(-math.log2(math.e), count), constant(126.0, count))
    return x / (constant(1.0, count) + exp2(power, count))


def store_tile(op: Matmul, value, tile, row, bias, residual, y) -> None:
    """Write 16 outputs: bias, residual; the last tiles are cut where the matrix ends."""
    column = tile * TILE

    def finish(v, index):
        if bias is not None:
            v = v + bias[index]
        if residual is not None:
            v = v + residual[(*row, index)]
        return v

    if op.out_features % TILE == 0:
        index = lanes(column)
        if op.out_features == tiles(op.out_features) * TILE:
            T.buffer_store(y, finish(value, index), [*row, index])
        else:
            with T.If(column < op.out_features), T.Then():
                T.buffer_store(y, finish(value, index), [*row, index])
        return
    spill = local()
    store(spill, value)
    with T.serial(0, TILE) as lane, T.If(column + lane < op.out_features), T.Then():
        T.buffer_store(y, finish(spill[lane], column + lane), [*row, column + lane])
