# mypy: ignore-errors
"""Keys and values in pages, as CPU kernels read and write them; ../kv_cache.py describes the tensors.

    kv[sheet, layer]:   keys of head 0, of head 1, ...   values of head 0, of head 1, ...

What a head has in a page lies in the order in which products take it, so that sums never cross the lanes of a vector:

    keys, float    [head_dim, 16 keys]             values, float   [16 keys, head_dim]
    keys, int8     [head_dim / 4, 16 keys, 4]      values, int8    [4, head_dim, 4 keys]

A row of int8 is the row of float32 divided by its scale, max |x| / 127, and rounded to nearest even. Keys have
128 added, as unsigned bytes: instructions multiply unsigned numbers by signed ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from ..builder import Kernel
from ..kv_cache import PAGE_SIZE, SHEET_PAGES
from .attention_dot import rounded_int32
from .flash import HeadShape
from .rope import Rotation, emit_rotate
from .vector import Expr, abs_max, constant, load, prefetch, settled, span, splat, store, transpose

KEY, VALUE = 0, 1
KEY_BLOCK = PAGE_SIZE * SHEET_PAGES  # keys that are attended to at a time
NUMBERS = 4  # dimensions, or keys, that are taken together: int8 has so many in a word


def index64(value):
    """Offsets into pages exceed 32 bits for long contexts."""
    return T.cast(value, "int64")


@dataclass(frozen=True)
class HeadPage:
    """The keys or values of one head in one page of a layer. Its keys are counted from 0."""

    paged: "PagedKV"
    index: tuple[Expr, ...]  # sheet, layer, which, head
    row: Expr  # its first in the sheet

    @property
    def quantized(self) -> bool:
        return self.paged.scales is not None

    def place(self, offset: Expr) -> tuple[Expr, ...]:
        """The index of a number, counted from the first of the page."""
        return (*self.index, index64(self.row), index64(offset))

    def words(self, offset: Expr, lanes: int) -> Expr:
        """`lanes` words of int8, from the number `offset` on."""
        value = self.paged.kv[(*self.place(offset)[:-1], span(index64(offset), lanes * NUMBERS))]
        return T.bind(T.reinterpret(value, dtype=f"int32x{lanes}"))

    def key_word(self, key: Expr, word: Expr, lanes: int) -> Expr:
        """Four dimensions of `lanes` keys, from 4 * `word` on. Keys of int8 have 128 added."""
        return self.words(self.key_offset(key, word * NUMBERS), lanes)

    def keys(self, key: Expr, dimension: Expr, lanes: int) -> list[Expr]:
        """Four dimensions of `lanes` keys, each a vector of float32, without scales."""
        if self.quantized:
            word, mask = self.words(self.key_offset(key, dimension), lanes), constant(255, lanes, "int32")
            numbers = [word & mask, *((word >> constant(8 * i, lanes, "int32")) & mask for i in range(1, NUMBERS))]
            return [T.bind(T.cast(number, f"float32x{lanes}") - constant(128.0, lanes)) for number in numbers]
        unit = self.paged.shape.vectors
        return [load(unit, self.paged.kv, *self.place(self.key_offset(key, dimension + i))) for i in range(NUMBERS)]

    def key_offset(self, key: Expr, dimension: Expr) -> Expr:
        """Where a dimension of a key is; for int8 it is the first of a word."""
        return dimension * PAGE_SIZE + key * (NUMBERS if self.quantized else 1)

    def value_word(self, group: Expr, dimension: Expr, lanes: int) -> Expr:
        """`lanes` dimensions of the four values from 4 * `group` on."""
        return self.words((group * self.paged.shape.head_dim + dimension) * NUMBERS, lanes)

    def values(self, group: Expr, dimension: Expr, lanes: int) -> list[Expr]:
        """A vector of each value of a group, without scales."""
        if not self.quantized:
            place = self.place(group * self.paged.shape.head_dim + dimension)
            return [load(self.paged.shape.vectors, self.paged.kv, *place)]
        word = self.value_word(group, dimension, lanes)
        shifted = [word << constant(24 - 8 * i, lanes, "int32") for i in range(3)] + [word]
        return [T.bind(T.cast(bits >> constant(24, lanes, "int32"), f"float32x{lanes}")) for bits in shifted]

    def scale(self, key: Expr, count: int) -> Expr:
        """The scales of `count` rows."""
        return T.bind(self.paged.scales[(*self.index, span(index64(self.row + key), count))])

    def prefetch(self, offset: Expr, count: int) -> None:
        """Ask for `count` numbers."""
        prefetch(self.paged.kv, self.place(offset), count)

    @property
    def group(self) -> int:
        """Values that are taken together."""
        return NUMBERS if self.quantized else 1

    def prefetch_scales(self) -> None:
        if self.quantized:
            prefetch(self.paged.scales, (*self.index, index64(self.row)), PAGE_SIZE)


@dataclass(frozen=True)
class PagedKV:
    """The arguments of a kernel that are a cache, and one layer of it."""

    shape: HeadShape
    layer: Expr
    positions: Expr
    slots: Expr
    query_starts: Expr
    page_starts: Expr
    pages: Expr
    lengths: Expr
    kv: Expr
    scales: Expr | None

    @staticmethod
    def declare(k: Kernel, shape: HeadShape, num_layers: int, tokens: Expr, sequences: Expr) -> "PagedKV":
        """The arguments in their order, from `layer` on."""
        layer = k.scalar("layer", "int64")
        starts, used, num_sheets = T.int32(), T.int32(), T.int64()
        layout = (num_sheets, num_layers, 2, shape.num_kv_heads, KEY_BLOCK)
        return PagedKV(
            shape,
            layer,
            k.input("positions", (tokens,), "int32"),
            k.input("slots", (tokens,), "int32"),
            k.input("query_starts", (starts,), "int32"),
            k.input("page_starts", (starts,), "int32"),
            k.input("pages", (used,), "int32"),
            k.input("lengths", (sequences,), "int32"),
            k.input("kv", (*layout, shape.head_dim), shape.dtype),
            k.input("kv_scales", layout, "float32") if shape.dtype == "int8" else None,
        )

    def head(self, sequence, number, which, head) -> HeadPage:
        """The keys (which = KEY) or values (VALUE) of a head in page `number` of a sequence."""
        return self._head(T.bind(self.pages[self.page_starts[sequence] + number]), which, head)

    def _head(self, page, which, head) -> HeadPage:
        sheet, row = T.bind(index64(page // SHEET_PAGES)), T.bind(page % SHEET_PAGES * PAGE_SIZE)
        return HeadPage(self, (sheet, self.layer, index64(which), index64(head)), row)

    def store_token(self, rotation: Rotation, token, head, key, value, cosines, sines) -> None:
        """Store a new token's key, rotated, and value for one key head; `key` and `value` are a float32 buffer and the
        index of their first element."""
        shape, slot = self.shape, T.bind(self.slots[token])
        page, offset = T.bind(slot // PAGE_SIZE), T.bind(slot % PAGE_SIZE)
        row = T.alloc_buffer((shape.head_dim,), "float32")
        emit_rotate(rotation, shape.vectors, key, (row, (0,)), cosines, sines)
        self._store_key((row, (0,)), self._head(page, KEY, head), offset)
        self._store_value(value, self._head(page, VALUE, head), offset)

    def _store_key(self, source, keys: HeadPage, offset) -> None:
        # A row is written number by number: other threads write to what lies between.
        numbers = self._stored_numbers(source, keys, offset, 128)
        with T.serial(self.shape.head_dim // NUMBERS) as word:
            for i in range(NUMBERS):
                place = keys.key_offset(offset, word * NUMBERS) + (i if keys.quantized else i * PAGE_SIZE)
                T.buffer_store(self.kv, numbers[word * NUMBERS + i], list(keys.place(place)))

    def _store_value(self, source, values: HeadPage, offset) -> None:
        dim = self.shape.head_dim
        numbers = self._stored_numbers(source, values, offset, 0)
        if not values.quantized:
            with T.serial(dim) as d:
                T.buffer_store(self.kv, numbers[d], list(values.place(offset * dim + d)))
            return
        group, number = T.bind(T.floordiv(offset, NUMBERS)), T.bind(T.floormod(offset, NUMBERS))
        with T.serial(dim) as d:
            T.buffer_store(self.kv, numbers[d], list(values.place((group * dim + d) * NUMBERS + number)))

    def _stored_numbers(self, source, target: HeadPage, offset, added: int):
        """A buffer of the numbers that are stored for a row, whose scale is written."""
        unit, (buffer, at) = self.shape.vectors, source
        dims = range(0, self.shape.head_dim, unit.lanes)
        numbers = T.alloc_buffer((self.shape.head_dim,), self.shape.dtype)
        parts = [T.bind(buffer[(*at[:-1], span(at[-1] + d, unit.lanes))]) for d in dims]
        if not target.quantized:
            for d, part in zip(dims, parts, strict=True):
                store(unit, numbers, part, d)
            return numbers
        largest = settled(abs_max(parts, unit.lanes), "float32")
        T.buffer_store(self.scales, largest * T.float32(1 / 127), [*target.index, index64(target.row + offset)])
        inverse = settled(T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0)), "float32")
        for d, part in zip(dims, parts, strict=True):
            codes = rounded_int32(part * splat(inverse, unit.lanes), unit.lanes) + constant(added, unit.lanes, "int32")
            T.buffer_store(numbers, T.cast(codes, f"int8x{unit.lanes}"), [span(d, unit.lanes)])
        return numbers

    def stage(self, sequence, start, count, which, head, rows) -> None:
        """Copy `count` keys or values from `start` on, where a page begins, into `rows` `[.., head_dim]` float32. Rows
        beyond, up to a whole vector, are overwritten."""
        first = T.bind(start // PAGE_SIZE)
        with T.serial(T.ceildiv(count, PAGE_SIZE)) as page:
            source = self.head(sequence, first + page, which, head)
            row = T.bind(page * PAGE_SIZE)
            here = settled(T.min(count - row, PAGE_SIZE))
            if which == KEY:
                self._stage_keys(source, here, rows, row)
            else:
                self._stage_values(source, here, rows, row)

    def _stage_keys(self, source: HeadPage, count, rows, row) -> None:
        unit, lanes = self.shape.vectors, self.shape.vectors.lanes
        width = max(lanes, NUMBERS)
        with T.serial(T.ceildiv(count, lanes)) as part, T.serial(self.shape.head_dim // width) as block:
            first, d = T.bind(part * lanes), T.bind(block * width)
            vectors = [v for i in range(0, width, NUMBERS) for v in source.keys(first, d + i, lanes)]
            if self.scales is not None:
                scale = source.scale(first, lanes)
                vectors = [T.bind(vector * scale) for vector in vectors]
            for column in range(0, width, lanes):
                for i, vector in enumerate(transpose(vectors[column : column + lanes], lanes)):
                    store(unit, rows, vector, row + first + i, d + column)

    def _stage_values(self, source: HeadPage, count, rows, row) -> None:
        unit, lanes = self.shape.vectors, self.shape.vectors.lanes
        size = source.group
        with T.serial(T.ceildiv(count, size)) as group:
            scales: Sequence[Expr] = ()
            if self.scales is not None:
                scales = [splat(source.scale(group * size + i, 1), lanes) for i in range(size)]
            for d in range(0, self.shape.head_dim, lanes):
                for i, vector in enumerate(source.values(group, d, lanes)):
                    store(unit, rows, vector * scales[i] if scales else vector, row + group * size + i, d)
