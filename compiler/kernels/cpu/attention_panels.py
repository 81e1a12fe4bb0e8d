"""Keys and values of prefill attention: new ones into pages, and all of a sequence into panels of words.

    pages  [page, key | value, head, 16 tokens, head_dim]      float16, float32, or int8 with a scale a row
    panels, for a head and int16 (two numbers a word):
      keys    [key, word]      | d0 d1 | d2 d3 | ...           a key's dimensions, as they are stored
      values  [key / 2, d]     | k0 k1 |                       one dimension of consecutive values

A block of keys shares a factor; in a block of values every dimension has its own.
"""
# mypy: ignore-errors

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .attention_dot import Dot, Products, rounded, rounded_int32
from .flash import HeadShape
from .kv_pages import PAGE_SIZE, index64
from .rope import Rotation, emit_angles, emit_rotate
from .vector import Expr, add, constant, load, reduce, settled, span, splat, store

KEY_BLOCK = 64  # keys that share a factor, and whose weights are relative to one maximum

# Queries, keys and columns of values are scaled to these norms (int16) or largest numbers (int8), so that no sum of
# products leaves int32. By Cauchy and Schwarz |q . k| <= |q| |k|, and |p . v| <= sqrt(KEY_BLOCK) * weight * |v| for
# weights p up to WEIGHT; so do all partial sums.
ROW_SIZE = {"int16": 32600.0, "int8": 127.0}
WEIGHT = {"float32": 1.0, "int16": 16384.0, "int8": 254.0}
COLUMN_SIZE = {"int16": 16370.0, "int8": 127.0}


@dataclass(frozen=True)
class Tile:
    """How attention is cut. Lanes are rows (a query head of a token each): no sum or maximum crosses lanes."""

    shape: HeadShape
    products: Products

    @property
    def lanes(self) -> int:
        return self.shape.unit.lanes

    @property
    def vectors(self) -> int:
        """Vectors of rows in a tile. 3 by 4 sums hide the latency of products, 2 by 4 leave room in 16 registers."""
        return 3 if self.shape.unit.registers >= 32 else 2

    @property
    def rows(self) -> int:
        return self.vectors * self.lanes

    @property
    def height(self) -> int:
        """Keys, or dimensions of values, in a register tile."""
        return 4

    @property
    def padded(self) -> int:
        """head_dim rounded up to whole vectors and register tiles; zeros fill it."""
        step = max(self.lanes, self.height)
        return -(-self.shape.head_dim // step) * step

    @property
    def key_words(self) -> int:
        return self.padded // self.products.scores.numbers


@dataclass(frozen=True)
class Batch:
    """The arguments of the kernel: see `prefill_attention`."""

    qkv: Any
    layer: Any
    positions: Any
    slots: Any
    query_starts: Any
    page_starts: Any
    pages: Any
    lengths: Any
    kv: Any
    kv_scales: Any  # None unless kv is int8
    out: Any

    def stored(self, page: Expr, which: int, head: Expr, offset: Expr) -> tuple[Expr, ...]:
        """The index of the first number of a key (which = 0) or value (1)."""
        return index64(page), index64(self.layer), which, head, offset, 0


@dataclass(frozen=True)
class Panels:
    """The panels of all sequences: the keys of one follow one another from 16 * page_starts on."""

    keys: Any  # [kv heads, keys, key words]
    key_scales: Any  # [kv heads, keys / 16], at the first page of a block
    key_bias: Any  # [kv heads, keys], int8: what is added to a sum because queries are stored as q + 128
    values: Any  # [kv heads, keys / numbers, padded]
    value_scales: Any  # [kv heads, keys / 16, padded], at the first page of a block

    @staticmethod
    def allocate(tile: Tile, pages: Expr) -> "Panels":
        heads, keys = tile.shape.num_kv_heads, pages * PAGE_SIZE
        scores, values = tile.products.scores, tile.products.values
        return Panels(
            T.sblock_alloc_buffer((heads, keys, tile.key_words), scores.word),
            T.sblock_alloc_buffer((heads, pages), "float32"),
            T.sblock_alloc_buffer((heads, keys), "int32"),
            T.sblock_alloc_buffer((heads, T.floordiv(keys, values.numbers), tile.padded), values.word),
            T.sblock_alloc_buffer((heads, pages, tile.padded), "float32"),
        )


def absolute(value: Expr, lanes: int) -> Expr:
    return T.max(value, constant(0.0, lanes) - value)


def grow(dot: Dot, size: Expr, value: Expr, lanes: int) -> Expr:
    """Take one more vector of numbers into a size: a squared norm (int16) or a largest absolute value (int8)."""
    return size + value * value if dot.format == "int16" else T.max(size, absolute(value, lanes))


def root(dot: Dot, size: Expr, lanes: int) -> Expr:
    """The norm or largest absolute value, above zero."""
    if dot.format == "int16":
        return T.bind(T.sqrt(T.max(size, constant(1e-30, lanes))))
    return T.bind(T.max(size, constant(1e-15, lanes)))


def append_token(tile: Tile, rotation: Rotation, batch: Batch, angles: tuple[Any, Any], t: Expr) -> None:
    """Write a token's rotated keys and its values to its slot, and the cosines and sines of its angles for its
    queries, `[tokens, rotary_dim / 2]` each."""
    shape, unit, dim = tile.shape, tile.shape.unit, tile.shape.head_dim
    half = len(rotation.frequencies)
    cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
    emit_angles(rotation, unit, batch.positions[t], cosines, sines)
    lanes = rotation.unit(unit).lanes
    for table, values in zip(angles, (cosines, sines), strict=True):
        for d in range(0, half, lanes):
            T.buffer_store(table, values[span(d, lanes)], [t, span(d, lanes)])
    slot = T.bind(batch.slots[t])
    page, offset = T.bind(slot // PAGE_SIZE), T.bind(slot % PAGE_SIZE)
    row = T.alloc_buffer((tile.padded,), "float32") if batch.kv_scales is not None else None
    with T.serial(shape.num_kv_heads) as h:
        key, value = batch.stored(page, 0, h, offset), batch.stored(page, 1, h, offset)
        key_source = batch.qkv, (t, (shape.num_q_heads + h) * dim)
        value_source = batch.qkv, (t, (shape.num_q_heads + shape.num_kv_heads + h) * dim)
        if row is None:
            emit_rotate(rotation, unit, key_source, (batch.kv, key), cosines, sines)
            _convert(tile, value_source, (batch.kv, value))
        else:
            _clear_padding(tile, (row, (0,)))
            emit_rotate(rotation, unit, key_source, (row, (0,)), cosines, sines)
            _store_int8(tile, row, batch, key)
            _convert(tile, value_source, (row, (0,)))
            _store_int8(tile, row, batch, value)


def _convert(tile: Tile, source: tuple, target: tuple, factor: Expr | None = None) -> None:
    """Copy the `head_dim` numbers at an index between buffers of any type but int8 to write to, times `factor`."""
    dim = tile.shape.head_dim
    unit = tile.shape.unit.dividing(dim)
    (read, at), (write, to) = source, target
    for d in range(0, dim, unit.lanes):
        if str(read.dtype) == "int8":
            dtype = "float32" if unit.lanes == 1 else f"float32x{unit.lanes}"
            value = T.bind(T.cast(read[(*at[:-1], span(at[-1] + d, unit.lanes))], dtype))
        else:
            value = load(unit, read, *at[:-1], at[-1] + d)
        store(unit, write, value if factor is None else value * splat(factor, unit.lanes), *to[:-1], to[-1] + d)


def _clear_padding(tile: Tile, target: tuple) -> None:
    write, to = target
    for d in range(tile.shape.head_dim, tile.padded):
        T.buffer_store(write, T.float32(0), [*to[:-1], to[-1] + d])


def _store_int8(tile: Tile, row: Any, batch: Batch, index: tuple[Expr, ...]) -> None:
    """Write a padded row as int8 with its scale, max |.| / 127."""
    unit, lanes, whole = tile.shape.unit.dividing(tile.shape.head_dim), tile.lanes, span(0, tile.lanes)
    peak = T.alloc_buffer((lanes,), "float32")
    T.buffer_store(peak, constant(0.0, lanes), [whole])
    for d in range(0, tile.padded, lanes):
        T.buffer_store(peak, T.max(peak[whole], absolute(T.bind(row[span(d, lanes)]), lanes)), [whole])
    size = T.bind(T.max(reduce(peak[whole], lanes, T.max), T.float32(1e-15)))
    inverse = T.bind(splat(T.float32(127) / size, unit.lanes))
    for d in range(0, tile.shape.head_dim, unit.lanes):
        dtype = "int8" if unit.lanes == 1 else f"int8x{unit.lanes}"
        codes = T.cast(rounded(row[span(d, unit.lanes)] * inverse, unit.lanes), dtype)
        T.buffer_store(batch.kv, codes, [*index[:-1], span(d, unit.lanes)])
    T.buffer_store(batch.kv_scales, size * T.float32(1 / 127), list(index[:-1]))


def fill_panels(tile: Tile, batch: Batch, panels: Panels, head: Expr, sequence: Expr, block: Expr) -> None:
    """Convert one block of keys and values of a sequence."""
    first_page = T.bind(batch.page_starts[sequence] + block * (KEY_BLOCK // PAGE_SIZE))
    first = T.bind(first_page * PAGE_SIZE)
    present = settled(T.min(batch.lengths[sequence] - block * KEY_BLOCK, KEY_BLOCK))
    rows = T.alloc_buffer((KEY_BLOCK, tile.padded), "float32")

    def stage(which: int, j: Expr) -> None:
        page, offset = T.bind(batch.pages[first_page + j // PAGE_SIZE]), T.bind(j % PAGE_SIZE)
        source = batch.stored(page, which, head, offset)
        factor = None if batch.kv_scales is None else T.bind(batch.kv_scales[source[:-1]])
        _convert(tile, (batch.kv, source), (rows, (j, 0)), factor)
        _clear_padding(tile, (rows, (j, 0)))

    _fill_keys(tile, panels, rows, lambda j: stage(0, j), head, first, present)
    with T.serial(present) as j:
        stage(1, j)
    # the weights of keys past the end are zero, but so must be what they multiply: NaN would stay NaN
    whole = settled((present + PAGE_SIZE - 1) // PAGE_SIZE * PAGE_SIZE)
    with T.serial(whole - present) as j, T.serial(tile.padded) as d:
        T.buffer_store(rows, T.float32(0), [present + j, d])
    _fill_values(tile, panels, rows, head, first, present, whole)


def _fill_keys(
    tile: Tile, panels: Panels, rows: Any, stage: Callable[[Expr], None], head: Expr, first: Expr, present: Expr
) -> None:
    dot, lanes, whole = tile.products.scores, tile.lanes, span(0, tile.lanes)
    largest = T.alloc_buffer((1,), "float32")
    T.buffer_store(largest, T.float32(0), [0])
    with T.serial(present) as j:
        stage(j)
        if dot.quantized:
            size = T.alloc_buffer((lanes,), "float32")
            T.buffer_store(size, constant(0.0, lanes), [whole])
            for d in range(0, tile.padded, lanes):
                T.buffer_store(size, grow(dot, size[whole], T.bind(rows[j, span(d, lanes)]), lanes), [whole])
            total = reduce(size[whole], lanes, add if dot.format == "int16" else T.max)
            T.buffer_store(largest, T.max(largest[0], total), [0])
    inverse = T.float32(1)
    if dot.quantized:
        size = root(dot, largest[0], 1)
        inverse = T.bind(T.float32(ROW_SIZE[dot.format]) / size)
        scale = size * T.float32(1 / ROW_SIZE[dot.format])
        T.buffer_store(panels.key_scales, scale, [head, first // PAGE_SIZE])
    with T.serial(present) as j:
        sums = T.alloc_buffer((lanes,), "int32")
        T.buffer_store(sums, constant(0, lanes, "int32"), [whole])
        for d in range(0, tile.padded, lanes):
            value = T.bind(rows[j, span(d, lanes)] * splat(inverse, lanes))
            place = span(d // dot.numbers, lanes // dot.numbers)
            T.buffer_store(panels.keys, dot.consecutive(value, lanes), [head, first + j, place])
            if dot.format == "int8":
                T.buffer_store(sums, sums[whole] + rounded_int32(value, lanes), [whole])
        if dot.format == "int8":
            T.buffer_store(panels.key_bias, reduce(sums[whole], lanes, add) * -128, [head, first + j])


def _fill_values(tile: Tile, panels: Panels, rows: Any, head: Expr, first: Expr, present: Expr, whole: Expr) -> None:
    dot, lanes, cell = tile.products.values, tile.lanes, span(0, tile.lanes)
    with T.serial(tile.padded // lanes) as part:
        columns = span(part * lanes, lanes)
        factor = T.alloc_buffer((lanes,), "float32")  # first the size of the columns, then its inverse
        if dot.quantized:
            T.buffer_store(factor, constant(0.0, lanes), [cell])
            with T.serial(present) as j:
                T.buffer_store(factor, grow(dot, factor[cell], T.bind(rows[j, columns]), lanes), [cell])
            size = root(dot, factor[cell], lanes)
            scale = size * constant(1 / COLUMN_SIZE[dot.format], lanes)
            T.buffer_store(panels.value_scales, scale, [head, first // PAGE_SIZE, columns])
            T.buffer_store(factor, constant(COLUMN_SIZE[dot.format], lanes) / size, [cell])
        with T.serial(whole // dot.numbers) as j:
            vectors = [rows[j * dot.numbers + i, columns] for i in range(dot.numbers)]
            if dot.quantized:
                vectors = [rounded(vector * factor[cell], lanes) for vector in vectors]
            T.buffer_store(panels.values, dot.pack(vectors, lanes), [head, first // dot.numbers + j, columns])
