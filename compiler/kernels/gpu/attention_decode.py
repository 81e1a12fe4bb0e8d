"""Decode attention on devices: one new token of each sequence, which is stored on the way.

A step reads every key and value once and does little with each, so it should take as long as memory takes. Three
launches: store the new keys and values; attend; merge.

    keys of a sequence    | block | block | block | block | block | block | block |
    workgroups            |    split 0    |    split 1    |    split 2    | split 3 |

A workgroup has one part of the query heads of one key head (attention_heads.py) and a share of the sequence's blocks.
It leaves the unnormalized output of its share with the largest score and the sum of weights, which the last launch
merges. How many shares there may be depends on the batch alone, as that is what the host knows: many workgroups for
one sequence, one or two for each of many. A share is at least a block.

In a block of KEYS keys a thread first has one key, of which it calculates the scores with all heads; then four
dimensions of the values, of every n-th key. So a key or value is read from memory once, values by neighbours side by
side, keys in rows that one thread reads to their end. _VECTORS_AHEAD vectors of a key, or _VALUES_AHEAD of values, are
on their way to a thread at a time.

Roofline, on paper: a key and its value of float16 with 128 dimensions are 512 bytes, for which the 4 query heads of
Llama 3 8B take 2048 products and sums, 4 per byte; an H100 has 20 per byte (67 TFLOP/s, 3.35 TB/s), so that memory
decides up to 20 heads a key head. A workgroup has 64 threads x 64 bytes of keys on their way, 8 of them on each of 132
multiprocessors 4.3 MB; 3.35 TB/s for 0.8 us are 2.7 MB.
"""
# mypy: ignore-errors

import math

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..cache_kernels import CacheShape
from ..kv_cache import PAGE_SIZE, SHEET_PAGES
from .arithmetic import VECTOR, exact, exp2, load4, variable
from .attention_heads import NO_SCORE, HeadParts, attention_kernel, score_factor
from .kv_pages import KEY, VALUE, PagedKV
from .launch import barrier, cell, launch, private, shared, strided
from .rope import Rotation

KEYS = 64  # of a block, as many as threads
_MOST_HEADS = 8  # of a workgroup: a thread keeps four dimensions of the output of each
WORKGROUPS = 1024  # that are wanted: some for each multiprocessor of large devices
_MOST_SPLITS = 64
_VECTORS_AHEAD, _VALUES_AHEAD = 8, 4  # of a key, and values, that a thread asks for before it uses the first
_PIECES = 8  # in which a head's scores of a block are searched for the largest


class _Decode:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(self, k, cache: CacheShape, rotation: Rotation) -> None:
        self.cache, self.rotation = cache, rotation
        self.heads = HeadParts.of(cache, _MOST_HEADS)
        self.dim, self.fused = cache.head_dim, cache.num_attention_heads + 2 * cache.num_key_value_heads
        self.batch = T.int32()
        self.qkv = k.input("qkv", (self.batch, 1, self.fused * self.dim), "float32")
        self.paged = PagedKV.declare(k, cache, self.batch, self.batch)
        self.out = k.input("out", (self.batch, 1, cache.num_attention_heads * self.dim), "float32")

    def body(self) -> None:
        zero = tirx.const(0, "int32")
        self.paged.launch_store(self.rotation, self.batch, lambda token, number: (self.qkv, (token, zero, number)))
        rows = self.cache.num_key_value_heads * self.heads.count
        self.splits = T.bind(T.max(1, T.min(_MOST_SPLITS, WORKGROUPS // (self.batch * rows))))
        outputs = (self.batch, self.cache.num_attention_heads, self.splits)
        # each share's output, then its largest score and its sum of weights
        self.parts = T.sblock_alloc_buffer((*outputs, self.dim), "float32")
        self.sums = T.sblock_alloc_buffer((*outputs, 2), "float32")
        # two dimensions: WebGPU has no third
        with launch((self.splits, rows * self.batch), KEYS) as ((split, number), (thread,)):
            sequence, row = T.floordiv(number, rows), T.floormod(number, rows)
            first, last, count = self._share(sequence, split)
            with T.If(first < last), T.Then():
                key_head = T.bind(row // self.heads.count)
                _Share(self, sequence, key_head, row % self.heads.count, thread).attend(split, first, last, count)
        with T.If(self.splits > 1), T.Then():
            self._merge()

    def _share(self, sequence, split):
        """The blocks first <= block < last of a split, and how many splits of the sequence have any."""
        length = T.bind(self.paged.lengths[sequence])
        begin, end = T.int32(0), T.bind(T.ceildiv(length, KEYS))
        if self.cache.window is not None:
            begin = T.bind(T.max(length - self.cache.window, 0) // KEYS)
        size = variable(T.ceildiv(end - begin, self.splits), "int32")
        first = T.bind(begin + split * size)
        return first, T.bind(T.min(first + size, end)), T.bind(T.ceildiv(end - begin, size))

    def _merge(self) -> None:
        with launch((self.cache.num_attention_heads, self.batch), KEYS) as ((head, sequence), (thread,)):
            _, _, count = self._share(sequence, 0)
            with T.If(count > 1), T.Then():
                largest, total = cell(NO_SCORE), cell(0.0)
                with T.serial(count) as split:
                    T.buffer_store(largest, T.max(largest[0], self.sums[sequence, head, split, 0]), [0])
                with T.serial(count) as split:
                    weight = exp2(self.sums[sequence, head, split, 0] - largest[0])
                    T.buffer_store(total, total[0] + weight * self.sums[sequence, head, split, 1], [0])
                with strided(thread, KEYS, self.dim) as d:
                    output = cell(0.0)
                    with T.serial(count) as split:
                        weight = exp2(self.sums[sequence, head, split, 0] - largest[0])
                        T.buffer_store(output, output[0] + weight * self.parts[sequence, head, split, d], [0])
                    T.buffer_store(self.out, output[0] / total[0], [sequence, 0, head * self.dim + d])


class _Share:
    """What one workgroup does."""

    def __init__(self, decode: _Decode, sequence, key_head, part, thread) -> None:
        self.decode, self.paged, self.dim = decode, decode.paged.here(), decode.dim
        self.sequence, self.key_head, self.thread = sequence, key_head, thread
        self.size = decode.heads.size
        self.first_head = decode.heads.first(key_head, part)
        self.vectors = self.dim // VECTOR  # threads that have a value together
        self.rows = 1 << max(0, (KEYS // self.vectors).bit_length() - 1)  # values that are read side by side
        self.rounds = -(-self.vectors // KEYS)  # vectors of a thread
        size = self.size
        self.queries = shared((size, self.dim))
        self.weights = shared((size, KEYS))
        self.pieces = shared((size, _PIECES))
        self.gathered = shared((self.rows, size, self.dim))
        self.scores, self.largest, self.total = private(size), private(size), private(size)
        self.output = private((self.rounds, size, VECTOR))

    def attend(self, split, first, last, count) -> None:
        self._load_queries()
        for h in range(self.size):
            T.buffer_store(self.largest, T.float32(NO_SCORE), [h])
            T.buffer_store(self.total, T.float32(0), [h])
            for r in range(self.rounds):
                for i in range(VECTOR):
                    T.buffer_store(self.output, T.float32(0), [r, h, i])
        length = T.bind(self.paged.lengths[self.sequence])
        barrier()
        with T.serial(last - first) as step:
            start = T.bind((first + step) * KEYS)
            self._weigh(start, length)
            self._add_values(start, length)
            barrier()
        self._write(split, count)

    def _load_queries(self) -> None:
        """The rotated queries, times the scores' factor."""
        rotation, position = self.decode.rotation, T.bind(self.paged.positions[self.sequence])
        factor = exact(score_factor(self.decode.cache))
        half, dim, qkv = rotation.half, self.dim, self.decode.qkv
        at = (self.sequence, tirx.const(0, "int32"))
        with strided(self.thread, KEYS, half) as pair:
            cosine, sine = rotation.angle(position, pair)
            with T.serial(self.size) as h:
                a, b = rotation.rotate(qkv, (*at, (self.first_head + h) * dim), pair, cosine, sine)
                T.buffer_store(self.queries, a * factor, [h, pair])
                T.buffer_store(self.queries, b * factor, [h, half + pair])
        if dim > 2 * half:
            with strided(self.thread, KEYS, dim - 2 * half) as i, T.serial(self.size) as h:
                number = qkv[(*at, (self.first_head + h) * dim + 2 * half + i)]
                T.buffer_store(self.queries, number * factor, [h, 2 * half + i])

    def _weigh(self, start, length) -> None:
        """Write the weights of a block's keys, and correct the sums for a new largest score."""
        thread, size, paged = self.thread, self.size, self.paged
        position = T.bind(start + thread)
        row = paged.row(self.sequence, T.bind(T.min(position, length - 1)))
        for h in range(size):
            T.buffer_store(self.scores, T.float32(0), [h])
        ahead = math.gcd(_VECTORS_AHEAD, self.vectors)
        with T.serial(self.vectors // ahead) as step:
            vectors = [T.bind(step * ahead + i) for i in range(ahead)]
            keys = [paged.load4(KEY, self.key_head, row, v * VECTOR) for v in vectors]
            for v, key in zip(vectors, keys, strict=True):
                for h in range(size):
                    score = self.scores[h]
                    for a, b in zip(key, load4(self.queries, h, v * VECTOR), strict=True):
                        score = score + a * b
                    T.buffer_store(self.scores, score, [h])
        visible = position < length
        if self.decode.cache.window is not None:
            visible = tirx.all(visible, position >= length - self.decode.cache.window)
        scale = None if paged.scales is None else paged.scale(KEY, self.key_head, row)
        for h in range(size):
            score = self.scores[h] if scale is None else self.scores[h] * scale
            T.buffer_store(self.scores, tirx.Select(visible, score, T.float32(NO_SCORE)), [h])
            T.buffer_store(self.weights, self.scores[h], [h, thread])
        barrier()
        with strided(thread, KEYS, size * _PIECES) as item:
            h, piece = T.bind(item // _PIECES), T.bind(item % _PIECES)
            largest = cell(NO_SCORE)
            with T.serial(KEYS // _PIECES) as i:
                T.buffer_store(largest, T.max(largest[0], self.weights[h, i * _PIECES + piece]), [0])
            T.buffer_store(self.pieces, largest[0], [h, piece])
        barrier()
        scale = None if paged.scales is None else paged.scale(VALUE, self.key_head, row)
        for h in range(size):
            largest = cell(self.largest[h])
            for piece in range(_PIECES):
                T.buffer_store(largest, T.max(largest[0], self.pieces[h, piece]), [0])
            correction = exp2(self.largest[h] - largest[0])
            weight = exp2(self.scores[h] - largest[0])
            T.buffer_store(self.largest, largest[0], [h])
            T.buffer_store(self.total, self.total[h] * correction + weight, [h])
            for r in range(self.rounds):
                for i in range(VECTOR):
                    T.buffer_store(self.output, self.output[r, h, i] * correction, [r, h, i])
            T.buffer_store(self.weights, weight if scale is None else weight * scale, [h, thread])
        barrier()

    def _place(self, r: int):
        """Which of the values that are read at once a thread takes part in, and its vector of it."""
        if self.rounds > 1:
            return T.int32(0), T.bind(self.thread + r * KEYS)
        return T.bind(self.thread // self.vectors), T.bind(self.thread % self.vectors)

    def _add_values(self, start, length) -> None:
        last = T.bind(length - 1)
        ahead = min(_VALUES_AHEAD, PAGE_SIZE // self.rows)
        for r in range(self.rounds):
            offset, vector = self._place(r)
            with T.If(tirx.all(offset < self.rows, vector < self.vectors)), T.Then(), T.serial(SHEET_PAGES) as p:
                number = T.bind(T.min(start // PAGE_SIZE + p, last // PAGE_SIZE))
                page = self.paged.page(self.sequence, number)
                with T.serial(PAGE_SIZE // (self.rows * ahead)) as step:
                    keys = [T.bind((step * ahead + i) * self.rows + offset) for i in range(ahead)]
                    rows = [self.paged.row_of_page(page, T.min(key, last - number * PAGE_SIZE)) for key in keys]
                    values = [self.paged.load4(VALUE, self.key_head, row, vector * VECTOR) for row in rows]
                    for key, value in zip(keys, values, strict=True):
                        for h in range(self.size):
                            weight = T.bind(self.weights[h, p * PAGE_SIZE + key])
                            for j in range(VECTOR):
                                T.buffer_store(self.output, self.output[r, h, j] + weight * value[j], [r, h, j])

    def _write(self, split, count) -> None:
        """Add up what the threads have, and write it."""
        decode, thread = self.decode, self.thread
        for r in range(self.rounds):
            offset, vector = self._place(r)
            with T.If(tirx.all(offset < self.rows, vector < self.vectors)), T.Then():
                for h in range(self.size):
                    for i in range(VECTOR):
                        T.buffer_store(self.gathered, self.output[r, h, i], [offset, h, vector * VECTOR + i])
        for h in range(self.size):
            T.buffer_store(self.weights, self.total[h], [h, thread])
        barrier()
        total, head = cell(0.0), cell(0, "int32")
        for h in range(self.size):
            T.buffer_store(head, self.first_head + h, [0])
            T.buffer_store(total, T.float32(0), [0])
            with T.serial(KEYS) as i:
                T.buffer_store(total, total[0] + self.weights[h, i], [0])
            with strided(thread, KEYS, self.dim) as d:
                output = cell(0.0)
                for offset in range(self.rows):
                    T.buffer_store(output, output[0] + self.gathered[offset, h, d], [0])
                with T.If(count == 1):
                    with T.Then():
                        place = [self.sequence, 0, head[0] * self.dim + d]
                        T.buffer_store(decode.out, output[0] / total[0], place)
                    with T.Else():
                        T.buffer_store(decode.parts, output[0], [self.sequence, head[0], split, d])
            with T.If(tirx.all(count > 1, thread == 0)), T.Then():
                T.buffer_store(decode.sums, self.largest[h], [self.sequence, head[0], split, 0])
                T.buffer_store(decode.sums, total[0], [self.sequence, head[0], split, 1])


def decode_attention(cache: CacheShape, rotation: Rotation) -> tirx.PrimFunc:
    """PrimFunc with the arguments of kv_cache.py, qkv `[b, 1, fused width]` and out `[b, 1, q heads * head_dim]` in
    float32."""
    return attention_kernel("decode_attention", lambda k: _Decode(k, cache, rotation))
