"""Prefill attention on the CPU: new tokens of several sequences attend to the pages of their sequence."""
# mypy: ignore-errors

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from ..builder import Kernel, kernel
from .attention_dot import ROUND, ROUND_BITS, Dot, rounded, rounded_int32
from .flash import LOG2_E, HeadShape
from .kv_pages import PAGE_SIZE, index64
from .rope import Rotation, emit_angles, emit_rotate
from .vector import Expr, VectorUnit, add, constant, exp2, load, reduce, settled, span, splat, store, transpose

KEY_BLOCK = 64  # keys whose weights are relative to one maximum
LEAST = {"float32": -3e38, "int32": -(2**31)}  # below every score
NOTHING = -1e30  # the maximum of a row that has seen no key


# 2^f on [-1/2, 1/2], least maximum relative error for f's powers: 2e-3, 7e-5 and 7e-8
_EXP2 = {
    "int8": (1.000443146251842, 0.7034480592653332, 0.238428937878635),
    "int16": (0.9999280729970851, 0.6932609862035313, 0.24261113138740525, 0.055171669358639486),
    "float32": (
        1.0000000716552213,
        0.693146967063264,
        0.24022119721165097,
        0.055507132746512866,
        0.009675541479922787,
        0.001327647202852175,
    ),
}


@dataclass(frozen=True)
class Tile:
    """How the work is cut. Lanes are rows (a query head of a token each), so that no sum or maximum crosses lanes."""

    shape: HeadShape
    dot: Dot

    @property
    def lanes(self) -> int:
        return self.shape.unit.lanes

    @property
    def vectors(self) -> int:
        """Vectors of rows in a register tile."""
        return 3 if self.shape.unit.registers >= 32 else 2

    @property
    def rows(self) -> int:
        return self.vectors * self.lanes

    @property
    def height(self) -> int:
        """Keys, or dimensions of values, in a register tile."""
        return 8 if self.shape.unit.registers >= 32 else 4

    @property
    def padded(self) -> int:
        """head_dim rounded up to whole vectors and whole register tiles."""
        step = max(self.lanes, self.height)
        return -(-self.shape.head_dim // step) * step

    @property
    def words(self) -> int:
        """Words of a query or key."""
        return -(-self.shape.head_dim // self.dot.numbers)

    @property
    def key_words(self) -> int:
        """Words of a stored key."""
        return self.padded // self.dot.numbers

    @property
    def row_norm(self) -> float:
        """Queries and keys are scaled so that no sum of products leaves int32: |q . k| <= |q| |k|."""
        return {"float32": 1.0, "int16": 32600.0, "int8": 127.0}[self.dot.mode]

    @property
    def weight(self) -> float:
        """What the largest weight of a block becomes."""
        return {"float32": 1.0, "int16": 16384.0, "int8": 255.0}[self.dot.mode]

    @property
    def column_norm(self) -> float:
        """Values of a dimension are scaled for the same reason: |p| <= sqrt(64) * weight."""
        return {"float32": 1.0, "int16": 16370.0, "int8": 127.0}[self.dot.mode]


@dataclass(frozen=True)
class Batch:
    """The arguments of the kernel; see `prefill_attention`."""

    qkv: Any
    layer: Any
    positions: Any
    slots: Any
    query_starts: Any
    page_starts: Any
    pages: Any
    lengths: Any
    kv: Any
    kv_scales: Any
    out: Any

    def stored(self, page, which, head, offset):
        return index64(self.layer), index64(page), which, head, offset, 0

    def scale(self, page, which, head, offset):
        return self.kv_scales[self.stored(page, which, head, offset)[:-1]]


@dataclass(frozen=True)
class Panels:
    """Keys and values as words, with the factors that give their size back. The keys of a sequence follow one another
    from 16 * page_starts on."""

    keys: Any  # [kv heads, keys, key words]
    key_scales: Any  # [kv heads, keys / 16], at the first page of a block
    key_bias: Any  # [kv heads, keys], int8: -128 times the sum of a key's numbers
    values: Any  # [kv heads, keys / numbers, padded]: a word holds one dimension of consecutive values
    value_scales: Any  # [kv heads, keys / 16, padded], at the first page of a block


def _stage(tile: Tile, buffer, index, target, row, factor=None, squares: Callable | None = None) -> None:
    """target[row] = the `head_dim` numbers at `index` as float32 (times `factor`), then zeros up to `padded`."""
    dim = tile.shape.head_dim
    unit = tile.shape.unit.dividing(dim)
    for d in range(0, dim, unit.lanes):
        if str(buffer.dtype) == "int8":
            place = (*index[:-1], span(index[-1] + d, unit.lanes))
            value = T.bind(T.cast(buffer[place], "float32" if unit.lanes == 1 else f"float32x{unit.lanes}"))
        else:
            value = load(unit, buffer, *index[:-1], index[-1] + d)
        if factor is not None:
            value = T.bind(value * splat(factor, unit.lanes))
        store(unit, target, value, row, d)
    for d in range(dim, tile.padded):
        T.buffer_store(target, T.float32(0), [row, d])


def _absolute(value, lanes):
    return T.max(value, constant(0.0, lanes) - value)


def _size(tile: Tile, rows, row):
    """The squared norm (int16) or the largest absolute value (int8) of a staged row."""
    lanes, whole = tile.lanes, span(0, tile.lanes)
    total = T.alloc_buffer((lanes,), "float32")
    T.buffer_store(total, constant(0.0, lanes), [whole])
    for d in range(0, tile.padded, lanes):
        T.buffer_store(total, _grow(tile, total[whole], T.bind(rows[row, span(d, lanes)])), [whole])
    return reduce(total[whole], lanes, add if tile.dot.mode == "int16" else T.max)


def _grow(tile: Tile, size, value):
    if tile.dot.mode == "int16":
        return size + value * value
    return T.max(size, _absolute(value, tile.lanes))


def _root(tile: Tile, size, lanes: int):
    """The norm or largest absolute value from a size, above zero."""
    if tile.dot.mode == "int16":
        return T.bind(T.sqrt(T.max(size, constant(1e-30, lanes))))
    return T.bind(T.max(size, constant(1e-15, lanes)))


def _write_words(tile: Tile, rows, row, inverse, write: Callable):
    """Convert a staged row, times `inverse`: write(word, vector, count)."""
    lanes, dot = tile.lanes, tile.dot
    for d in range(0, tile.padded, lanes):
        value = rows[row, span(d, lanes)]
        if dot.mode != "float32":
            value = value * splat(inverse, lanes)
        write(d // dot.numbers, dot.consecutive(value, lanes), lanes // dot.numbers)


# --- phase 1


def _append_token(tile: Tile, rotation: Rotation, batch: Batch, t, factor: float) -> None:
    """Rotate the queries of a token into its row of `out`, scaled; its keys into its slot; copy its values."""
    shape = tile.shape
    unit, dim, heads, kv_heads = shape.unit, shape.head_dim, shape.num_q_heads, shape.num_kv_heads
    half = len(rotation.frequencies)
    cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
    emit_angles(rotation, unit, batch.positions[t], cosines, sines)
    lanes = rotation.unit(unit).lanes
    with T.serial(heads) as h:
        emit_rotate(
            rotation,
            unit,
            (batch.qkv, (t, h * dim)),
            (batch.out, (t, h * dim)),
            cosines,
            sines,
            lambda vector: vector * constant(factor, lanes),
        )
    slot = T.bind(batch.slots[t])
    page, offset = T.bind(slot // PAGE_SIZE), T.bind(slot % PAGE_SIZE)
    quantized = str(batch.kv.dtype) == "int8"
    row = T.alloc_buffer((1, tile.padded), "float32") if quantized else None
    with T.serial(kv_heads) as h:
        key, value = batch.stored(page, 0, h, offset), batch.stored(page, 1, h, offset)
        source = (batch.qkv, (t, (heads + h) * dim))
        if quantized:
            for d in range(dim, tile.padded):
                T.buffer_store(row, T.float32(0), [0, d])
            emit_rotate(rotation, unit, source, (row, (0, 0)), cosines, sines)
            _store_int8(tile, row, batch, key)
            _stage(tile, batch.qkv, (t, (heads + kv_heads + h) * dim), row, 0)
            _store_int8(tile, row, batch, value)
        else:
            emit_rotate(rotation, unit, source, (batch.kv, key), cosines, sines)
            whole = unit.dividing(dim)
            for d in range(0, dim, whole.lanes):
                vector = load(whole, batch.qkv, t, (heads + kv_heads + h) * dim + d)
                store(whole, batch.kv, vector, *value[:-1], d)


def _store_int8(tile: Tile, row, batch: Batch, index) -> None:
    unit = tile.shape.unit.dividing(tile.shape.head_dim)
    lanes, whole = tile.lanes, span(0, tile.lanes)
    peak = T.alloc_buffer((lanes,), "float32")
    T.buffer_store(peak, constant(0.0, lanes), [whole])
    for d in range(0, tile.padded, lanes):
        T.buffer_store(peak, T.max(peak[whole], _absolute(T.bind(row[0, span(d, lanes)]), lanes)), [whole])
    size = T.bind(T.max(reduce(peak[whole], lanes, T.max), T.float32(1e-15)))
    inverse = T.bind(splat(T.float32(127) / size, unit.lanes))
    for d in range(0, tile.shape.head_dim, unit.lanes):
        codes = T.cast(rounded(row[0, span(d, unit.lanes)] * inverse, unit.lanes), f"int8x{unit.lanes}")
        T.buffer_store(batch.kv, codes, [*index[:-1], span(d, unit.lanes)])
    T.buffer_store(batch.kv_scales, size * T.float32(1 / 127), list(index[:-1]))


# --- phase 2


def _fill_panels(tile: Tile, batch: Batch, panels: Panels, head, sequence, block) -> None:
    """Convert one block of keys and values of a sequence."""
    dot, lanes, numbers = tile.dot, tile.lanes, tile.dot.numbers
    first_page = T.bind(batch.page_starts[sequence] + block * (KEY_BLOCK // PAGE_SIZE))
    first = T.bind(first_page * PAGE_SIZE)
    present = settled(T.min(batch.lengths[sequence] - block * KEY_BLOCK, KEY_BLOCK))
    rows = T.alloc_buffer((KEY_BLOCK, tile.padded), "float32")
    quantized = str(batch.kv.dtype) == "int8"

    def stage(j, which, row):
        page, offset = T.bind(batch.pages[first_page + j // PAGE_SIZE]), j % PAGE_SIZE
        factor = T.bind(batch.scale(page, which, head, offset)) if quantized else None
        _stage(tile, batch.kv, batch.stored(page, which, head, offset), rows, row, factor)

    _fill_keys(tile, panels, rows, lambda j: stage(j, 0, j), head, first, present)
    with T.serial(present) as j:
        stage(j, 1, j)
    whole = settled((present + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE)
    with T.serial(whole - present) as j, T.serial(tile.padded) as d:
        T.buffer_store(rows, T.float32(0), [present + j, d])
    _fill_values(tile, panels, rows, head, first, present, whole)


def _fill_keys(tile: Tile, panels: Panels, rows, stage, head, first, present) -> None:
    dot, lanes = tile.dot, tile.lanes
    size = T.alloc_buffer((1,), "float32")
    T.buffer_store(size, T.float32(0), [0])
    with T.serial(present) as j:
        stage(j)
        if dot.mode != "float32":
            T.buffer_store(size, T.max(size[0], _size(tile, rows, j)), [0])
    inverse = None
    if dot.mode != "float32":
        root = _root(tile, size[0], 1)
        inverse = T.bind(T.float32(tile.row_norm) / root)
        T.buffer_store(panels.key_scales, root * T.float32(1 / tile.row_norm), [head, first // PAGE_SIZE])
    with T.serial(present) as j:

        def write(word, value, count):
            T.buffer_store(panels.keys, value, [head, first + j, span(word, count)])

        _write_words(tile, rows, j, inverse, write)
        if dot.mode == "int8":
            total, whole = T.alloc_buffer((lanes,), "int32"), span(0, lanes)
            T.buffer_store(total, constant(0, lanes, "int32"), [whole])
            for d in range(0, tile.padded, lanes):
                codes = rounded_int32(rows[j, span(d, lanes)] * splat(inverse, lanes), lanes)
                T.buffer_store(total, total[whole] + codes, [whole])
            T.buffer_store(panels.key_bias, reduce(total[whole], lanes, add) * -128, [head, first + j])


def _fill_values(tile: Tile, panels: Panels, rows, head, first, present, whole) -> None:
    dot, lanes, numbers = tile.dot, tile.lanes, tile.dot.numbers
    cell = span(0, lanes)
    with T.serial(tile.padded // lanes) as part:
        columns = span(part * lanes, lanes)
        factor = T.alloc_buffer((lanes,), "float32")
        if dot.mode != "float32":
            T.buffer_store(factor, constant(0.0, lanes), [cell])
            with T.serial(present) as j:
                T.buffer_store(factor, _grow(tile, factor[cell], T.bind(rows[j, columns])), [cell])
            root = _root(tile, factor[cell], lanes)
            scale = root * constant(1 / tile.column_norm, lanes)
            T.buffer_store(panels.value_scales, scale, [head, first // PAGE_SIZE, columns])
            T.buffer_store(factor, constant(tile.column_norm, lanes) / root, [cell])
        with T.serial(whole // numbers) as j:
            vectors = [rows[j * numbers + i, columns] for i in range(numbers)]
            if dot.mode != "float32":
                vectors = [rounded(v * factor[cell], lanes) for v in vectors]
            T.buffer_store(panels.values, dot.pack(vectors, lanes), [head, first // numbers + j, columns])


# --- phase 3


@dataclass(frozen=True)
class Rows:
    """The rows of a tile: queries as words, and what a row carries from block to block."""

    queries: Any  # [key words, rows]
    scale: Any  # [rows]
    last: Any  # [rows] int32, the last key that a row sees
    maximum: Any  # [rows]
    total: Any  # [rows]
    output: Any  # [padded, rows]
    peak: Any  # [rows], of the sums of this block
    factor: Any  # [rows], what makes scores of the sums of this block
    offset: Any  # [rows], what is subtracted from scores of this block
    old: Any  # [rows], factor of what came before this block
    new: Any  # [rows], factor of this block


def _allocate_rows(tile: Tile) -> Rows:
    def vector(dtype="float32"):
        return T.alloc_buffer((tile.rows,), dtype)

    return Rows(
        T.alloc_buffer((tile.key_words, tile.rows), tile.dot.word),
        vector(),
        vector("int32"),
        vector(),
        vector(),
        T.alloc_buffer((tile.padded, tile.rows), "float32"),
        vector(tile.dot.word),
        vector(),
        vector(),
        vector(),
        vector(),
    )


def _load_queries(tile: Tile, batch: Batch, rows: Rows, head, row_index) -> None:
    """`row_index(i)`: token and query head of row i."""
    lanes, dim, dot = tile.lanes, tile.shape.head_dim, tile.dot
    staged, columns = T.alloc_buffer((lanes, tile.padded), "float32"), T.alloc_buffer((tile.padded, lanes), "float32")
    whole = span(0, lanes)
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        with T.serial(lanes) as i:
            token, query_head = row_index(c * lanes + i)
            _stage(tile, batch.out, (token, query_head * dim), staged, i)
            T.buffer_store(rows.last, batch.positions[token], [c * lanes + i])
        size = T.alloc_buffer((lanes,), "float32")
        T.buffer_store(size, constant(0.0, lanes), [whole])
        with T.serial(tile.padded // lanes) as part:
            square = [T.bind(staged[i, span(part * lanes, lanes)]) for i in range(lanes)]
            for i, vector in enumerate(transpose(square, lanes)):
                T.buffer_store(columns, vector, [part * lanes + i, whole])
                T.buffer_store(size, _grow(tile, size[whole], vector), [whole])
        inverse = None
        if dot.mode != "float32":
            root = _root(tile, size[whole], lanes)
            inverse = T.bind(constant(tile.row_norm, lanes) / root)
            T.buffer_store(rows.scale, root * constant(1 / tile.row_norm, lanes), [place])
        with T.serial(tile.padded // dot.numbers) as w:
            numbers = [columns[w * dot.numbers + i, whole] for i in range(dot.numbers)]
            if dot.mode != "float32":
                numbers = [v * inverse for v in numbers]
            if dot.mode == "int8":
                numbers = [v + constant(128.0, lanes) for v in numbers]
            if dot.mode != "float32":
                numbers = [settled(rounded(v, lanes), "int32", lanes) for v in numbers]
            T.buffer_store(rows.queries, dot.pack(numbers, lanes), [w, place])
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        T.buffer_store(rows.maximum, constant(NOTHING, lanes), [place])
        T.buffer_store(rows.total, constant(0.0, lanes), [place])
        with T.serial(tile.padded) as d:
            T.buffer_store(rows.output, constant(0.0, lanes), [d, place])


def _product(tile: Tile, depth, left, right, start=None):
    """Register tile: cells[r][c] = start(r) + sum over k < depth of left(k, c) . right(k, r)."""
    lanes, dot = tile.lanes, tile.dot
    whole = span(0, lanes)
    cells = [[T.alloc_buffer((lanes,), dot.word) for _ in range(tile.vectors)] for _ in range(tile.height)]
    for r, row in enumerate(cells):
        for cell in row:
            zero = splat(tirx.const(0, dot.word) if start is None else start(r), lanes)
            T.buffer_store(cell, zero, [whole])
    with T.serial(depth) as k:
        vectors = [left(k, c) for c in range(tile.vectors)]
        for r, row in enumerate(cells):
            shared = T.bind(splat(right(k, r), lanes))
            for cell, vector in zip(row, vectors, strict=True):
                T.buffer_store(cell, dot.add(cell[whole], vector, shared, lanes), [whole])

    return lambda r, c: T.bind(cells[r][c][whole])


def _score(tile: Tile, panels: Panels, rows: Rows, head, first, count, scores) -> None:
    """scores[j, row] for `count` keys (whole register tiles) from panel row `first` on, as sums, and their maxima."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        T.buffer_store(rows.peak, constant(LEAST[dot.word], lanes, dot.word), [span(c * lanes, lanes)])
    with T.serial(count // tile.height) as step:
        j = T.bind(step * tile.height)
        product = _product(
            tile,
            tile.words,
            lambda k, c: T.bind(rows.queries[k, span(c * lanes, lanes)]),
            lambda k, r: panels.keys[head, first + j + r, k],
            (lambda r: panels.key_bias[head, first + j + r]) if dot.mode == "int8" else None,
        )
        for c in range(tile.vectors):
            place = span(c * lanes, lanes)
            peak = rows.peak[place]
            for r in range(tile.height):
                value = product(r, c)
                T.buffer_store(scores, value, [j + r, place])
                peak = T.bind(T.max(peak, value))
            T.buffer_store(rows.peak, peak, [place])


def _visible(rows: Rows, place, lanes: int, key, window):
    """Whether each row sees a key; a condition for Select."""
    last, key = rows.last[place], splat(key, lanes)
    if window is None:
        return key <= last
    return tirx.all(key <= last, key > last - constant(window, lanes, "int32"))


def _mask(tile: Tile, rows: Rows, start, count, scores, window) -> None:
    """The maxima of a block of which rows do not see every key."""
    lanes, word = tile.lanes, tile.dot.word
    with T.serial(tile.vectors) as c:
        place, whole = span(c * lanes, lanes), span(0, lanes)
        peak = T.alloc_buffer((lanes,), word)
        least = constant(LEAST[word], lanes, word)
        T.buffer_store(peak, least, [whole])
        with T.serial(count) as j:
            score = tirx.Select(_visible(rows, place, lanes, start + j, window), scores[j, place], least)
            T.buffer_store(peak, T.max(peak[whole], score), [whole])
        T.buffer_store(rows.peak, peak[whole], [place])


def _power(x, mode: str, lanes: int):
    """2^x for x <= 127 as a power of two and a number near one; a number near zero for x below -126."""
    x = settled(x, "float32", lanes)
    magic = constant(ROUND + 127, lanes)
    shifted = settled(T.reinterpret(x + magic, dtype=f"int32x{lanes}"), "int32", lanes)
    f = settled(x - (T.reinterpret(shifted, dtype=f"float32x{lanes}") - magic), "float32", lanes)
    coefficients = _EXP2[mode]
    power = constant(coefficients[-1], lanes)
    for coefficient in coefficients[-2::-1]:
        power = power * f + constant(coefficient, lanes)
    exponent = T.max(shifted, constant(ROUND_BITS, lanes, "int32")) << constant(23, lanes, "int32")
    return power, T.reinterpret(exponent, dtype=f"float32x{lanes}")


def _start_block(tile: Tile, panels: Panels, rows: Rows, head, first) -> None:
    """From the maxima of a block: the factors of rows.old, rows.new, and what weights are made with."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        peak = T.bind(rows.peak[place])
        maximum = peak
        if dot.mode != "float32":
            scale = T.bind(rows.scale[place] * splat(panels.key_scales[head, first // PAGE_SIZE], lanes))
            T.buffer_store(rows.factor, scale, [place])
            maximum = T.cast(peak, f"float32x{lanes}") * scale
        seen = peak > constant(LEAST[dot.word], lanes, dot.word)
        maximum = settled(tirx.Select(seen, maximum, constant(NOTHING, lanes)), "float32", lanes)
        before = T.bind(rows.maximum[place])
        after = T.bind(T.max(before, maximum))
        T.buffer_store(rows.maximum, after, [place])
        T.buffer_store(rows.old, exp2(before - after, lanes), [place])
        T.buffer_store(rows.new, exp2(maximum - after, lanes), [place])
        T.buffer_store(rows.offset, maximum - constant(math.log2(tile.weight), lanes), [place])


def _weigh(tile: Tile, rows: Rows, count, scores, visible: Callable | None = None) -> None:
    """Turn the scores of a block into words of weights, in place, relative to the block's own maximum."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        place, whole = span(c * lanes, lanes), span(0, lanes)
        offset = T.bind(rows.offset[place])
        total = T.alloc_buffer((lanes,), dot.word)
        T.buffer_store(total, constant(0, lanes, dot.word), [whole])

        def weight(j):
            score = scores[j, place]
            if dot.mode != "float32":
                score = T.cast(score, f"float32x{lanes}") * rows.factor[place]
            power, factor = _power(score - offset, dot.mode, lanes)
            value = power * factor
            if dot.mode != "float32":
                value = rounded(value, lanes)
            if visible is not None:
                value = tirx.Select(visible(place, j), value, constant(0, lanes, dot.word))
            return settled(value, dot.word, lanes)

        with T.serial(count // dot.numbers) as j:
            word = settled(dot.pack([weight(j * dot.numbers + i) for i in range(dot.numbers)], lanes), dot.word, lanes)
            T.buffer_store(scores, word, [j, place])
            T.buffer_store(total, dot.add(total[whole], word, splat(dot.ones(), lanes), lanes), [whole])
        added = total[whole] if dot.mode == "float32" else T.cast(total[whole], f"float32x{lanes}")
        T.buffer_store(rows.total, rows.total[place] * rows.old[place] + added * rows.new[place], [place])


def _add_values(tile: Tile, panels: Panels, rows: Rows, head, first, count, scores) -> None:
    """output = old * output + new * (values x weights) for one block."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.padded // tile.height) as step:
        d = T.bind(step * tile.height)
        product = _product(
            tile,
            count // dot.numbers,
            lambda k, c: T.bind(scores[k, span(c * lanes, lanes)]),
            lambda k, r: panels.values[head, first // dot.numbers + k, d + r],
        )
        for c in range(tile.vectors):
            place = span(c * lanes, lanes)
            old, new = T.bind(rows.old[place]), T.bind(rows.new[place])
            for r in range(tile.height):
                value = product(r, c)
                if dot.mode != "float32":
                    value = T.cast(value, f"float32x{lanes}") * splat(
                        panels.value_scales[head, first // PAGE_SIZE, d + r], lanes
                    )
                T.buffer_store(rows.output, rows.output[d + r, place] * old + value * new, [d + r, place])


def _finish(tile: Tile, batch: Batch, rows: Rows, used, row_index) -> None:
    lanes, dim = tile.lanes, tile.shape.head_dim
    unit = tile.shape.unit.dividing(dim)
    staged = T.alloc_buffer((lanes, tile.padded), "float32")
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        inverse = T.bind(constant(1.0, lanes) / rows.total[place])
        with T.serial(tile.padded // lanes) as part:
            square = [T.bind(rows.output[part * lanes + i, place] * inverse) for i in range(lanes)]
            for i, vector in enumerate(transpose(square, lanes)):
                T.buffer_store(staged, vector, [i, span(part * lanes, lanes)])
        with T.serial(T.max(T.min(used - c * lanes, lanes), 0)) as i:
            token, query_head = row_index(c * lanes + i)
            for d in range(0, dim, unit.lanes):
                T.buffer_store(
                    batch.out, staged[i, span(d, unit.lanes)], [token, span(query_head * dim + d, unit.lanes)]
                )


def _attend(tile: Tile, batch: Batch, panels: Panels, head, sequence, index, window) -> None:
    group = tile.shape.group
    first_token = T.bind(batch.query_starts[sequence])
    many = T.bind((batch.query_starts[sequence + 1] - first_token) * group)
    first_row = T.bind(index * tile.rows)
    used = settled(T.min(many - first_row, tile.rows))

    def row_index(i):
        row = settled(first_row + T.min(i, used - 1))
        return T.bind(first_token + row // group), T.bind(head * group + row % group)

    rows = _allocate_rows(tile)
    scores = T.alloc_buffer((KEY_BLOCK, tile.rows), tile.dot.word)
    _load_queries(tile, batch, rows, head, row_index)
    lowest, highest = T.bind(rows.last[0]), T.bind(rows.last[used - 1])
    end = settled(T.min(highest + 1, batch.lengths[sequence]))
    begin = settled(T.int32(0) if window is None else T.max(lowest - window + 1, 0) // KEY_BLOCK)
    panel = T.bind(batch.page_starts[sequence] * PAGE_SIZE)
    step = max(tile.height, tile.dot.numbers)
    with T.serial(T.ceildiv(end, KEY_BLOCK) - begin) as block:
        start = T.bind((begin + block) * KEY_BLOCK)
        first = T.bind(panel + start)
        count = settled((T.min(end - start, KEY_BLOCK) + step - 1) // step * step)
        _score(tile, panels, rows, head, first, count, scores)
        partial = start + count - 1 > lowest
        if window is not None:
            partial = tirx.any(partial, start <= highest - window)
        partial = settled(T.cast(partial, "int32"))

        def visible(place, j, start=start):
            return _visible(rows, place, tile.lanes, start + j, window)

        with T.If(partial > 0), T.Then():
            _mask(tile, rows, start, count, scores, window)
        _start_block(tile, panels, rows, head, first)
        with T.If(partial > 0):
            with T.Then():
                _weigh(tile, rows, count, scores, visible)
            with T.Else():
                _weigh(tile, rows, count, scores)
        _add_values(tile, panels, rows, head, first, count, scores)
    _finish(tile, batch, rows, used, row_index)


# --- the work list


def _sum(many, count: Callable[[Expr], Expr]):
    total = T.alloc_buffer((1,), "int32")
    T.buffer_store(total, T.int32(0), [0])
    with T.serial(many) as b:
        T.buffer_store(total, total[0] + count(b), [0])
    return settled(total[0])


def _find(many, turn, count: Callable[[Expr], Expr]):
    """The sequence of an item of a list in which sequence b has count(b) items, and the item's number in it."""
    left, sequence = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
    T.buffer_store(left, turn, [0])
    T.buffer_store(sequence, T.int32(-1), [0])
    with T.serial(many) as b:
        items = T.bind(count(b))
        with T.If(sequence[0] < 0), T.Then(), T.If(left[0] < items):
            with T.Then():
                T.buffer_store(sequence, b, [0])
            with T.Else():
                T.buffer_store(left, left[0] - items, [0])
    return settled(sequence[0]), settled(left[0])


def prefill_attention(shape: HeadShape, rotation: Rotation, scale: float, dot: Dot, window: int | None = None):
    """PrimFunc: rotate and append new tokens, then attend each to the stored keys of its sequence up to itself."""
    heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_dim
    tile = Tile(shape, dot)
    with kernel("prefill_attention") as k:
        n, b, used, total_pages, layers = (T.int32() for _ in range(5))
        qkv = k.input("qkv", (n, (heads + 2 * kv_heads) * dim), "float32")
        layer = T.arg("layer", T.int64())
        positions, slots = k.input("positions", (n,), "int32"), k.input("slots", (n,), "int32")
        query_starts, page_starts = (
            k.input("query_starts", (b + 1,), "int32"),
            k.input("page_starts", (b + 1,), "int32"),
        )
        pages, lengths = k.input("pages", (used,), "int32"), k.input("lengths", (b,), "int32")
        kv = k.input("kv", (layers, total_pages, 2, kv_heads, PAGE_SIZE, dim), shape.dtype)
        kv_scales = None
        if shape.dtype == "int8":
            kv_scales = k.input("kv_scales", (layers, total_pages, 2, kv_heads, PAGE_SIZE), "float32")
        out = k.input("out", (n, heads * dim), "float32")
        batch = Batch(qkv, layer, positions, slots, query_starts, page_starts, pages, lengths, kv, kv_scales, out)

        def new_rows(s):
            return (query_starts[s + 1] - query_starts[s]) * shape.group

        def tiles(s):
            return T.ceildiv(new_rows(s), tile.rows)

        def first_block(s):
            if window is None:
                return T.int32(0)
            return T.max(lengths[s] - (query_starts[s + 1] - query_starts[s]) - window + 1, 0) // KEY_BLOCK

        def blocks(s):
            needed = T.ceildiv(lengths[s], KEY_BLOCK) - first_block(s)
            return settled(T.Select(query_starts[s + 1] > query_starts[s], needed, 0))

        with k.body():
            keys = used * PAGE_SIZE
            panels = Panels(
                T.sblock_alloc_buffer((kv_heads, keys, tile.key_words), dot.word),
                T.sblock_alloc_buffer((kv_heads, used), "float32"),
                T.sblock_alloc_buffer((kv_heads, keys), "int32"),
                T.sblock_alloc_buffer((kv_heads, T.floordiv(keys, dot.numbers), tile.padded), dot.word),
                T.sblock_alloc_buffer((kv_heads, used, tile.padded), "float32"),
            )
            with T.parallel(0, n) as t:
                _append_token(tile, rotation, batch, t, scale * LOG2_E)
            total_blocks = _sum(b, blocks)
            with T.parallel(0, total_blocks * kv_heads) as item:
                sequence, block = _find(b, T.bind(item % total_blocks), blocks)
                _fill_panels(tile, batch, panels, T.bind(item // total_blocks), sequence, first_block(sequence) + block)
            total_tiles = _sum(b, tiles)
            with T.parallel(0, total_tiles * kv_heads) as item:
                turn = T.bind(item % total_tiles)
                # tiles from both ends alternately: late ones see more keys, and threads take contiguous ranges
                turn = T.Select(turn % 2 == 0, turn // 2, total_tiles - 1 - turn // 2)
                sequence, index = _find(b, turn, tiles)
                _attend(tile, batch, panels, T.bind(item // total_tiles), sequence, index, window)
    return k.function
