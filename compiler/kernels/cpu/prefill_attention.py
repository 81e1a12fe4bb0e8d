"""Prefill attention on the CPU: new tokens of several sequences, many queries each, over their pages.

Three parallel loops: over new tokens (rotate keys, append), over heads and blocks of keys (pages to panels), over
heads and tiles of rows (attention). The panels of one layer are as large as its part of the pages.
"""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel, parallel
from .attention_dot import Products
from .attention_panels import KEY_BLOCK, Batch, Panels, Tile, append_token, fill_panels
from .attention_rows import (
    Rows,
    add_values,
    find_visible_peaks,
    load_queries,
    score,
    start_block,
    store_output,
    visible,
    weigh,
)
from .flash import LOG2_E, HeadShape
from .kv_pages import PAGE_SIZE
from .rope import Rotation
from .vector import Expr, settled


def prefill_attention(
    shape: HeadShape, rotation: Rotation, scale: float, products: Products, window: int | None = None
) -> tirx.PrimFunc:
    """PrimFunc: append new tokens to their pages, then let each attend to the keys of its sequence up to itself, with
    `window` to at most that many.

    `qkv [n, (q heads + 2 kv heads) * head_dim]` float32, not rotated; `layer` int64; `positions`, `slots [n]`;
    `query_starts`, `page_starts [b + 1]`, `pages [used]`, `lengths [b]` (new tokens included): int32;
    `kv [pages, layers, 2, kv heads, 16, head_dim]` of shape.dtype, and for int8 `kv_scales` without the last axis,
    float32; `out [n, q heads * head_dim]` float32. Scores are multiplied by `scale`. The tokens of a sequence are the
    last of it, in order.
    """
    heads, kv_heads, dim = shape.num_q_heads, shape.num_kv_heads, shape.head_dim
    tile = Tile(shape, products)
    with kernel("prefill_attention") as k:
        n, b, used, num_pages, layers = (T.int32() for _ in range(5))
        qkv = k.input("qkv", (n, (heads + 2 * kv_heads) * dim), "float32")
        layer = T.arg("layer", T.int64())
        per_token = [k.input(name, (n,), "int32") for name in ("positions", "slots")]
        starts = [k.input(name, (b + 1,), "int32") for name in ("query_starts", "page_starts")]
        pages, lengths = k.input("pages", (used,), "int32"), k.input("lengths", (b,), "int32")
        kv = k.input("kv", (num_pages, layers, 2, kv_heads, PAGE_SIZE, dim), shape.dtype)
        kv_scales = None
        if shape.dtype == "int8":
            kv_scales = k.input("kv_scales", (num_pages, layers, 2, kv_heads, PAGE_SIZE), "float32")
        out = k.input("out", (n, heads * dim), "float32")
        batch = Batch(qkv, layer, *per_token, *starts, pages, lengths, kv, kv_scales, out)
        with k.body():
            half = len(rotation.frequencies)
            angles = T.sblock_alloc_buffer((n, half), "float32"), T.sblock_alloc_buffer((n, half), "float32")
            panels = Panels.allocate(tile, used)
            with parallel(n) as t:
                append_token(tile, rotation, batch, angles, T.bind(t))

            def first_block(s: Expr) -> Expr:
                return T.int32(0) if window is None else _first_seen(batch, s, window) // KEY_BLOCK

            def blocks(s: Expr) -> Expr:
                return T.ceildiv(batch.lengths[s], KEY_BLOCK) - first_block(s)

            total = _count(batch, blocks)
            with parallel(total * kv_heads) as item:
                item = T.bind(item)
                sequence, block = _find(batch, T.bind(item % total), blocks)
                fill_panels(tile, batch, panels, T.bind(item // total), sequence, T.bind(first_block(sequence) + block))
            _attend(tile, rotation, batch, angles, panels, scale, window)
    return k.function


def _attend(tile: Tile, rotation: Rotation, batch: Batch, angles, panels: Panels, scale: float, window) -> None:
    def tiles(s: Expr) -> Expr:
        return T.ceildiv(_new_tokens(batch, s) * tile.shape.group, tile.rows)

    total = _count(batch, tiles)
    with parallel(total * tile.shape.num_kv_heads) as item:
        item = T.bind(item)
        turn = T.bind(item % total)
        # Later tiles of a sequence see more keys. Tiles are taken alternately from both ends, so that the contiguous
        # ranges which the threads get cost the same.
        turn = T.bind(T.Select(turn % 2 == 0, turn // 2, total - 1 - turn // 2))
        sequence, index = _find(batch, turn, tiles)
        rows = Rows.allocate(tile)
        head = T.bind(item // total)
        _choose_rows(tile, batch, rows, head, sequence, index)
        load_queries(tile, rotation, batch, angles, rows, scale * LOG2_E)
        rows.clear(tile)
        _attend_tile(tile, batch, panels, rows, head, sequence, window)
        store_output(tile, batch, rows)


def _choose_rows(tile: Tile, batch: Batch, rows: Rows, head: Expr, sequence: Expr, index: Expr) -> None:
    """Rows are numbered `token * group + query head of the group`. Those past the end of a sequence repeat its last
    one, and so write the same again."""
    group = tile.shape.group
    first_row = T.bind(index * tile.rows)
    last_row = T.bind(_new_tokens(batch, sequence) * group - 1)
    with T.serial(tile.rows) as i:
        row = settled(T.min(first_row + i, last_row))
        token = T.bind(batch.query_starts[sequence] + row // group)
        T.buffer_store(rows.token, token, [i])
        T.buffer_store(rows.column, (head * group + row % group) * tile.shape.head_dim, [i])
        T.buffer_store(rows.last, batch.positions[token], [i])


def _attend_tile(tile: Tile, batch: Batch, panels: Panels, rows: Rows, head: Expr, sequence: Expr, window) -> None:
    lowest, highest = T.bind(rows.last[0]), T.bind(rows.last[tile.rows - 1])
    end = settled(T.min(highest + 1, batch.lengths[sequence]))
    begin = settled(T.int32(0) if window is None else T.max(lowest - window + 1, 0) // KEY_BLOCK)
    panel = T.bind(batch.page_starts[sequence] * PAGE_SIZE)
    with T.serial(T.ceildiv(end, KEY_BLOCK) - begin) as block:
        start = T.bind((begin + block) * KEY_BLOCK)
        first = T.bind(panel + start)
        count = settled((T.min(end - start, KEY_BLOCK) + tile.height - 1) // tile.height * tile.height)
        partial = start + count - 1 > lowest
        if window is not None:
            partial = tirx.any(partial, start <= highest - window)
        partial = settled(T.cast(partial, "int32"))

        def sees(place: Expr, j: Expr, start: Expr = start) -> Expr:
            return visible(rows, place, tile.lanes, start + j, window)

        score(tile, panels, rows, head, first, count)
        with T.If(partial > 0), T.Then():
            find_visible_peaks(tile, rows, count, sees)
        start_block(tile, panels, rows, head, first)
        with T.If(partial > 0):
            with T.Then():
                weigh(tile, rows, count, sees)
            with T.Else():
                weigh(tile, rows, count)
        add_values(tile, panels, rows, head, first, count)


def _new_tokens(batch: Batch, sequence: Expr) -> Expr:
    return batch.query_starts[sequence + 1] - batch.query_starts[sequence]


def _first_seen(batch: Batch, sequence: Expr, window: int) -> Expr:
    """The first key that a new token of a sequence sees."""
    return T.max(batch.lengths[sequence] - _new_tokens(batch, sequence) + 1 - window, 0)


def _count(batch: Batch, items: Callable[[Expr], Expr]) -> Expr:
    """How many items the sequences with new tokens have."""
    total = T.alloc_buffer((1,), "int32")
    T.buffer_store(total, T.int32(0), [0])
    with T.serial(batch.lengths.shape[0]) as s, T.If(_new_tokens(batch, s) > 0), T.Then():
        T.buffer_store(total, total[0] + items(s), [0])
    return settled(total[0])


def _find(batch: Batch, turn: Expr, items: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
    """The sequence of an item, and the item's number in it."""
    left, sequence = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
    T.buffer_store(left, turn, [0])
    T.buffer_store(sequence, T.int32(-1), [0])
    with T.serial(batch.lengths.shape[0]) as s, T.If(tirx.all(sequence[0] < 0, _new_tokens(batch, s) > 0)), T.Then():
        count = T.bind(items(s))
        with T.If(left[0] < count):
            with T.Then():
                T.buffer_store(sequence, s, [0])
            with T.Else():
                T.buffer_store(left, left[0] - count, [0])
    return settled(sequence[0]), settled(left[0])
