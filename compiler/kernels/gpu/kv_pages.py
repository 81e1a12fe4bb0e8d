"""Keys and values in pages, as device kernels read and write them; ../kv_cache.py describes the tensors.

    kv[sheet, layer]:   keys of head 0, of head 1, ...   values of head 0, of head 1, ...

What a head has in a page are PAGE_SIZE rows of head_dim numbers. A row of int8 is the row of float32 divided by its
scale, max |x| / 127, and rounded to nearest even.
"""
# mypy: ignore-errors

from dataclasses import dataclass, replace

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...target.target import CompileTarget
from ..builder import Kernel, kernel
from ..cache_kernels import CacheShape
from ..kv_cache import PAGE_SIZE, SHEET_PAGES
from .arithmetic import exact, load4, rounded, variable
from .launch import barrier, cell, launch, shared, strided
from .rope import Rotation

KEY, VALUE = 0, 1
SHEET_ROWS = PAGE_SIZE * SHEET_PAGES
_STORE_THREADS = 64
_COPY_THREADS = 128


def _long(value):
    """Offsets into pages exceed 32 bits for long contexts."""
    return T.cast(value, "int64")


@dataclass(frozen=True)
class Row:
    """Where the keys and values of one token are: sheet and row of it."""

    sheet: object
    row: object


@dataclass(frozen=True)
class PagedKV:
    """The arguments of a kernel that are a cache, and one layer of it."""

    cache: CacheShape
    layer: object
    positions: object
    slots: object
    query_starts: object
    page_starts: object
    pages: object
    lengths: object
    kv: object
    scales: object  # None where rows have none

    @staticmethod
    def declare(k: Kernel, cache: CacheShape, tokens, sequences) -> "PagedKV":
        """The arguments in their order, from `layer` on."""
        layer = k.scalar("layer", "int64")
        starts, used = T.int32(), T.int32()
        positions, slots = k.input("positions", (tokens,), "int32"), k.input("slots", (tokens,), "int32")
        query_starts = k.input("query_starts", (starts,), "int32")
        page_starts = k.input("page_starts", (starts,), "int32")
        pages, lengths = k.input("pages", (used,), "int32"), k.input("lengths", (sequences,), "int32")
        kv, scales = _declare_stored(k, cache)
        return PagedKV(cache, layer, positions, slots, query_starts, page_starts, pages, lengths, kv, scales)

    def here(self) -> "PagedKV":
        """The same within a launch. TVM would pass it multiples of `layer` that the host has calculated, and not see
        that vectors of a row are aligned."""
        return replace(self, layer=_long(variable(T.cast(self.layer, "int32"), "int32")))

    def row(self, sequence, position) -> Row:
        """Where a token of a sequence is."""
        page = T.bind(self.pages[self.page_starts[sequence] + position // PAGE_SIZE])
        return self._row_of_slot(page * PAGE_SIZE + position % PAGE_SIZE)

    def page(self, sequence, number):
        """The page `number` of a sequence: rows of it are `row_of_page`."""
        return T.bind(self.pages[self.page_starts[sequence] + number])

    def row_of_page(self, page, offset) -> Row:
        """A row of a page."""
        return Row(T.bind(page // SHEET_PAGES), T.bind(page % SHEET_PAGES * PAGE_SIZE + offset))

    def _row_of_slot(self, slot) -> Row:
        slot = T.bind(slot)
        return Row(T.bind(slot // SHEET_ROWS), T.bind(slot % SHEET_ROWS))

    def _index(self, which: int, head, row: Row) -> tuple:
        return _long(row.sheet), self.layer, tirx.const(which, "int64"), _long(head), _long(row.row)

    def load4(self, which: int, head, row: Row, dimension):
        """Four dimensions of a key or value, from `dimension` on, without scale."""
        return load4(self.kv, *self._index(which, head, row), _long(dimension))

    def scale(self, which: int, head, row: Row):
        """The factor of a row of int8."""
        return T.bind(self.scales[self._index(which, head, row)])

    def launch_store(self, rotation: Rotation, tokens, token_row) -> None:
        """A launch that stores the new tokens' keys, rotated, and values.

        `token_row(token, number)` is the buffer of queries, keys and values, and the index of a number of a token.
        """
        cache, threads = self.cache, _STORE_THREADS
        dim, half = cache.head_dim, rotation.half
        with launch((tokens, cache.num_key_value_heads), threads) as ((token, head), (thread,)):
            paged, rows = self.here(), shared((2, dim))
            key = (cache.num_attention_heads + head) * dim
            position = T.bind(self.positions[token])
            buffer, key_at = token_row(token, key)
            with strided(thread, threads, half) as pair:
                cosine, sine = rotation.angle(position, pair)
                a, b = rotation.rotate(buffer, key_at, pair, cosine, sine)
                T.buffer_store(rows, a, [KEY, pair])
                T.buffer_store(rows, b, [KEY, half + pair])
            if dim > 2 * half:
                with strided(thread, threads, dim - 2 * half) as i:
                    T.buffer_store(rows, buffer[(*key_at[:-1], key_at[-1] + 2 * half + i)], [KEY, 2 * half + i])
            _, value_at = token_row(token, key + cache.num_key_value_heads * dim)
            with strided(thread, threads, dim) as i:
                T.buffer_store(rows, buffer[(*value_at[:-1], value_at[-1] + i)], [VALUE, i])
            barrier()
            row = paged._row_of_slot(self.slots[token])
            for which in (KEY, VALUE):
                paged._write(which, head, row, rows, thread)

    def _write(self, which: int, head, row: Row, rows, thread) -> None:
        """Write the shared row `rows[which]`."""
        dim, index = self.cache.head_dim, self._index(which, head, row)
        inverse = None
        if self.scales is not None:
            largest = cell(0.0)
            with T.serial(dim) as i:
                number = T.bind(rows[which, i])
                T.buffer_store(largest, T.max(largest[0], T.max(number, T.float32(0) - number)), [0])
            largest = T.bind(largest[0])
            with T.If(thread == 0), T.Then():
                T.buffer_store(self.scales, largest * exact(1 / 127), list(index))
            inverse = cell(0.0)
            with T.If(largest > T.float32(0)), T.Then():
                T.buffer_store(inverse, T.float32(127) / largest, [0])
        with strided(thread, _STORE_THREADS, dim) as i:
            number = rows[which, i]
            if inverse is not None:
                number = rounded(number * inverse[0])
            T.buffer_store(self.kv, T.cast(number, self.cache.dtype), [*index, _long(i)])


def _declare_stored(k: Kernel, cache: CacheShape) -> tuple:
    """kv and kv_scales as arguments."""
    layout = (T.int64(), cache.num_hidden_layers, 2, cache.num_key_value_heads, SHEET_ROWS)
    kv = k.input("kv", (*layout, cache.head_dim), cache.dtype)
    return kv, k.input("kv_scales", layout, "float32") if cache.dtype == "int8" else None


def copy_page(cache: CacheShape, target: CompileTarget) -> tirx.PrimFunc:
    """PrimFunc: kv[, kv_scales], old int32, new int32: copies page `old` of all layers and heads to page `new`."""
    with kernel("copy_page") as k:
        kv, scales = _declare_stored(k, cache)
        old, new = k.scalar("old_page", "int32"), k.scalar("new_page", "int32")  # `new` is a word of C++
        with k.body():
            pieces = (cache.num_hidden_layers, 2, cache.num_key_value_heads)
            with launch((pieces[0] * 2 * pieces[2],), _COPY_THREADS) as ((piece,), (thread,)):
                place = [_long(piece // (2 * pieces[2])), _long(piece // pieces[2] % 2), _long(piece % pieces[2])]

                def index(page, row):
                    return [_long(page // SHEET_PAGES), *place, _long(page % SHEET_PAGES * PAGE_SIZE + row)]

                words = cache.head_dim // 4
                with strided(thread, _COPY_THREADS, PAGE_SIZE * words) as i:
                    row, columns = i // words, T.ramp(_long(i % words * 4), 1, 4)
                    T.buffer_store(kv, kv[(*index(old, row), columns)], [*index(new, row), columns])
                if scales is not None:
                    with strided(thread, _COPY_THREADS, PAGE_SIZE) as row:
                        T.buffer_store(scales, scales[tuple(index(old, row))], index(new, row))
    return k.function
