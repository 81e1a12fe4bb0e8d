# mypy: ignore-errors
"""Kernels that move keys and values in and out of pages.

A layer's pages are one tensor `[num_pages, 2, kv_heads, PAGE_SIZE, head_dim]`, keys at index 0 of the second axis and
values at index 1. A position map gives each token the slot `page * PAGE_SIZE + offset`, or -1 for "not stored".
"""

from dataclasses import dataclass

from tvm.script import tirx as T

from .vector import Expr, VectorUnit, copy, settled

PAGE_SIZE = 16


def index64(value):
    """Offsets into pages exceed 32 bits for long contexts."""
    return T.cast(value, "int64")


def page_index(slot, which, head):
    """The index of a slot's first element in the pages; which = 0 for keys, 1 for values."""
    slot = T.bind(index64(slot))
    page, offset = T.floordiv(slot, T.int64(PAGE_SIZE)), T.floormod(slot, T.int64(PAGE_SIZE))
    return page, index64(which), index64(head), offset, T.int64(0)


def declare_length_info(handle, batch_size, sliding: bool, offset):
    """`[b]`, the number of keys in each last page; or for sliding kernels `[3, b]`: that number, the offset of the
    window's first key in the pages, and the number of keys of the attention sink before it."""
    shape = (3, batch_size) if sliding else (batch_size,)
    return T.match_buffer(handle, shape, "int32", elem_offset=offset)


@dataclass(frozen=True)
class PagedKeys:
    """The pages of a batch: sequence b has the pages `page_values[page_indptr[b] : page_indptr[b + 1]]`."""

    pages: Expr
    page_indptr: Expr
    page_values: Expr
    length_info: Expr
    sliding: bool

    def length(self, sequence):
        """How many keys the sequence has that may be attended to."""
        pages = T.bind(self.page_indptr[sequence + 1] - self.page_indptr[sequence])
        if self.sliding:
            last, offset, sink = (self.length_info[i, sequence] for i in range(3))
            rest = last - offset + sink
        else:
            rest = self.length_info[sequence]
        return settled(T.Select(pages > 0, (pages - 1) * PAGE_SIZE + rest, 0))

    def index(self, sequence, key, which, head):
        """The index of a key's (which = 0) or value's (which = 1) first element. The sink's keys come first, then the
        window's, which starts `offset` slots into the pages."""
        if self.sliding:
            _, offset, sink = (self.length_info[i, sequence] for i in range(3))
            key = settled(T.Select(key < sink, key, key - sink + offset))
        page = T.bind(self.page_values[self.page_indptr[sequence] + T.floordiv(key, PAGE_SIZE)])
        return index64(page), index64(which), index64(head), index64(T.floormod(key, PAGE_SIZE)), T.int64(0)


def transpose_append(num_kv_heads: int, head_dim: int, dtype: str, unit: VectorUnit):
    """PrimFunc(pages, k [n, kv heads, d], v, position_map [n]): store the new tokens."""
    unit = unit.dividing(head_dim)

    def token(t, pages, k, v, position_map):
        slot = T.bind(position_map[t])
        with T.If(slot >= 0), T.Then(), T.serial(num_kv_heads) as h:
            copy(unit, pages, page_index(slot, 0, h), k, (t, h, 0), head_dim)
            copy(unit, pages, page_index(slot, 1, h), v, (t, h, 0), head_dim)

    @T.prim_func(s_tir=True)
    def kv_cache_transpose_append(
        pages_handle: T.handle, k_handle: T.handle, v_handle: T.handle, position_map_handle: T.handle
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        num_pages = T.int64()
        position_map_offset = T.int32()
        pages = T.match_buffer(pages_handle, (num_pages, 2, num_kv_heads, PAGE_SIZE, head_dim), dtype)
        k = T.match_buffer(k_handle, (n, num_kv_heads, head_dim), dtype)
        v = T.match_buffer(v_handle, (n, num_kv_heads, head_dim), dtype)
        position_map = T.match_buffer(position_map_handle, (n,), "int32", elem_offset=position_map_offset)
        with T.sblock("root"):
            if n < 64:
                for t in T.serial(n):
                    token(t, pages, k, v, position_map)
            else:
                for t in T.parallel(n):
                    token(t, pages, k, v, position_map)

    return kv_cache_transpose_append


def copy_single_page(num_kv_heads: int, head_dim: int, dtype: str, unit: VectorUnit):
    """PrimFunc(pages, source page, target page, copy_length): copy the first slots of a page (a fork inside it)."""
    unit = unit.dividing(head_dim)

    def slot(pages, source, target, which, head, offset):
        copy(unit, pages, (target, which, head, offset, 0), pages, (source, which, head, offset, 0), head_dim)

    @T.prim_func(s_tir=True)
    def kv_cache_copy_single_page(pages_handle: T.handle, source: T.int64, target: T.int64, copy_length: T.int64):
        T.func_attr({"tirx.is_scheduled": True})
        num_pages = T.int64()
        pages = T.match_buffer(pages_handle, (num_pages, 2, num_kv_heads, PAGE_SIZE, head_dim), dtype)
        with T.sblock("root"):
            for which, head, offset in T.grid(T.int64(2), T.int64(num_kv_heads), copy_length):
                slot(pages, source, target, which, head, offset)

    return kv_cache_copy_single_page


def compact_kv_copy(num_kv_heads: int, head_dim: int, dtype: str, unit: VectorUnit):
    """PrimFunc(pages, indptr [b + 1], source and target slots [2, n], b): move the accepted nodes of token trees.

    A target slot may be the source slot of a later copy of its sequence: they are done in order.
    """
    unit = unit.dividing(head_dim)

    def slots(pages, source, target):
        with T.grid(2, num_kv_heads) as (which, head):
            copy(unit, pages, page_index(target, which, head), pages, page_index(source, which, head), head_dim)

    @T.prim_func(s_tir=True)
    def kv_cache_compact_kv_copy(
        pages_handle: T.handle, indptr_handle: T.handle, slots_handle: T.handle, batch_size: T.int32
    ):
        T.func_attr({"tirx.is_scheduled": True})
        num_pages = T.int64()
        total = T.int32()
        indptr_offset = T.int32()
        slots_offset = T.int32()
        pages = T.match_buffer(pages_handle, (num_pages, 2, num_kv_heads, PAGE_SIZE, head_dim), dtype)
        indptr = T.match_buffer(indptr_handle, (batch_size + 1,), "int32", elem_offset=indptr_offset)
        moves = T.match_buffer(slots_handle, (2, total), "int32", elem_offset=slots_offset)
        with T.sblock("root"):
            for i in T.serial(indptr[batch_size]):
                slots(pages, moves[0, i], moves[1, i])

    return kv_cache_compact_kv_copy


def debug_get_kv(num_layers: int, num_kv_heads: int, head_dim: int, dtype: str, unit: VectorUnit):
    """PrimFunc(pages, position_map [n], k [layers, n, kv heads, d], v, layer): read tokens back."""
    unit = unit.dividing(head_dim)

    def token(t, h, pages, position_map, k, v, layer):
        slot = T.bind(position_map[t])
        copy(unit, k, (layer, t, h, T.int64(0)), pages, page_index(slot, 0, h), head_dim)
        copy(unit, v, (layer, t, h, T.int64(0)), pages, page_index(slot, 1, h), head_dim)

    @T.prim_func(s_tir=True)
    def kv_cache_debug_get_kv(
        pages_handle: T.handle, position_map_handle: T.handle, k_handle: T.handle, v_handle: T.handle, layer: T.int64
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int64()
        num_pages = T.int64()
        position_map_offset = T.int64()
        pages = T.match_buffer(pages_handle, (num_pages, 2, num_kv_heads, PAGE_SIZE, head_dim), dtype)
        position_map = T.match_buffer(position_map_handle, (n,), "int32", elem_offset=position_map_offset)
        k = T.match_buffer(k_handle, (num_layers, n, num_kv_heads, head_dim), dtype)
        v = T.match_buffer(v_handle, (num_layers, n, num_kv_heads, head_dim), dtype)
        with T.sblock("root"):
            for t, h in T.grid(n, T.int64(num_kv_heads)):
                token(t, h, pages, position_map, k, v, layer)

    return kv_cache_debug_get_kv
