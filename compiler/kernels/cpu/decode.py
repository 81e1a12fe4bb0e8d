# mypy: ignore-errors
"""Decode attention on the CPU: one new token of each sequence, which is stored on the way.

A step reads every key and value once, so it should take as long as memory takes, whatever the number of sequences and
however different their lengths. All keys of the batch are one row of blocks, which is cut into equal chunks, one for
each thread:

    sequence 0                              sequence 1     sequence 2
    | block | block | block | block | block | block | block | block |
    |          chunk 0          |          chunk 1          |

Where a chunk ends inside a sequence it leaves an unnormalized output with its maximum and weight sum; these parts are
combined at the end.
"""

from tvm.script import tirx as T

from ..builder import kernel
from .flash import KEY_BLOCK, NO_SCORE, HeadShape, RowState, add_values, score_by_rows, softmax_row
from .kv_pages import KEY, PAGE_SIZE, VALUE, PagedKV
from .queries import load_queries
from .rope import Rotation, emit_angles
from .vector import constant, copy, exp2, prefetch, settled, span, splat

MAX_CHUNKS = 64
CHUNK_WORK = 1 << 17  # multiplications by keys that make a chunk worth its part of the combination


class _Decode:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(self, k, shape: HeadShape, rotation: Rotation, num_layers: int, window: int | None) -> None:
        self.shape, self.rotation, self.window = shape, rotation, window
        self.batch = T.int32()
        self.qkv = k.input("qkv", (self.batch, 1, shape.fused_width), "float32")
        self.paged = PagedKV.declare(k, shape, num_layers, self.batch, self.batch)
        self.out = k.input("out", (self.batch, 1, shape.num_q_heads * shape.head_dim), "float32")

    def body(self) -> None:
        shape = self.shape
        rows = (self.batch + MAX_CHUNKS, shape.num_q_heads)
        self.outputs = T.alloc_buffer((*rows, shape.head_dim), "float32")
        self.maxima, self.totals = T.alloc_buffer(rows, "float32"), T.alloc_buffer(rows, "float32")
        self.blocks = self._count_blocks()
        block_work = KEY_BLOCK * shape.num_q_heads * shape.head_dim
        self.chunks = settled(T.max(1, T.min(MAX_CHUNKS, self.blocks // max(1, CHUNK_WORK // block_work))))
        with T.If(self.chunks == 1):
            with T.Then():
                self._chunk(0)
            with T.Else():
                with T.parallel(self.chunks) as chunk:
                    self._chunk(chunk)
                self._combine()

    def _first_block(self, sequence):
        """The block of the first key that a sequence's query sees."""
        if self.window is None:
            return T.int32(0)
        return T.max(self.paged.lengths[sequence] - self.window, 0) // KEY_BLOCK

    def _blocks_of(self, sequence):
        return T.ceildiv(self.paged.lengths[sequence], KEY_BLOCK) - self._first_block(sequence)

    def _count_blocks(self):
        total = T.alloc_buffer((1,), "int32")
        T.buffer_store(total, T.int32(0), [0])
        with T.serial(self.batch) as sequence:
            T.buffer_store(total, total[0] + self._blocks_of(sequence), [0])
        return settled(total[0])

    def _chunk(self, chunk) -> None:
        """The blocks [chunk, chunk + 1) * blocks / chunks of the batch."""
        first = settled(chunk * self.blocks // self.chunks)
        last = settled((chunk + 1) * self.blocks // self.chunks)
        before = T.alloc_buffer((1,), "int32")  # blocks of the sequences before
        T.buffer_store(before, T.int32(0), [0])
        with T.serial(self.batch) as sequence:
            count = settled(self._blocks_of(sequence))
            begin = settled(T.max(first - before[0], 0))
            end = settled(T.min(last - before[0], count))
            T.buffer_store(before, before[0] + count, [0])
            with T.If(begin < end), T.Then():
                self._segment(sequence, begin, end, count, chunk + sequence)

    def _segment(self, sequence, begin, end, count, part) -> None:
        """The blocks begin <= block < end of the `count` that a sequence's query sees, for all heads."""
        half = len(self.rotation.frequencies)
        cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
        emit_angles(self.rotation, self.shape.vectors, self.paged.positions[sequence], cosines, sines)
        first_block = settled(self._first_block(sequence))
        first = settled((first_block + begin) * KEY_BLOCK)
        last = settled(T.min((first_block + end) * KEY_BLOCK, self.paged.lengths[sequence]))
        with T.serial(self.shape.num_kv_heads) as head:
            with T.If(end == count), T.Then():  # the new token's key is among these
                self._store_token(sequence, head, cosines, sines)
            state = self._attend(sequence, head, first, last, cosines, sines)
            with T.If((begin == 0) & (end == count)):
                with T.Then():
                    self._write_output(sequence, head, state)
                with T.Else():
                    self._write_part(part, head, state)

    def _store_token(self, sequence, head, cosines, sines) -> None:
        shape = self.shape
        key = (shape.num_q_heads + head) * shape.head_dim
        value = key + shape.num_kv_heads * shape.head_dim
        row = (sequence, 0)
        self.paged.store_token(
            self.rotation, sequence, head, (self.qkv, (*row, key)), (self.qkv, (*row, value)), cosines, sines
        )

    def _attend(self, sequence, head, first, last, cosines, sines) -> RowState:
        """Attention to the keys first <= key < last, for the query heads of one key head."""
        shape, paged, group = self.shape, self.paged, self.shape.group
        rows, scores = T.alloc_buffer((group, shape.head_dim), "float32"), T.alloc_buffer((group, KEY_BLOCK), "float32")
        load_queries(shape, self.rotation, self.qkv, (sequence, 0), head, cosines, sines, rows, 0)
        state = RowState.allocate(shape, group)
        state.clear(shape, group)
        low = T.int32(0) if self.window is None else settled(paged.lengths[sequence] - self.window)
        with T.serial(T.ceildiv(last - first, KEY_BLOCK)) as block:
            start = T.bind(first + block * KEY_BLOCK)
            present = settled(T.min(last - start, KEY_BLOCK))
            self._score(sequence, head, start, present, first, last, rows, scores)
            with T.serial(group) as row:
                softmax_row(shape, scores, row, state, row, T.int32(0) if self.window is None else low - start, present)
            self._add_values(sequence, head, start, present, scores, state)
        return state

    def _score(self, sequence, head, start, present, first, last, rows, scores) -> None:
        shape, paged, lanes = self.shape, self.paged, self.shape.vectors.lanes
        # Memory is slower than this code and has to be asked in advance, while keys are read: for the values, and for
        # the keys that come next. These are the next block's, or the first ones of the next head.
        more = start + KEY_BLOCK < last
        next_start = settled(T.Select(more, start + KEY_BLOCK, first))
        next_head = settled(T.Select(more, head, T.min(head + 1, shape.num_kv_heads - 1)))

        def keys(block):
            index = paged.index(sequence, start + block * lanes, KEY, head)
            value = paged.index(sequence, start + block * lanes, VALUE, head)
            ahead = settled(T.min(next_start + block * lanes, last - 1))
            ahead = paged.index(sequence, ahead // lanes * lanes, KEY, next_head)

            def vector(j, d):
                if d == 0:
                    for place in (value, ahead):
                        prefetch(paged.kv, (*place[:-2], place[-2] + j, T.int64(0)), shape.head_dim)
                return paged.load((*index[:-2], index[-2] + j, T.int64(0)), T.int64(d))

            factors = None if paged.scales is None else T.bind(paged.scales[(*index[:-2], span(index[-2], lanes))])
            return vector, factors

        score_by_rows(shape, present, rows, keys, scores)

    def _add_values(self, sequence, head, start, present, scores, state: RowState) -> None:
        shape, paged, group, lanes = self.shape, self.paged, self.shape.group, self.shape.vectors.lanes
        if paged.scales is not None:  # weights take the factors of the values
            with T.serial(T.ceildiv(present, lanes)) as block:
                index = paged.index(sequence, start + block * lanes, VALUE, head)
                factors = T.bind(paged.scales[(*index[:-2], span(index[-2], lanes))])
                with T.serial(group) as row:
                    place = [row, span(block * lanes, lanes)]
                    T.buffer_store(scores, scores[tuple(place)] * factors, place)

        def value(k, d):
            return paged.load(paged.index(sequence, start + k, VALUE, head), T.cast(d, "int64"))

        size = -(-group // -(-group // shape.tile_rows))  # rows of a register tile, about the same in each
        with T.serial(group // size) as tile:
            add_values(shape, size, present, scores, tile * size, state, tile * size, value)
        if group % size:
            rest = group - group % size
            add_values(shape, group % size, present, scores, rest, state, rest, value)

    def _write_output(self, sequence, head, state: RowState) -> None:
        shape, unit = self.shape, self.shape.vectors
        with T.serial(shape.group) as row:
            inverse = T.bind(splat(T.float32(1) / state.weight_sum(shape, row), unit.lanes))
            for d in range(0, shape.head_dim, unit.lanes):
                place = span((head * shape.group + row) * shape.head_dim + d, unit.lanes)
                T.buffer_store(self.out, state.output[row, span(d, unit.lanes)] * inverse, [sequence, 0, place])

    def _write_part(self, part, head, state: RowState) -> None:
        shape = self.shape
        with T.serial(shape.group) as row:
            place = (part, head * shape.group + row)
            copy(shape.vectors, self.outputs, (*place, 0), state.output, (row, 0), shape.head_dim)
            T.buffer_store(self.maxima, state.maximum[row], list(place))
            T.buffer_store(self.totals, state.weight_sum(shape, row), list(place))

    def _combine(self) -> None:
        """Join the parts of sequences that lie in several chunks."""
        before = T.alloc_buffer((1,), "int32")
        T.buffer_store(before, T.int32(0), [0])
        with T.serial(self.batch) as sequence:
            begin = settled(before[0])
            end = settled(begin + self._blocks_of(sequence))
            T.buffer_store(before, end, [0])
            # chunk c begins at block c * blocks // chunks
            first = settled(((begin + 1) * self.chunks - 1) // self.blocks)
            last = settled((end * self.chunks - 1) // self.blocks)
            with T.If(first < last), T.Then(), T.serial(self.shape.num_q_heads) as head:
                self._combine_head(sequence, head, first + sequence, last + sequence + 1)

    def _combine_head(self, sequence, head, first, last) -> None:
        """The output of one query head from the parts first <= part < last."""
        unit, dim = self.shape.vectors, self.shape.head_dim
        state, row = T.alloc_buffer((2,), "float32"), T.alloc_buffer((dim,), "float32")  # state: maximum, weight sum
        parts = [span(d, unit.lanes) for d in range(0, dim, unit.lanes)]
        T.buffer_store(state, T.float32(NO_SCORE), [0])
        with T.serial(last - first) as part:
            T.buffer_store(state, T.max(state[0], self.maxima[first + part, head]), [0])
        T.buffer_store(state, T.float32(0), [1])
        for place in parts:
            T.buffer_store(row, constant(0.0, unit.lanes), [place])
        with T.serial(last - first) as part:
            weight = exp2(self.maxima[first + part, head] - state[0], 1)
            T.buffer_store(state, state[1] + weight * self.totals[first + part, head], [1])
            for place in parts:
                share = splat(weight, unit.lanes) * self.outputs[first + part, head, place]
                T.buffer_store(row, row[place] + share, [place])
        inverse = T.bind(splat(T.float32(1) / state[1], unit.lanes))
        for d, place in zip(range(0, dim, unit.lanes), parts, strict=True):
            T.buffer_store(self.out, row[place] * inverse, [sequence, 0, span(head * dim + d, unit.lanes)])


def decode_attention(shape: HeadShape, rotation: Rotation, num_layers: int, window: int | None = None):
    """PrimFunc: qkv float32 [b, 1, fused width], layer, the cache's tensors -> out float32 [b, 1, q heads * head_dim].

    With a `window` a query sees only the last `window` keys, its own among them.
    """
    assert KEY_BLOCK % PAGE_SIZE == 0
    with kernel("decode_attention") as k:
        decode = _Decode(k, shape, rotation, num_layers, window)
        with k.body():
            decode.body()
    return k.function
