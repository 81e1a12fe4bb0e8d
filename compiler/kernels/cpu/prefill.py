# mypy: ignore-errors
"""Prefill attention on the CPU: any number of new tokens of each sequence, which are stored on the way.

First all new keys and values go to their pages. Then each work item takes a tile of tokens and one key head, and goes
over the pages in blocks of keys that the rows of the tile share.
"""

from tvm.script import tirx as T

from ..builder import kernel
from .flash import (
    KEY_BLOCK,
    HeadShape,
    RowState,
    add_values,
    score_by_columns,
    softmax_row,
    stage_transposed,
)
from .kv_pages import KEY, VALUE, PagedKV
from .queries import load_queries
from .rope import Rotation, emit_angles
from .vector import settled, span, splat, store

TILE_ROWS = 96  # rows that share one staging of a block of keys: enough to hide it, few enough for the L1 cache


class _Prefill:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(self, k, shape: HeadShape, rotation: Rotation, num_layers: int, window: int | None) -> None:
        self.shape, self.rotation, self.window = shape, rotation, window
        self.tile_tokens = max(1, TILE_ROWS // shape.group)
        self.tokens, self.batch = T.int32(), T.int32()
        self.qkv = k.input("qkv", (self.tokens, shape.fused_width), "float32")
        self.paged = PagedKV.declare(k, shape, num_layers, self.tokens, self.batch)
        self.out = k.input("out", (self.tokens, shape.num_q_heads * shape.head_dim), "float32")

    def body(self) -> None:
        with T.parallel(self.tokens) as token:
            self._store_token(token)
        tiles = self._count_tiles()
        with T.parallel(self.shape.num_kv_heads * tiles) as item:
            sequence, tile = self._find_tile(item, tiles)
            self._attend_tile(sequence, settled(tile * self.tile_tokens), settled(item // tiles))

    def _angles(self, token):
        half = len(self.rotation.frequencies)
        cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
        emit_angles(self.rotation, self.shape.vectors, self.paged.positions[token], cosines, sines)
        return cosines, sines

    def _store_token(self, token) -> None:
        shape = self.shape
        cosines, sines = self._angles(token)
        with T.serial(shape.num_kv_heads) as head:
            key = (shape.num_q_heads + head) * shape.head_dim
            value = key + shape.num_kv_heads * shape.head_dim
            self.paged.store_token(
                self.rotation, token, head, (self.qkv, (token, key)), (self.qkv, (token, value)), cosines, sines
            )

    def _new_tokens(self, sequence):
        starts = self.paged.query_starts
        return T.bind(starts[sequence + 1] - starts[sequence])

    def _count_tiles(self):
        """How many tiles of tokens the batch has."""
        tiles = T.alloc_buffer((1,), "int32")
        T.buffer_store(tiles, T.int32(0), [0])
        with T.serial(self.batch) as sequence:
            T.buffer_store(tiles, tiles[0] + T.ceildiv(self._new_tokens(sequence), self.tile_tokens), [0])
        return settled(tiles[0])

    def _find_tile(self, item, tiles):
        """The sequence and the tile within it of a work item.

        Later tiles of a sequence see more keys. Tiles are taken alternately from both ends, so that the contiguous
        ranges which the threads get cost the same.
        """
        turn = T.bind(T.floormod(item, tiles))
        left, found = T.alloc_buffer((1,), "int32"), T.alloc_buffer((1,), "int32")
        T.buffer_store(left, T.Select(turn % 2 == 0, turn // 2, tiles - 1 - turn // 2), [0])
        T.buffer_store(found, T.int32(-1), [0])
        with T.serial(self.batch) as sequence:
            count = T.bind(T.ceildiv(self._new_tokens(sequence), self.tile_tokens))
            with T.If(found[0] < 0), T.Then(), T.If(left[0] < count):
                with T.Then():
                    T.buffer_store(found, sequence, [0])
                with T.Else():
                    T.buffer_store(left, left[0] - count, [0])
        return settled(found[0]), settled(left[0])

    def _attend_tile(self, sequence, first, head) -> None:
        """Attention of the tokens from the `first` of a sequence's new ones on, for the query heads of one key head."""
        shape, paged = self.shape, self.paged
        group, unit, dim, tile_rows = shape.group, shape.vectors, shape.head_dim, shape.tile_rows
        rows = -(-self.tile_tokens * group // tile_rows) * tile_rows
        queries = T.alloc_buffer((rows, dim), "float32")
        key_rows, key_columns = T.alloc_buffer((KEY_BLOCK, dim), "float32"), T.alloc_buffer((dim, KEY_BLOCK), "float32")
        values, scores = T.alloc_buffer((KEY_BLOCK, dim), "float32"), T.alloc_buffer((tile_rows, KEY_BLOCK), "float32")
        state = RowState.allocate(shape, rows)
        count = settled(T.min(self._new_tokens(sequence) - first, self.tile_tokens))
        token = settled(paged.query_starts[sequence] + first)
        seen = settled(paged.lengths[sequence] - self._new_tokens(sequence) + first + 1)  # keys that the first one sees
        tiles = settled(T.ceildiv(count * group, tile_rows))
        state.clear(shape, tiles * tile_rows)
        with T.serial(count) as t:
            cosines, sines = self._angles(token + t)
            load_queries(shape, self.rotation, self.qkv, (token + t,), head, cosines, sines, queries, t * group)
        with T.serial(tiles * tile_rows - count * group) as row:  # rows that fill the last register tile
            for d in range(0, dim, unit.lanes):
                store(unit, queries, splat(T.float32(0), unit.lanes), count * group + row, d)

        def bounds(t):
            """The keys low <= key < high that token t of the tile sees; both grow with t."""
            return (T.int32(0) if self.window is None else T.max(seen + t - self.window, 0)), seen + t

        begin, end = settled(bounds(0)[0] // KEY_BLOCK * KEY_BLOCK), settled(bounds(count - 1)[1])
        with T.serial(T.ceildiv(end - begin, KEY_BLOCK)) as block:
            start = T.bind(begin + block * KEY_BLOCK)
            present = settled(T.min(end - start, KEY_BLOCK))
            paged.stage(sequence, start, present, KEY, head, key_rows)
            stage_transposed(unit, dim, present, key_rows, key_columns)
            paged.stage(sequence, start, present, VALUE, head, values)
            with T.serial(tiles) as tile:
                row = T.bind(tile * tile_rows)
                near = settled(T.min(bounds((row + tile_rows - 1) // group)[1] - start, present))
                with T.If(near > 0), T.Then():
                    score_by_columns(shape, near, queries, row, key_columns, scores)
                    with T.serial(tile_rows) as r:
                        low, high = bounds((row + r) // group)
                        softmax_row(shape, scores, r, state, row + r, settled(low - start), settled(high - start))
                    add_values(
                        shape, tile_rows, near, scores, 0, state, row,
                        lambda k, d: T.bind(values[k, span(d, unit.lanes)]),
                    )  # fmt: skip
        with T.serial(count * group) as row:
            inverse = T.bind(splat(T.float32(1) / state.weight_sum(shape, row), unit.lanes))
            column = (head * group + row % group) * dim
            for d in range(0, dim, unit.lanes):
                value = state.output[row, span(d, unit.lanes)] * inverse
                store(unit, self.out, value, token + row // group, column + d)


def prefill_attention(shape: HeadShape, rotation: Rotation, num_layers: int, window: int | None = None):
    """PrimFunc: qkv float32 [n, fused width], layer, the cache's tensors -> out float32 [n, q heads * head_dim].

    A query sees the keys up to its own; with a `window` the last `window` of these.
    """
    with kernel("prefill_attention") as k:
        prefill = _Prefill(k, shape, rotation, num_layers, window)
        with k.body():
            prefill.body()
    return k.function
