"""y = f(norm(x) W^T + bias) + residual with integer dot products, for weights in groups of codes.

Rows of x are quantized first, by group (`activations.py`); RMS norm is part of that where the model asks for it.
Sums of a group are exact integers, and are added up over the groups in float32:

    y[m, n] = sum over g of  (scale_x[m, g] scale_w[n, g]) * (sum over k in g of q_x[m, k] (code[n, k] - zero_point))

`gemv` is for one row: the weights stream through once, which memory limits. `gemm` is for any number of rows: the codes
of one group of a few tiles stay in registers while the rows of a block pass by.

    weights of group g             rows of a block           sums in the first-level cache
    [words, tiles x 16 outputs]  x  [words] of row r   ->    [rows, tiles x 16]
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import align_stack, kernel, load, local, parallel, splat, store, zeros
from ..operations import Matmul
from ..storage import TILE, PackedWeight, lanes, tiles
from .activations import ActivationFormat, Activations
from .dot import IntegerDot
from .matmul import row_value, store_outputs

_ROWS = 64  # rows of a block: their sums for two tiles take 8 KB


def gemv(op: Matmul, dot: IntegerDot, activation_bits: int) -> tirx.PrimFunc:
    """x [1, 1, in_features] -> y [1, 1, out_features]."""
    with kernel("gemv") as k:
        arguments = op.declare(k, 1, 1)
        form = ActivationFormat(op.storage, op.in_features, dot, activation_bits)
        with k.body():
            activations = Activations(form, 1, 1)
            activations.quantize(0, 0, row_value(op, arguments, (0, 0)))
            # a single stream of weights, unless two tiles belong together
            with parallel(op.tile_sets if op.swiglu else tiles(op.out_features)) as index:
                align_stack()
                numbers = [op.tile(index, j) for j in range(op.tiles_in_set)] if op.swiglu else [index]
                sums = [local() for _ in numbers]
                for total in sums:
                    store(total, zeros())
                with T.serial(0, form.groups) as g:
                    for tile in numbers:
                        arguments.weight.prefetch(tile, g)
                    weights = [_Group(form, arguments.weight, tile, g) for tile in numbers]
                    for total, scaled in zip(sums, _group_products(activations, weights, (0, g, 0)), strict=True):
                        store(total, load(total) + scaled)
                store_outputs(op, arguments, [load(total) for total in sums], numbers, (0, 0))
    return k.function


def gemm(op: Matmul, dot: IntegerDot, activation_bits: int) -> tirx.PrimFunc:
    """x [batch, seq, in_features] -> y [batch, seq, out_features], both leading dimensions symbolic."""
    with kernel("gemm") as k:
        batch, seq = T.int64(), T.int64()
        arguments = op.declare(k, batch, seq)
        form = ActivationFormat(op.storage, op.in_features, dot, activation_bits)
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
                align_stack()
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
                        products = _group_products(activations, weights, (block, g, r))
                        for j, scaled in enumerate(products):
                            T.buffer_store(sums, sums[r, j, lanes(0)] + scaled, [r, j, lanes(0)])
                with T.serial(0, rows) as r:
                    values = [sums[r, j, lanes(0)] for j in range(op.tiles_in_set)]
                    store_outputs(op, arguments, values, numbers, position(block * _ROWS + r))
    return k.function


class _Group:
    """The weights of one tile and one group, taken out of the stored words into registers."""

    def __init__(self, form: ActivationFormat, weight: PackedWeight, tile, group) -> None:
        storage = form.storage
        self.words = [local(TILE, "int32") for _ in range(form.plane_words)]
        self.scale, self.minimum = local(), None
        store(self.scale, weight.scale(tile, group))
        if storage.minimum:
            self.minimum = local()
            store(self.minimum, weight.minimum(tile, group))
        stored, taken = local(TILE, "int32"), form.dot.number_bits // storage.bits
        for w in range(storage.words_per_group):
            store(stored, weight.word(tile, group * storage.words_per_group + w))
            for i in range(taken):
                store(self.words[w * taken + i], form.dot.take(load(stored), i, storage.bits))


def _group_products(activations: Activations, tiles_of_group: list[_Group], place) -> list:
    """float32 x 16 for each tile: the scaled products of one row's group with the tile's weights."""
    form = activations.form
    low = [form.dot.sums(activations.offsets[place]) for _ in tiles_of_group]
    high = [form.dot.sums(T.int32(0)) for _ in tiles_of_group] if form.planes == 2 else []
    for word in range(form.plane_words):  # where registers do not hold the weights both planes use a word at once
        for plane, sums in enumerate((high, low) if high else (low,)):
            codes = activations.codes[(*place, plane * form.plane_words + word)]
            for weights, total in zip(tiles_of_group, sums, strict=True):
                total.add(weights.words[word], codes)
    products = []
    for i, weights in enumerate(tiles_of_group):
        total = low[i].result()
        if high:
            total = total + T.shift_left(high[i].result(), splat(T.int32(8)))
        scale = load(weights.scale) * splat(activations.scales[place])
        product = T.cast(total, f"float32x{TILE}") * scale
        if weights.minimum is not None:
            product = product + load(weights.minimum) * splat(activations.sums[place])
        products.append(product)
    return products
