# mypy: ignore-errors
"""Keys and values in pages, as CPU kernels read and write them; ../kv_cache.py describes the tensors.

    kv[page, layer]:   keys   of head 0: [PAGE_SIZE, head_dim], of head 1, ...
                       values of head 0: [PAGE_SIZE, head_dim], of head 1, ...

A row of int8 is the row of float32 divided by its scale, max |x| / 127, and rounded to nearest even.
"""

from dataclasses import dataclass

from tvm.script import tirx as T

from ..builder import Kernel
from ..kv_cache import PAGE_SIZE
from .flash import HeadShape
from .rope import Rotation, emit_rotate
from .vector import Expr, abs_max, load, round_to_int8, settled, span, splat, store

KEY, VALUE = 0, 1


def index64(value):
    """Offsets into pages exceed 32 bits for long contexts."""
    return T.cast(value, "int64")


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
        starts, used, num_pages = T.int32(), T.int32(), T.int64()
        layout = (num_pages, num_layers, 2, shape.num_kv_heads, PAGE_SIZE)
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

    def index(self, sequence, key, which, head):
        """The index of the first element of a key (which = KEY) or value (VALUE) of a sequence."""
        page = T.bind(self.pages[self.page_starts[sequence] + T.floordiv(key, PAGE_SIZE)])
        offset = index64(T.floormod(key, PAGE_SIZE))
        return index64(page), self.layer, index64(which), index64(head), offset, T.int64(0)

    def store_token(self, rotation: Rotation, token, head, key, value, cosines, sines) -> None:
        """Store a new token's key, rotated, and value for one key head; `key` and `value` are a float32 buffer and the
        index of their first element."""
        shape, slot = self.shape, T.bind(index64(self.slots[token]))
        page, offset = T.floordiv(slot, T.int64(PAGE_SIZE)), T.floormod(slot, T.int64(PAGE_SIZE))
        row = T.alloc_buffer((shape.head_dim,), "float32")
        emit_rotate(rotation, shape.vectors, key, (row, (0,)), cosines, sines)
        self._store_row((row, (0,)), (page, self.layer, index64(KEY), index64(head), offset))
        self._store_row(value, (page, self.layer, index64(VALUE), index64(head), offset))

    def _store_row(self, source, index) -> None:
        unit, (buffer, at) = self.shape.vectors, source
        parts = [
            T.bind(buffer[(*at[:-1], span(at[-1] + d, unit.lanes))]) for d in range(0, self.shape.head_dim, unit.lanes)
        ]
        if self.scales is None:
            for i, part in enumerate(parts):
                store(unit, self.kv, part, *index, T.int64(i * unit.lanes))
            return
        largest = settled(abs_max(parts, unit.lanes), "float32")
        T.buffer_store(self.scales, largest * T.float32(1 / 127), list(index))
        inverse = settled(T.Select(largest > T.float32(0), T.float32(127) / largest, T.float32(0)), "float32")
        for i, part in enumerate(parts):
            codes = round_to_int8(part * splat(inverse, unit.lanes), unit.lanes)
            T.buffer_store(self.kv, codes, [*index, span(T.int64(i * unit.lanes), unit.lanes)])

    def stage(self, sequence, start, count, which, head, rows) -> None:
        """Copy `count` keys or values from `start` on into `rows` `[.., head_dim]` float32."""
        unit = self.shape.vectors
        with T.serial(count) as j:
            index = self.index(sequence, start + j, which, head)
            scale = None if self.scales is None else T.bind(splat(self.scales[index[:-1]], unit.lanes))
            for d in range(0, self.shape.head_dim, unit.lanes):
                vector = self.load(index, T.int64(d))
                store(unit, rows, vector if scale is None else vector * scale, j, d)

    def row_scales(self, index, count: int) -> Expr:
        """The vector of the scales of `count` rows of a page from `index` on."""
        return self.scales[(*index[:-2], span(index[-2], count))]

    def load(self, index, d) -> Expr:
        """The vector of a row at `index` that starts at dimension `d`, without the row's scale."""
        return load(self.shape.vectors, self.kv, *index[:-1], d)
