"""Keys and values of prefill attention as panels of words.

For a head and int16 (two numbers a word):

    keys    [key, word]      | d0 d1 | d2 d3 | ...           a key's dimensions, as they are stored
    values  [key / 2, d]     | k0 k1 |                       one dimension of consecutive values

A block of keys shares a factor; in a block of values every dimension has its own.
"""
# mypy: ignore-errors

from dataclasses import dataclass
from typing import Any

from tvm.script import tirx as T

from .attention_dot import Dot, rounded, rounded_int32
from .flash import HeadShape
from .kv_pages import KEY, PAGE_SIZE, VALUE, PagedKV
from .vector import Expr, VectorUnit, add, constant, reduce, settled, span, splat

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
    unit: VectorUnit  # the widest: shape.unit has vectors that divide a head
    dot: Dot

    @property
    def lanes(self) -> int:
        return self.unit.lanes

    @property
    def vectors(self) -> int:
        """Vectors of rows in a tile. 3 by 4 sums hide the latency of products, 2 by 4 leave room in 16 registers."""
        return 3 if self.unit.registers >= 32 else 2

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
        return self.padded // self.dot.numbers

    @property
    def score(self) -> str:
        """The type of scores before the scale of their row: int8 has a scale for each key as well, which is applied."""
        return "int32" if self.dot.format == "int16" else "float32"


@dataclass(frozen=True)
class Panels:
    """The panels of all sequences: the keys of one follow one another from 16 * page_starts on."""

    keys: Any  # [kv heads, keys, key words]
    key_scales: Any  # [kv heads, keys] for int8, otherwise at the first key of a block
    key_bias: Any  # [kv heads, keys], int8: what is added to a sum because queries are stored as q + 128
    values: Any  # [kv heads, keys / numbers, padded]
    value_scales: Any  # [kv heads, keys / 16, padded], at the first page of a block

    @staticmethod
    def allocate(tile: Tile, pages: Expr) -> "Panels":
        heads, keys = tile.shape.num_kv_heads, pages * PAGE_SIZE
        return Panels(
            T.sblock_alloc_buffer((heads, keys, tile.key_words), tile.dot.word),
            T.sblock_alloc_buffer((heads, keys), "float32"),
            T.sblock_alloc_buffer((heads, keys), "int32"),
            T.sblock_alloc_buffer((heads, T.floordiv(keys, tile.dot.numbers), tile.padded), tile.dot.word),
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


def fill_panels(tile: Tile, paged: PagedKV, panels: Panels, head: Expr, sequence: Expr, block: Expr) -> None:
    """Convert one block of keys and values of a sequence."""
    start = T.bind(block * KEY_BLOCK)
    first = T.bind(paged.page_starts[sequence] * PAGE_SIZE + start)
    present = settled(T.min(paged.lengths[sequence] - start, KEY_BLOCK))
    rows = T.alloc_buffer((KEY_BLOCK, tile.padded), "float32")
    padding = tile.padded - tile.shape.head_dim
    if padding:
        with T.serial(KEY_BLOCK) as j, T.serial(padding) as d:
            T.buffer_store(rows, T.float32(0), [j, tile.shape.head_dim + d])
    paged.stage(sequence, start, present, KEY, head, rows)
    _fill_keys(tile, panels, rows, head, first, present)
    paged.stage(sequence, start, present, VALUE, head, rows)
    # the weights of keys past the end are zero, but so must be what they multiply: NaN would stay NaN
    whole = settled((present + tile.height - 1) // tile.height * tile.height)
    with T.serial(whole - present) as j, T.serial(tile.padded) as d:
        T.buffer_store(rows, T.float32(0), [present + j, d])
    _fill_values(tile, panels, rows, head, first, present, whole)


def _fill_keys(tile: Tile, panels: Panels, rows: Any, head: Expr, first: Expr, present: Expr) -> None:
    dot, lanes, whole = tile.dot, tile.lanes, span(0, tile.lanes)

    def size(j: Expr) -> Expr:
        total = T.alloc_buffer((lanes,), "float32")
        T.buffer_store(total, constant(0.0, lanes), [whole])
        for d in range(0, tile.padded, lanes):
            T.buffer_store(total, grow(dot, total[whole], T.bind(rows[j, span(d, lanes)]), lanes), [whole])
        return reduce(total[whole], lanes, add if dot.format == "int16" else T.max)

    def scale(size: Expr, key: Expr) -> Expr:
        """Note the factor of keys of that size, and return what they are multiplied by."""
        norm = root(dot, size, 1)
        T.buffer_store(panels.key_scales, norm * T.float32(1 / ROW_SIZE[dot.format]), [head, key])
        return T.bind(splat(T.float32(ROW_SIZE[dot.format]) / norm, lanes))

    inverse = constant(1.0, lanes)
    if dot.format == "int16":
        largest = T.alloc_buffer((1,), "float32")
        T.buffer_store(largest, T.float32(0), [0])
        with T.serial(present) as j:
            T.buffer_store(largest, T.max(largest[0], size(j)), [0])
        inverse = scale(largest[0], first)
    with T.serial(present) as j:
        if dot.format == "int8":
            inverse = scale(size(j), first + j)
            sums = T.alloc_buffer((lanes,), "int32")
            T.buffer_store(sums, constant(0, lanes, "int32"), [whole])
        for d in range(0, tile.padded, lanes):
            value = T.bind(rows[j, span(d, lanes)] * inverse)
            place = span(d // dot.numbers, lanes // dot.numbers)
            T.buffer_store(panels.keys, dot.consecutive(value, lanes), [head, first + j, place])
            if dot.format == "int8":
                T.buffer_store(sums, sums[whole] + rounded_int32(value, lanes), [whole])
        if dot.format == "int8":
            T.buffer_store(panels.key_bias, reduce(sums[whole], lanes, add) * -128, [head, first + j])


def _fill_values(tile: Tile, panels: Panels, rows: Any, head: Expr, first: Expr, present: Expr, whole: Expr) -> None:
    dot, lanes, cell = tile.dot, tile.lanes, span(0, tile.lanes)
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
