# mypy: ignore-errors
"""Decode attention on the CPU: one new token of each sequence, which is stored on the way.

A step reads every key and value once, so it should take as long as memory takes, whatever the number of sequences and
however different their lengths. All keys of the batch are one row of blocks, which is cut into equal chunks for the
threads:

    sequence 0                              sequence 1     sequence 2
    | block | block | block | block | block | block | block | block |
    |          chunk 0          |          chunk 1          |

Where a chunk ends inside a sequence it leaves an unnormalized output with its maximum and weight sum; these parts are
combined at the end.
"""

from tvm.script import tirx as T

from ..builder import kernel, parallel
from .decode_block import KeyBlock
from .flash import KEY_BLOCK, NO_SCORE, HeadShape, RowState, softmax_row
from .kv_pages import PagedKV
from .queries import load_queries
from .rope import Rotation, emit_angles
from .vector import constant, copy, exp2, settled, span, splat

MAX_CHUNKS = 64
LEAST_WORK = 1 << 17  # multiplications by keys that are worth a second thread
CHUNK_WORK = 1 << 19  # multiplications by keys of a chunk: combining eight parts of 4096 keys took longer than four


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
        chunks = T.max(T.min(MAX_CHUNKS, self.blocks // max(1, CHUNK_WORK // block_work)), T.min(2, self.blocks))
        self.chunks = settled(T.Select(self.blocks * block_work < LEAST_WORK, 1, chunks))
        with T.If(self.chunks == 1):
            with T.Then():
                self._chunk(0)
            with T.Else():
                with parallel(self.chunks) as chunk:
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
        shape, half = self.shape, len(self.rotation.frequencies)
        cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
        emit_angles(self.rotation, self.shape.vectors, self.paged.positions[sequence], cosines, sines)
        first_block = settled(self._first_block(sequence))
        first = settled((first_block + begin) * KEY_BLOCK)
        last = settled(T.min((first_block + end) * KEY_BLOCK, self.paged.lengths[sequence]))
        # the new token's key is in the last block
        with T.If(end == count), T.Then(), T.serial(shape.num_kv_heads) as head:
            self._store_token(sequence, head, cosines, sines)
        queries = T.alloc_buffer((shape.num_q_heads, shape.head_dim), "float32")
        with T.serial(shape.num_kv_heads) as head:
            load_queries(
                shape, self.rotation, self.qkv, (sequence, 0), head, cosines, sines, queries, head * shape.group
            )
        state = RowState.allocate(shape, shape.num_q_heads)
        state.clear(shape, shape.num_q_heads)
        self._attend(sequence, first, last, queries, state)
        with T.If((begin == 0) & (end == count)):
            with T.Then():
                self._write_output(sequence, state)
            with T.Else():
                self._write_part(part, state)

    def _store_token(self, sequence, head, cosines, sines) -> None:
        shape = self.shape
        key = (shape.num_q_heads + head) * shape.head_dim
        value = key + shape.num_kv_heads * shape.head_dim
        row = (sequence, 0)
        self.paged.store_token(
            self.rotation, sequence, head, (self.qkv, (*row, key)), (self.qkv, (*row, value)), cosines, sines
        )

    def _attend(self, sequence, first, last, queries, state: RowState) -> None:
        """Attention of all heads to the keys first <= key < last."""
        shape = self.shape
        scores = T.alloc_buffer((shape.group, KEY_BLOCK), "float32")
        low = T.int32(0) if self.window is None else settled(self.paged.lengths[sequence] - self.window)
        with T.serial(T.ceildiv(last - first, KEY_BLOCK)) as step, T.serial(shape.num_kv_heads) as head:
            start = T.bind(first + step * KEY_BLOCK)
            present = settled(T.min(last - start, KEY_BLOCK))
            block = KeyBlock(shape, self.paged, sequence, head, start, present, T.bind(head * shape.group))
            block.score(queries, scores)
            with T.serial(shape.group) as row:
                hidden = T.int32(0) if self.window is None else low - start
                softmax_row(shape, scores, row, state, block.first_row + row, hidden, present)
            block.add_values(scores, state)

    def _write_output(self, sequence, state: RowState) -> None:
        shape, unit = self.shape, self.shape.vectors
        with T.serial(shape.num_q_heads) as row:
            inverse = T.bind(splat(T.float32(1) / state.weight_sum(shape, row), unit.lanes))
            for d in range(0, shape.head_dim, unit.lanes):
                place = span(row * shape.head_dim + d, unit.lanes)
                T.buffer_store(self.out, state.output[row, span(d, unit.lanes)] * inverse, [sequence, 0, place])

    def _write_part(self, part, state: RowState) -> None:
        shape = self.shape
        with T.serial(shape.num_q_heads) as row:
            copy(shape.vectors, self.outputs, (part, row, 0), state.output, (row, 0), shape.head_dim)
            T.buffer_store(self.maxima, state.maximum[row], [part, row])
            T.buffer_store(self.totals, state.weight_sum(shape, row), [part, row])

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
    with kernel("decode_attention") as k:
        decode = _Decode(k, shape, rotation, num_layers, window)
        with k.body():
            decode.body()
    return k.function
