"""Prefill attention on the CPU: any number of new tokens of each sequence, which are stored on the way.

Three parallel loops: over new tokens (rotate and store keys), over heads and blocks of keys (pages to panels), over
heads and tiles of rows (attention). The panels of one layer are as large as its part of the pages.
"""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel, parallel
from .attention_panels import KEY_BLOCK, Panels, Tile, fill_panels
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
from .flash import LOG2_E
from .kv_pages import PAGE_SIZE, PagedKV
from .rope import Rotation, emit_angles
from .vector import Expr, settled, span


def prefill_attention(tile: Tile, rotation: Rotation, num_layers: int, window: int | None = None) -> tirx.PrimFunc:
    """PrimFunc with the arguments of kv_cache.py, qkv `[n, fused width]` and out `[n, q heads * head_dim]` in float32.
    With a `window` a token sees at most so many keys, its own among them."""
    with kernel("prefill_attention") as k:
        prefill = _Prefill(k, tile, rotation, num_layers, window)
        with k.body():
            prefill.body()
    return k.function


class _Prefill:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(self, k, tile: Tile, rotation: Rotation, num_layers: int, window: int | None) -> None:
        shape = tile.shape
        self.tile, self.rotation, self.window = tile, rotation, window
        self.tokens, self.batch = T.int32(), T.int32()
        self.qkv = k.input("qkv", (self.tokens, shape.fused_width), "float32")
        self.paged = PagedKV.declare(k, shape, num_layers, self.tokens, self.batch)
        self.out = k.input("out", (self.tokens, shape.num_q_heads * shape.head_dim), "float32")

    def body(self) -> None:
        half, heads = len(self.rotation.frequencies), self.tile.shape.num_kv_heads
        self.angles = tuple(T.sblock_alloc_buffer((self.tokens, half), "float32") for _ in range(2))
        self.panels = Panels.allocate(self.tile, self.paged.pages.shape[0])
        with parallel(self.tokens) as token:
            self._store_token(T.bind(token))
        blocks = self._count(self._blocks)
        with parallel(blocks * heads) as item:
            item = T.bind(item)
            sequence, block = self._find(T.bind(item % blocks), self._blocks)
            block = T.bind(self._first_block(sequence) + block)
            fill_panels(self.tile, self.paged, self.panels, T.bind(item // blocks), sequence, block)
        tiles = self._count(self._tiles)
        with parallel(tiles * heads) as item:
            item = T.bind(item)
            turn = T.bind(item % tiles)
            # Later tiles of a sequence see more keys. Tiles are taken alternately from both ends, so that the
            # contiguous ranges which the threads get cost the same.
            turn = T.bind(T.Select(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2))
            sequence, index = self._find(turn, self._tiles)
            self._attend(T.bind(item // tiles), sequence, index)

    def _store_token(self, token: Expr) -> None:
        """Store a token's keys and values, and the cosines and sines of its angles for its queries."""
        shape, half = self.tile.shape, len(self.rotation.frequencies)
        lanes = self.rotation.unit(shape.vectors).lanes
        cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
        emit_angles(self.rotation, shape.vectors, self.paged.positions[token], cosines, sines)
        for table, values in zip(self.angles, (cosines, sines), strict=True):
            for d in range(0, half, lanes):
                T.buffer_store(table, values[span(d, lanes)], [token, span(d, lanes)])
        with T.serial(shape.num_kv_heads) as head:
            key = (shape.num_q_heads + head) * shape.head_dim
            value = key + shape.num_kv_heads * shape.head_dim
            self.paged.store_token(
                self.rotation, token, head, (self.qkv, (token, key)), (self.qkv, (token, value)), cosines, sines
            )

    def _attend(self, head: Expr, sequence: Expr, index: Expr) -> None:
        """Attention of one tile of rows."""
        tile = self.tile
        rows = Rows.allocate(tile)
        self._choose_rows(rows, head, sequence, index)
        load_queries(tile, self.rotation, self.qkv, self.angles, rows, tile.shape.head_dim**-0.5 * LOG2_E)
        rows.clear(tile)
        lowest, highest = T.bind(rows.last[0]), T.bind(rows.last[tile.rows - 1])
        end = T.bind(highest + 1)
        begin = T.int32(0) if self.window is None else settled(T.max(lowest - self.window + 1, 0) // KEY_BLOCK)
        panel = T.bind(self.paged.page_starts[sequence] * PAGE_SIZE)
        with T.serial(T.ceildiv(end, KEY_BLOCK) - begin) as block:
            start = T.bind((begin + block) * KEY_BLOCK)
            count = settled((T.min(end - start, KEY_BLOCK) + tile.height - 1) // tile.height * tile.height)
            partial = start + count - 1 > lowest
            if self.window is not None:
                partial = tirx.any(partial, start <= highest - self.window)
            self._attend_block(rows, head, start, T.bind(panel + start), count, settled(T.cast(partial, "int32")))
        store_output(tile, rows, self.out)

    def _attend_block(self, rows: Rows, head: Expr, start: Expr, first: Expr, count: Expr, partial: Expr) -> None:
        """One block of `count` keys: key `start` of the sequence is row `first` of the panels. `partial`: whether some
        rows do not see every key."""
        tile, panels = self.tile, self.panels

        def sees(place: Expr, j: Expr) -> Expr:
            return visible(rows, place, tile.lanes, start + j, self.window)

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

    def _choose_rows(self, rows: Rows, head: Expr, sequence: Expr, index: Expr) -> None:
        """Rows are numbered `token * group + query head of the group`. Those past the end of a sequence repeat its
        last one, and so write the same again."""
        shape, count = self.tile.shape, self.tile.rows
        first_row, last_row = T.bind(index * count), T.bind(self._new_tokens(sequence) * shape.group - 1)
        past = T.bind(self._past(sequence))
        with T.serial(count) as i:
            row = settled(T.min(first_row + i, last_row))
            token = T.bind(row // shape.group)
            T.buffer_store(rows.token, self.paged.query_starts[sequence] + token, [i])
            T.buffer_store(rows.column, (head * shape.group + row % shape.group) * shape.head_dim, [i])
            T.buffer_store(rows.last, past + token, [i])

    def _new_tokens(self, sequence: Expr) -> Expr:
        starts = self.paged.query_starts
        return starts[sequence + 1] - starts[sequence]

    def _past(self, sequence: Expr) -> Expr:
        """How many tokens the sequence has before the new ones."""
        return self.paged.lengths[sequence] - self._new_tokens(sequence)

    def _tiles(self, sequence: Expr) -> Expr:
        return T.ceildiv(self._new_tokens(sequence) * self.tile.shape.group, self.tile.rows)

    def _first_block(self, sequence: Expr) -> Expr:
        """The block of the first key that a new token sees."""
        if self.window is None:
            return T.int32(0)
        return T.max(self._past(sequence) + 1 - self.window, 0) // KEY_BLOCK

    def _blocks(self, sequence: Expr) -> Expr:
        return T.ceildiv(self.paged.lengths[sequence], KEY_BLOCK) - self._first_block(sequence)

    def _count(self, items: Callable[[Expr], Expr]) -> Expr:
        """How many items the sequences with new tokens have."""
        total = T.alloc_buffer((1,), "int32")
        T.buffer_store(total, T.int32(0), [0])
        with T.serial(self.batch) as sequence, T.If(self._new_tokens(sequence) > 0), T.Then():
            T.buffer_store(total, total[0] + items(sequence), [0])
        return settled(total[0])

    def _find(self, turn: Expr, items: Callable[[Expr], Expr]) -> tuple[Expr, Expr]:
        """The sequence of an item, and the item's number in it."""
        left, found = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
        T.buffer_store(left, turn, [0])
        T.buffer_store(found, T.int32(-1), [0])
        with T.serial(self.batch) as sequence:
            waiting = tirx.all(found[0] < 0, self._new_tokens(sequence) > 0)
            with T.If(waiting), T.Then():
                count = T.bind(items(sequence))
                with T.If(left[0] < count):
                    with T.Then():
                        T.buffer_store(found, sequence, [0])
                    with T.Else():
                        T.buffer_store(left, left[0] - count, [0])
        return settled(found[0]), settled(left[0])
