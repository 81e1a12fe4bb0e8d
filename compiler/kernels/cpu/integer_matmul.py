"""y = f(norm(x) W^T + bias) + residual with integer dot products, for weights in groups of codes.

Rows of x are quantized first, by group (`activations.py`); RMS norm is part of that where the model asks for it.
Sums of a group are exact integers, and are added up over the groups in float32:

    y[m, n] = sum over g of  (scale_x[m, g] scale_w[n, g]) * (sum over k in g of q_x[m, k] (code[n, k] - zero_point))

`gemv` is for one row: the weights stream through once, which memory limits. `gemm` is for any number of rows: the codes
of one group of a few tiles stay in registers while the rows of a block pass by.

    weights of group g             rows of a block           sums in the first-level cache
    [quads, tiles x 16 outputs]  x  [quads] of row r   ->    [rows, tiles x 16]
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel, load, local, parallel, splat, store, zeros
from .activations import ActivationFormat, Activations
from .dot import IntegerDot
from .matmul import Matmul, row_value, store_outputs
from .storage import TILE, PackedWeight, lanes, tiles

_ROWS = 64  # rows of a block: their sums for two tiles take 8 KB


def gemv(op: Matmul, dot: IntegerDot, planes: int) -> tirx.PrimFunc:
    """x [1, 1, in_features] -> y [1, 1, out_features]."""
    with kernel("gemv") as k:
        arguments = op.declare(k, 1, 1)
        form = ActivationFormat(op.storage, op.in_features, planes)
        with k.body():
            activations = Activations(form, 1, 1)
            activations.quantize(0, 0, row_value(op, arguments, (0, 0)))
            # a single stream of weights, unless two tiles belong together
            with parallel(op.tile_sets if op.swiglu else tiles(op.out_features)) as index:
                numbers = [op.tile(index, j) for j in range(op.tiles_in_set)] if op.swiglu else [index]
                sums = [local() for _ in numbers]
                for total in sums:
                    store(total, zeros())
                with T.serial(0, form.groups) as g:
                    for tile, total in zip(numbers, sums, strict=True):
                        arguments.weight.prefetch(tile, g)
                        (scaled,) = _group_products(
                            dot, activations, [_Group(form, arguments.weight, tile, g)], (0, g, 0)
                        )
                        store(total, load(total) + scaled)
                store_outputs(op, arguments, [load(total) for total in sums], numbers, (0, 0))
    return k.function


def gemm(op: Matmul, dot: IntegerDot, planes: int) -> tirx.PrimFunc:
    """x [batch, seq, in_features] -> y [batch, seq, out_features], both leading dimensions symbolic."""
    with kernel("gemm") as k:
        batch, seq = T.int64(), T.int64()
        arguments = op.declare(k, batch, seq)
        form = ActivationFormat(op.storage, op.in_features, planes)
        count = batch * seq
        blocks = T.floordiv(count + (_ROWS - 1), _ROWS)

        def position(m):
            return T.floordiv(m, seq), T.floormod(m, seq)

        with k.body():
            activations = Activations(form, blocks, _ROWS)
            with T.parallel(0, count) as m:
                value = row_value(op, arguments, position(m))
                activations.quantize(T.floordiv(m, _ROWS), T.floormod(m, _ROWS), value)
            with parallel(op.tile_sets) as tile_set, T.serial(0, blocks) as block:
                numbers = [op.tile(tile_set, j) for j in range(op.tiles_in_set)]
                rows = T.min(count - block * _ROWS, T.int64(_ROWS))
                sums = T.alloc_buffer((_ROWS, op.tiles_in_set, TILE), "float32")
                with T.serial(0, rows) as r:
                    for j in range(op.tiles_in_set):
                        T.buffer_store(sums, zeros(), [r, j, lanes(0)])
                with T.serial(0, form.groups) as g:
                    for tile in numbers:  # few rows do not hide the way from memory
                        arguments.weight.prefetch(tile, g)
                    weights = [_Group(form, arguments.weight, tile, g) for tile in numbers]
                    with T.serial(0, rows) as r:
                        products = _group_products(dot, activations, weights, (block, g, r))
                        for j, scaled in enumerate(products):
                            T.buffer_store(sums, sums[r, j, lanes(0)] + scaled, [r, j, lanes(0)])
                with T.serial(0, rows) as r:
                    values = [sums[r, j, lanes(0)] for j in range(op.tiles_in_set)]
                    store_outputs(op, arguments, values, numbers, position(block * _ROWS + r))
    return k.function


class _Group:
    """The weights of one tile and one group, decoded into registers."""

    def __init__(self, form: ActivationFormat, weight: PackedWeight, tile, group) -> None:
        storage = form.storage
        self.quads = [local(TILE, "int32") for _ in range(form.quads)]
        self.scale, self.minimum = local(), None
        store(self.scale, weight.scale(tile, group))
        if storage.minimum:
            self.minimum = local()
            store(self.minimum, weight.minimum(tile, group))
        mask = splat(T.int32(0x0F0F0F0F))
        word = local(TILE, "int32")
        for w in range(storage.words_per_group):
            store(word, weight.word(tile, group * storage.words_per_group + w))
            if storage.bits == 8:
                store(self.quads[w], load(word))
                continue
            store(self.quads[2 * w], T.bitwise_and(load(word), mask))
            store(self.quads[2 * w + 1], T.bitwise_and(T.shift_right(load(word), splat(T.int32(4))), mask))


def _group_products(dot: IntegerDot, activations: Activations, tiles_of_group: list[_Group], place) -> list:
    """float32 x 16 for each tile: the scaled products of one row's group with the tile's weights."""
    form = activations.form
    low = [local(TILE, "int32") for _ in tiles_of_group]
    high = [local(TILE, "int32") for _ in tiles_of_group] if form.planes == 2 else []
    for total in low:
        store(total, splat(activations.offsets[place]))
    for total in high:
        store(total, splat(T.int32(0)))
    for plane, sums in enumerate((high, low) if high else (low,)):
        for quad in range(form.quads):
            codes = activations.codes[(*place, plane * form.quads + quad)]
            for weights, total in zip(tiles_of_group, sums, strict=True):
                store(total, dot.accumulate(load(total), load(weights.quads[quad]), codes))
    if high:
        for total, upper in zip(low, high, strict=True):
            store(total, load(total) + T.shift_left(load(upper), splat(T.int32(8))))
    products = []
    for weights, total in zip(tiles_of_group, low, strict=True):
        scale = load(weights.scale) * splat(activations.scales[place])
        product = T.cast(load(total), f"float32x{TILE}") * scale
        if weights.minimum is not None:
            product = product + load(weights.minimum) * splat(activations.sums[place])
        products.append(product)
    return products
