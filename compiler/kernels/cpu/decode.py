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

from tvm import tirx
from tvm.script import tirx as T

from ..builder import kernel, parallel
from ..kv_cache import PAGE_SIZE, SHEET_PAGES
from .attention_dot import Dot
from .decode_block import FloatProducts, KeyBlock
from .decode_rows import Rows, Scratch, room
from .decode_words import WordProducts
from .flash import NO_SCORE, HeadShape
from .kv_pages import KEY_BLOCK, NUMBERS, PagedKV
from .queries import load_queries
from .rope import Rotation, emit_angles
from .vector import constant, exp2, settled, span, splat

MAX_CHUNKS = 64
LEAST_WORK = 1 << 17  # multiplications by keys that are worth a second thread
CHUNK_WORK = 1 << 19  # multiplications by keys of a chunk: combining eight parts of 4096 keys took longer than four


class _Decode:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(
        self, k, shape: HeadShape, rotation: Rotation, dot: Dot | None, num_layers: int, window: int | None
    ) -> None:
        self.shape, self.rotation, self.dot, self.window = shape, rotation, dot, window
        self.batch = T.int32()
        self.qkv = k.input("qkv", (self.batch, 1, shape.fused_width), "float32")
        self.paged = PagedKV.declare(k, shape, num_layers, self.batch, self.batch)
        self.out = k.input("out", (self.batch, 1, shape.num_q_heads * shape.head_dim), "float32")

    def body(self) -> None:
        shape = self.shape
        rows, words = (shape.num_q_heads, shape.head_dim), (2, shape.num_q_heads, shape.head_dim // NUMBERS)
        self.layout = {**Rows.layout(shape), "queries": (rows, "float32")}
        if self.dot is not None:
            self.layout["words"] = (words, "int32")
        self.scratch = Scratch(self.batch + MAX_CHUNKS, sum(room(shape) for shape, _ in self.layout.values()))
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
        # the new token's key is in the last block
        with T.If(end == count), T.Then(), T.serial(shape.num_kv_heads) as head:
            self._store_token(sequence, head, cosines, sines)
        buffers = self.scratch.cut(part, self.layout)
        queries, words = buffers.pop("queries"), buffers.pop("words", None)
        with T.serial(shape.num_kv_heads) as head:
            load_queries(
                shape, self.rotation, self.qkv, (sequence, 0), head, cosines, sines, queries, head * shape.group
            )
        products = FloatProducts(shape, queries) if words is None else WordProducts(shape, self.dot, queries, words)
        products.prepare()
        rows = Rows(shape, **buffers)
        rows.clear()
        self._attend(sequence, T.bind(first_block + begin), T.bind(first_block + end), products, rows)
        with T.If((begin == 0) & (end == count)):
            with T.Then():
                self._write_output(sequence, rows)
            with T.Else(), T.serial(shape.num_q_heads) as row:
                T.buffer_store(rows.before, rows.weight_sum(row), [row])

    def _store_token(self, sequence, head, cosines, sines) -> None:
        shape = self.shape
        key = (shape.num_q_heads + head) * shape.head_dim
        value = key + shape.num_kv_heads * shape.head_dim
        row = (sequence, 0)
        self.paged.store_token(
            self.rotation, sequence, head, (self.qkv, (*row, key)), (self.qkv, (*row, value)), cosines, sines
        )

    def _attend(self, sequence, begin, end, products, rows: Rows) -> None:
        """Attention of all heads to the keys in the blocks begin <= block < end of the sequence."""
        shape, paged = self.shape, self.paged
        length = T.bind(paged.lengths[sequence])
        last_page = T.bind((length - 1) // PAGE_SIZE)
        with T.serial(end - begin) as step:
            number = T.bind(begin + step)
            start = T.bind(number * KEY_BLOCK)
            present = settled(T.min(length - start, KEY_BLOCK))
            block = KeyBlock(shape, paged, sequence, T.bind(number * SHEET_PAGES), last_page, present, rows)
            with T.serial(shape.num_kv_heads) as head:
                products.score(block, head)
            low = T.int32(0) if self.window is None else length - self.window - start
            with T.If(tirx.any(low > 0, block.present < KEY_BLOCK)), T.Then():
                rows.hide(low, block.present)
            rows.weigh()
            with T.serial(shape.num_kv_heads) as head:
                products.add_values(block, head)

    def _write_output(self, sequence, rows: Rows) -> None:
        shape, unit = self.shape, self.shape.vectors
        with T.serial(shape.num_q_heads) as row:
            inverse = T.bind(splat(T.float32(1) / rows.weight_sum(row), unit.lanes))
            for d in range(0, shape.head_dim, unit.lanes):
                place = span(row * shape.head_dim + d, unit.lanes)
                T.buffer_store(self.out, rows.output[row, span(d, unit.lanes)] * inverse, [sequence, 0, place])

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
            maximum = self.scratch.cut(first + part, self.layout)["maximum"]
            T.buffer_store(state, T.max(state[0], maximum[head]), [0])
        T.buffer_store(state, T.float32(0), [1])
        for place in parts:
            T.buffer_store(row, constant(0.0, unit.lanes), [place])
        with T.serial(last - first) as part:
            rows = self.scratch.cut(first + part, self.layout)
            weight = exp2(rows["maximum"][head] - state[0], 1)
            T.buffer_store(state, state[1] + weight * rows["before"][head], [1])
            for place in parts:
                T.buffer_store(row, row[place] + splat(weight, unit.lanes) * rows["output"][head, place], [place])
        inverse = T.bind(splat(T.float32(1) / state[1], unit.lanes))
        for d, place in zip(range(0, dim, unit.lanes), parts, strict=True):
            T.buffer_store(self.out, row[place] * inverse, [sequence, 0, span(head * dim + d, unit.lanes)])


def decode_attention(shape: HeadShape, rotation: Rotation, dot: Dot | None, num_layers: int, window: int | None = None):
    """PrimFunc: qkv float32 [b, 1, fused width], layer, the cache's tensors -> out float32 [b, 1, q heads * head_dim].

    `dot`: how int8 is multiplied; None: in float32. With a `window` a query sees only the last `window` keys, its own
    among them.
    """
    with kernel("decode_attention") as k:
        decode = _Decode(k, shape, rotation, dot, num_layers, window)
        with k.body():
            decode.body()
    return k.function
