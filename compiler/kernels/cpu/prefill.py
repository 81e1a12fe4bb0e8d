# mypy: ignore-errors
"""Prefill attention on the CPU: many queries of each sequence over new tokens (ragged) or over pages.

The signatures are those of TVM's paged KV cache (src/runtime/vm/attn_backend.h); `rope_scale` and `rope_theta` are not
read, since the kernels carry their own frequencies.
"""

from collections.abc import Callable
from dataclasses import dataclass

from tvm.script import tirx as T

from .flash import (
    KEY_BLOCK,
    HeadShape,
    RowState,
    add_values,
    score_by_columns,
    softmax_row,
    stage_rotated_rows,
    stage_rows,
    stage_transposed,
)
from .kv_pages import PAGE_SIZE, PagedKeys, declare_length_info
from .queries import Queries, either, load_queries
from .rope import Rotation
from .vector import Expr, log2, settled, span, splat, store

TILE_ROWS = 96  # rows that share one staging of a block of keys: enough to hide it, few enough for the L1 cache


@dataclass(frozen=True)
class Keys:
    """Where the keys of one sequence and head are: buffer and index of key j, of value j, position of key j."""

    key: Callable[[Expr], tuple[Expr, tuple[Expr, ...]]]
    value: Callable[[Expr], tuple[Expr, tuple[Expr, ...]]]
    position: Callable[[Expr], Expr]


def tokens_of_tile(shape: HeadShape) -> int:
    """Tokens whose rows make one tile."""
    return max(1, TILE_ROWS // shape.group)


def _count_tiles(shape: HeadShape, q_indptr):
    """How many tiles of tokens the batch has."""
    tiles = T.alloc_buffer((1,), "int32")
    T.buffer_store(tiles, T.int32(0), [0])
    with T.serial(q_indptr.shape[0] - 1) as b:
        T.buffer_store(tiles, tiles[0] + T.ceildiv(q_indptr[b + 1] - q_indptr[b], tokens_of_tile(shape)), [0])
    return settled(tiles[0])


def _find_tile(shape: HeadShape, item, tiles, q_indptr):
    """The sequence and the tile within it of a work item.

    Later tiles of a causal sequence see more keys. Tiles are taken alternately from both ends, so that the contiguous
    ranges which the threads get cost the same.
    """
    turn = T.bind(T.floormod(item, tiles))
    left, sequence = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
    T.buffer_store(left, T.Select(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2), [0])
    T.buffer_store(sequence, T.int32(-1), [0])
    with T.serial(q_indptr.shape[0] - 1) as b:
        count = T.bind(T.ceildiv(q_indptr[b + 1] - q_indptr[b], tokens_of_tile(shape)))
        with T.If(sequence[0] < 0), T.Then(), T.If(left[0] < count):
            with T.Then():
                T.buffer_store(sequence, b, [0])
            with T.Else():
                T.buffer_store(left, left[0] - count, [0])
    return settled(sequence[0]), settled(left[0])


def _attend_tile(shape, rotation, queries: Queries, keys: Keys, bounds, first, count, head):
    """Attention of `count` tokens from row `first` of q on, for the query heads of one key head.

    `bounds(t)` yields the keys low <= key < high that token t of the tile sees; both grow with t.
    """
    group, unit, dim, tile_rows = shape.group, shape.vectors, shape.head_dim, shape.tile_rows
    rows = -(-tokens_of_tile(shape) * group // tile_rows) * tile_rows
    query_rows = T.alloc_buffer((rows, dim), "float32")
    key_rows, key_columns = T.alloc_buffer((KEY_BLOCK, dim), "float32"), T.alloc_buffer((dim, KEY_BLOCK), "float32")
    values, scores = T.alloc_buffer((KEY_BLOCK, dim), "float32"), T.alloc_buffer((tile_rows, KEY_BLOCK), "float32")
    state = RowState.allocate(shape, rows)
    used = T.bind(count * group)
    tiles = T.bind(T.ceildiv(used, tile_rows))
    state.clear(shape, tiles * tile_rows)
    load_queries(shape, rotation, queries, first, count, head, query_rows)
    with T.serial(tiles * tile_rows - used) as row:  # rows that fill the last register tile
        for d in range(0, dim, unit.lanes):
            store(unit, query_rows, splat(T.float32(0), unit.lanes), used + row, d)
    begin = settled(bounds(0)[0] // KEY_BLOCK * KEY_BLOCK)
    end = settled(bounds(count - 1)[1])
    with T.serial(T.ceildiv(T.max(end - begin, 0), KEY_BLOCK)) as block:
        start = T.bind(begin + block * KEY_BLOCK)
        present = settled(T.min(end - start, KEY_BLOCK))

        def staged_key(j, start=start):
            return keys.key(start + j)

        def position(j, start=start):
            return keys.position(start + j)

        either(
            rotation,
            queries.rotary_mode,
            lambda count=present: stage_rotated_rows(rotation, unit, count, staged_key, position, key_rows),
            lambda count=present: stage_rows(unit, dim, count, staged_key, key_rows),
        )
        stage_transposed(unit, dim, present, key_rows, key_columns)
        stage_rows(unit, dim, present, lambda j, start=start: keys.value(start + j), values)
        with T.serial(tiles) as tile:
            row = T.bind(tile * tile_rows)
            seen = settled(T.min(bounds((row + tile_rows - 1) // group)[1] - start, present))
            with T.If(seen > 0), T.Then():
                score_by_columns(shape, seen, query_rows, row, key_columns, scores)
                with T.serial(tile_rows) as r:
                    low, high = bounds((row + r) // group)
                    softmax_row(shape, scores, r, state, row + r, settled(low - start), settled(high - start))
                add_values(
                    shape, tile_rows, seen, scores, 0, state, row, lambda k, d: T.bind(values[k, span(d, unit.lanes)])
                )
    with T.serial(used) as row:
        _store_row(shape, state, row, queries, (first + row // group, head * group + row % group))


def _store_row(shape, state, row, queries: Queries, index):
    unit = shape.vectors
    total = state.weight_sum(shape, row)
    inverse = T.bind(splat(T.float32(1) / total, unit.lanes))
    for d in range(0, shape.head_dim, unit.lanes):
        store(unit, queries.output, state.output[row, span(d, unit.lanes)] * inverse, *index, d)
    T.buffer_store(queries.lse, state.maximum[row] + log2(total), list(index))


def prefill_ragged(shape: HeadShape, rotation: Rotation | None, window: int | None = None):
    """PrimFunc: attention of new tokens to the new tokens of their sequence.

    q `[n, q heads, d]`, k and v `[m, kv heads, d]`; `q_indptr`, `kv_indptr` `[b + 1]` bound the sequences; a causal
    query sees the keys up to its own, at most the last `window` of them. Output like q, lse `[n, q heads]` in base 2.
    """
    heads, kv_heads, dim, dtype = shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.dtype

    def count(q_indptr):
        return _count_tiles(shape, q_indptr)

    def work(item, tiles, queries, q_indptr, k, v, kv_indptr, offsets):
        sequence, tile = _find_tile(shape, item, tiles, q_indptr)
        head, kv_begin = settled(item // tiles), T.bind(kv_indptr[sequence])
        q_length = T.bind(q_indptr[sequence + 1] - q_indptr[sequence])
        kv_length = T.bind(kv_indptr[sequence + 1] - kv_begin)
        first = T.bind(tile * tokens_of_tile(shape))

        def bounds(t):
            high = T.Select(queries.causal > 0, kv_length - q_length + first + t + 1, kv_length)
            return (T.max(high - window, 0) if window else T.int32(0)), high

        keys = Keys(
            lambda j: (k, (kv_begin + j, head, 0)),
            lambda j: (v, (kv_begin + j, head, 0)),
            lambda j: offsets[sequence] + j,
        )
        tokens = settled(T.min(q_length - first, tokens_of_tile(shape)))
        _attend_tile(shape, rotation, queries, keys, bounds, T.bind(q_indptr[sequence] + first), tokens, head)

    @T.prim_func(s_tir=True)
    def batch_prefill_ragged_kv(
        q_handle: T.handle,
        q_indptr_handle: T.handle,
        k_handle: T.handle,
        v_handle: T.handle,
        kv_indptr_handle: T.handle,
        positions_handle: T.handle,
        offsets_handle: T.handle,
        output_handle: T.handle,
        lse_handle: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        batch_size = T.int32()
        n = T.int32()
        m = T.int32()
        q_indptr_offset = T.int32()
        kv_indptr_offset = T.int32()
        positions_offset = T.int32()
        offsets_offset = T.int32()
        q = T.match_buffer(q_handle, (n, heads, dim), dtype)
        q_indptr = T.match_buffer(q_indptr_handle, (batch_size + 1,), "int32", elem_offset=q_indptr_offset)
        k = T.match_buffer(k_handle, (m, kv_heads, dim), dtype)
        v = T.match_buffer(v_handle, (m, kv_heads, dim), dtype)
        kv_indptr = T.match_buffer(kv_indptr_handle, (batch_size + 1,), "int32", elem_offset=kv_indptr_offset)
        positions = T.match_buffer(positions_handle, (n,), "int32", elem_offset=positions_offset)
        offsets = T.match_buffer(offsets_handle, (batch_size,), "int32", elem_offset=offsets_offset)
        output = T.match_buffer(output_handle, (n, heads, dim), dtype)
        lse = T.match_buffer(lse_handle, (n, heads), "float32")
        with T.sblock("root"):
            tiles: T.let[T.int32] = count(q_indptr)
            for item in T.parallel(kv_heads * tiles):
                queries = T.meta_var(Queries(q, positions, output, lse, causal, rotary_mode, sm_scale))
                work(item, tiles, queries, q_indptr, k, v, kv_indptr, offsets)

    return batch_prefill_ragged_kv


def prefill_paged(shape: HeadShape, rotation: Rotation | None = None, window: int | None = None):
    """PrimFunc: attention of new tokens to the pages of their sequence, which do not hold the new tokens yet.

    With a `window` it is the sliding kernel: `length_info` is `[3, b]`, and a causal token t sees only those of the
    keys that are at most `window - 1` positions before it.
    """
    heads, kv_heads, dim, dtype = shape.num_q_heads, shape.num_kv_heads, shape.head_dim, shape.dtype

    def count(q_indptr):
        return _count_tiles(shape, q_indptr)

    def work(item, tiles, queries, q_indptr, paged: PagedKeys, offsets):
        sequence, tile = _find_tile(shape, item, tiles, q_indptr)
        head = settled(item // tiles)
        q_length = T.bind(q_indptr[sequence + 1] - q_indptr[sequence])
        kv_length = paged.length(sequence)
        first = T.bind(tile * tokens_of_tile(shape))

        def bounds(t):
            if window:
                past = T.max(window - (first + t) - 1, 0)
                return T.Select(queries.causal > 0, T.max(kv_length - past, 0), 0), kv_length
            return T.int32(0), T.Select(queries.causal > 0, kv_length - q_length + first + t + 1, kv_length)

        keys = Keys(
            lambda j: (paged.pages, paged.index(sequence, j, 0, head)),
            lambda j: (paged.pages, paged.index(sequence, j, 1, head)),
            lambda j: offsets[sequence] + j,
        )
        tokens = settled(T.min(q_length - first, tokens_of_tile(shape)))
        _attend_tile(shape, rotation, queries, keys, bounds, T.bind(q_indptr[sequence] + first), tokens, head)

    @T.prim_func(s_tir=True)
    def batch_prefill_paged_kv(
        q_handle: T.handle,
        q_indptr_handle: T.handle,
        pages_handle: T.handle,
        page_indptr_handle: T.handle,
        page_values_handle: T.handle,
        length_info_handle: T.handle,
        offsets_handle: T.handle,
        positions_handle: T.handle,
        output_handle: T.handle,
        lse_handle: T.handle,
        causal: T.int32,
        rotary_mode: T.int32,
        rope_scale: T.float32,
        rope_theta: T.float32,
        sm_scale: T.float32,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        batch_size = T.int32()
        n = T.int32()
        used_pages = T.int32()
        num_pages = T.int64()
        q_indptr_offset = T.int32()
        page_indptr_offset = T.int32()
        page_values_offset = T.int32()
        length_info_offset = T.int32()
        positions_offset = T.int32()
        offsets_offset = T.int32()
        q = T.match_buffer(q_handle, (n, heads, dim), dtype)
        q_indptr = T.match_buffer(q_indptr_handle, (batch_size + 1,), "int32", elem_offset=q_indptr_offset)
        pages = T.match_buffer(pages_handle, (num_pages, 2, kv_heads, PAGE_SIZE, dim), dtype)
        page_indptr = T.match_buffer(page_indptr_handle, (batch_size + 1,), "int32", elem_offset=page_indptr_offset)
        page_values = T.match_buffer(page_values_handle, (used_pages,), "int32", elem_offset=page_values_offset)
        length_info = declare_length_info(length_info_handle, batch_size, window is not None, length_info_offset)
        offsets = T.match_buffer(offsets_handle, (batch_size,), "int32", elem_offset=offsets_offset)
        positions = T.match_buffer(positions_handle, (n,), "int32", elem_offset=positions_offset)
        output = T.match_buffer(output_handle, (n, heads, dim), dtype)
        lse = T.match_buffer(lse_handle, (n, heads), "float32")
        with T.sblock("root"):
            tiles: T.let[T.int32] = count(q_indptr)
            for item in T.parallel(kv_heads * tiles):
                queries = T.meta_var(Queries(q, positions, output, lse, causal, rotary_mode, sm_scale))
                paged = T.meta_var(PagedKeys(pages, page_indptr, page_values, length_info, window is not None))
                work(item, tiles, queries, q_indptr, paged, offsets)

    return batch_prefill_paged_kv
