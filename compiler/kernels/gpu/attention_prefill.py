"""Prefill attention on devices: any number of new tokens of each sequence, which are stored on the way.

Two launches: store the new keys and values; attend. A workgroup of the second has a tile of rows, which are some tokens
of one sequence times one part of the query heads of a key head (attention_heads.py), and goes through the blocks of
keys that they see, with a running maximum and sum for each row:

                          THREADS_X                              dimensions
               keys     x x x x x x x x             values     x x x x x x x x
    queries y [scores] of ROWS x KEYS   ->  queries y [output] of ROWS x head_dim

Thread (y, x) has the scores of a few rows with keys x, x + THREADS_X, ... and the same rows' dimensions x,
x + THREADS_X, ... of the output. Keys and values come through shared memory in slices: keys some dimensions at a time,
values some keys at a time.

Roofline, on paper: for 4 dimensions of 4 x 4 scores a thread reads 8 vectors of shared memory and makes 64 products;
for 4 rows and head_dim / THREADS_X dimensions (8 of 128) of one key it reads 4 + 8 numbers and makes 32. Where shared
memory gives 128 bytes a cycle beside 128 products, as on NVIDIA's, these are a half and two thirds of what the float32
units can do. Every tile of 32 rows reads the cache again: 32 operations per byte of it for float16, from the L2 cache.
"""
# mypy: ignore-errors

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..cache_kernels import CacheShape
from .arithmetic import VECTOR, exact, exp2, load4, variable
from .attention_heads import NO_SCORE, HeadParts, attention_kernel, score_factor
from .kv_pages import KEY, VALUE, PagedKV
from .launch import barrier, cell, launch, private, shared, strided
from .rope import Rotation

KEYS = 64  # of a block
_X, _Y = 16, 8  # threads of a workgroup
_THREADS = _X * _Y
_KEYS_OF_THREAD = KEYS // _X
_QUERY_NUMBERS = 4096  # of a tile, in shared memory
_SLICE_NUMBERS = 1280  # of keys or values


class _Prefill:
    """The kernel under construction: its arguments, and the code that they are used by."""

    def __init__(self, k, cache: CacheShape, rotation: Rotation) -> None:
        self.cache, self.rotation = cache, rotation
        self.dim = cache.head_dim
        self.rows_of_thread = min(4, max(1, _QUERY_NUMBERS // (self.dim * _Y)))
        self.rows = self.rows_of_thread * _Y
        self.heads = HeadParts.of(cache, self.rows)
        self.tile = self.rows // self.heads.size  # tokens
        self.tokens, self.batch = T.int32(), T.int32()
        fused = cache.num_attention_heads + 2 * cache.num_key_value_heads
        self.qkv = k.input("qkv", (self.tokens, fused * self.dim), "float32")
        self.paged = PagedKV.declare(k, cache, self.tokens, self.batch)
        self.out = k.input("out", (self.tokens, cache.num_attention_heads * self.dim), "float32")

    def body(self) -> None:
        self.paged.launch_store(self.rotation, self.tokens, lambda token, number: (self.qkv, (token, number)))
        tiles = T.floordiv(self.tokens, self.tile) + self.batch
        rows = self.cache.num_key_value_heads * self.heads.count
        with launch((tiles, rows), (_X, _Y)) as ((number, row), (x, y)):
            sequence, tile = self._find(number)
            with T.If(sequence < self.batch), T.Then():
                _Tile(self, sequence, tile, T.bind(row // self.heads.count), row % self.heads.count, x, y).attend()

    def _find(self, number):
        """The sequence of a tile and which of its tiles it is; a sequence beyond the last if there is none."""
        sequence, tile = cell(0, "int32"), cell(0, "int32")
        T.buffer_store(tile, number, [0])
        starts = self.paged.query_starts
        with T.serial(self.batch) as i:
            count = T.bind(T.ceildiv(starts[i + 1] - starts[i], self.tile))
            with T.If(tirx.all(sequence[0] == i, tile[0] >= count)), T.Then():
                T.buffer_store(tile, tile[0] - count, [0])
                T.buffer_store(sequence, i + 1, [0])
        return T.bind(sequence[0]), T.bind(tile[0])


class _Tile:
    """What one workgroup does. Row r is the query of token r // size and head r % size of its part."""

    def __init__(self, prefill: _Prefill, sequence, tile, key_head, part, x, y) -> None:
        self.prefill, self.paged, self.dim, self.window = (
            prefill,
            prefill.paged.here(),
            prefill.dim,
            prefill.cache.window,
        )
        self.sequence, self.key_head, self.x, self.y = sequence, key_head, x, y
        self.thread = T.bind(y * _X + x)
        self.size, self.rows, self.own = prefill.heads.size, prefill.rows, prefill.rows_of_thread
        self.first_head = prefill.heads.first(key_head, part)
        end = T.bind(self.paged.query_starts[sequence + 1])
        self.first = T.bind(self.paged.query_starts[sequence] + tile * prefill.tile)  # token
        self.count = T.bind(T.min(end - self.first, prefill.tile))
        self.length = T.bind(self.paged.lengths[sequence])
        self.position = T.bind(self.length - (end - self.first))  # of the first token
        self.columns = -(-self.dim // _X)  # dimensions of a thread
        self.key_dims = max(VECTOR, _SLICE_NUMBERS // KEYS // VECTOR * VECTOR - VECTOR)  # of a slice
        self.slice_values = min(KEYS, _SLICE_NUMBERS // self.dim)
        self.pitch = self.key_dims + VECTOR  # rows of a slice begin in different banks
        self.queries = shared((self.rows, self.dim))
        self.slice = shared((_SLICE_NUMBERS,))
        self.weights = shared((self.rows, KEYS + VECTOR))
        self.peaks = shared((self.rows, _X))
        self.scores = private((self.own, _KEYS_OF_THREAD))
        self.output = private((self.own, self.columns))
        self.largest, self.total = private(self.own), private(self.own)

    def attend(self) -> None:
        self._load_queries()
        for i in range(self.own):
            T.buffer_store(self.largest, T.float32(NO_SCORE), [i])
            T.buffer_store(self.total, T.float32(0), [i])
            for j in range(self.columns):
                T.buffer_store(self.output, T.float32(0), [i, j])
        begin = T.int32(0)
        if self.window is not None:
            begin = T.bind(T.max(self.position - self.window + 1, 0) // KEYS)
        end = T.bind(T.ceildiv(self.position + self.count, KEYS))
        with T.serial(variable(end - begin, "int32")) as step:
            start = T.bind((begin + step) * KEYS)
            self._score(start)
            self._weigh(start)
            self._add_values(start)
        self._write()

    def _row_of(self, i: int):
        return T.bind(self.y * self.own + i)

    def _load_queries(self) -> None:
        """The rotated queries, times the scores' factor. Rows beyond the last token repeat it."""
        rotation, half, dim, qkv = self.prefill.rotation, self.prefill.rotation.half, self.dim, self.prefill.qkv
        factor = exact(score_factor(self.prefill.cache))
        for extent, rotated in ((half, True), (dim - 2 * half, False)):
            if not extent:
                continue
            with strided(self.thread, _THREADS, self.prefill.tile * extent) as item:
                token, i = T.bind(item // extent), T.bind(item % extent)
                source = T.bind(self.first + T.min(token, self.count - 1))
                if rotated:
                    cosine, sine = rotation.angle(T.bind(self.paged.positions[source]), i)
                with T.serial(self.size) as h:
                    row, at = T.bind(token * self.size + h), (source, (self.first_head + h) * dim)
                    if rotated:
                        a, b = rotation.rotate(qkv, at, i, cosine, sine)
                        T.buffer_store(self.queries, a * factor, [row, i])
                        T.buffer_store(self.queries, b * factor, [row, half + i])
                    else:
                        T.buffer_store(self.queries, qkv[(source, at[1] + 2 * half + i)] * factor, [row, 2 * half + i])

    def _page_row(self, position):
        """Where a key is; for those beyond the last it is the last."""
        return self.paged.row(self.sequence, T.bind(T.min(position, self.length - 1)))

    def _score(self, start) -> None:
        for i in range(self.own):
            for j in range(_KEYS_OF_THREAD):
                T.buffer_store(self.scores, T.float32(0), [i, j])
        with T.serial(-(-self.dim // self.key_dims)) as step:
            first = T.bind(step * self.key_dims)
            barrier()
            vectors = self.key_dims // VECTOR
            with strided(self.thread, _THREADS, KEYS * vectors) as item:
                key, d = T.bind(item // vectors), T.bind(item % vectors * VECTOR)
                with T.If(first + d < self.dim), T.Then():
                    row = self._page_row(T.bind(start + key))
                    for i, number in enumerate(self._numbers(KEY, row, T.bind(first + d))):
                        T.buffer_store(self.slice, number, [key * self.pitch + d + i])
            barrier()
            with T.serial(T.min(self.key_dims, self.dim - first) // VECTOR) as v:
                self._multiply(first, T.bind(v * VECTOR))

    def _numbers(self, which: int, row, dimension):
        """Four numbers of a key or value."""
        numbers = self.paged.load4(which, self.key_head, row, dimension)
        if self.paged.scales is None:
            return numbers
        scale = self.paged.scale(which, self.key_head, row)
        return [number * scale for number in numbers]

    def _multiply(self, first, d) -> None:
        """Add four dimensions of a slice to the scores."""
        places = [T.bind((self.x + j * _X) * self.pitch + d) for j in range(_KEYS_OF_THREAD)]
        keys = [load4(self.slice, place) for place in places]
        for i in range(self.own):
            query = load4(self.queries, self._row_of(i), first + d)
            for j, key in enumerate(keys):
                score = self.scores[i, j]
                for a, b in zip(query, key, strict=True):
                    score = score + a * b
                T.buffer_store(self.scores, score, [i, j])

    def _weigh(self, start) -> None:
        """Write the weights of a block's keys, and correct the sums for a new largest score."""
        for i in range(self.own):
            row = self._row_of(i)
            last = T.bind(self.position + T.min(row // self.size, self.count - 1))  # key that the row sees
            peak = cell(NO_SCORE)
            for j in range(_KEYS_OF_THREAD):
                key = T.bind(start + self.x + j * _X)
                visible = key <= last
                if self.window is not None:
                    visible = tirx.all(visible, key > last - self.window)
                T.buffer_store(self.scores, tirx.Select(visible, self.scores[i, j], T.float32(NO_SCORE)), [i, j])
                T.buffer_store(peak, T.max(peak[0], self.scores[i, j]), [0])
            T.buffer_store(self.peaks, peak[0], [row, self.x])
        barrier()
        for i in range(self.own):
            row, peak = self._row_of(i), cell(self.largest[i])
            for x in range(0, _X, VECTOR):
                for number in load4(self.peaks, row, x):
                    T.buffer_store(peak, T.max(peak[0], number), [0])
            correction = exp2(self.largest[i] - peak[0])
            T.buffer_store(self.largest, peak[0], [i])
            T.buffer_store(self.total, self.total[i] * correction, [i])
            for j in range(_KEYS_OF_THREAD):
                weight = exp2(self.scores[i, j] - peak[0])
                T.buffer_store(self.total, self.total[i] + weight, [i])
                T.buffer_store(self.weights, weight, [row, self.x + j * _X])
            for j in range(self.columns):
                T.buffer_store(self.output, self.output[i, j] * correction, [i, j])

    def _add_values(self, start) -> None:
        vectors = self.dim // VECTOR
        with T.serial(-(-KEYS // self.slice_values)) as step:
            first = T.bind(step * self.slice_values)
            barrier()
            with strided(self.thread, _THREADS, self.slice_values * vectors) as item:
                key, d = T.bind(item // vectors), T.bind(item % vectors * VECTOR)
                row = self._page_row(T.bind(start + first + key))
                for i, number in enumerate(self._numbers(VALUE, row, d)):
                    T.buffer_store(self.slice, number, [key * self.dim + d + i])
            barrier()
            with T.serial(T.min(self.slice_values, KEYS - first)) as key:
                weights = [T.bind(self.weights[self._row_of(i), first + key]) for i in range(self.own)]
                for j in range(self.columns):
                    # threads beyond the last dimension read another number, and their sums are not used
                    d = T.bind(T.min(self.x + j * _X, self.dim - 1)) if self.dim % _X else self.x + j * _X
                    value = T.bind(self.slice[key * self.dim + d])
                    for i in range(self.own):
                        T.buffer_store(self.output, self.output[i, j] + weights[i] * value, [i, j])

    def _write(self) -> None:
        for i in range(self.own):
            T.buffer_store(self.peaks, self.total[i], [self._row_of(i), self.x])
        barrier()
        for i in range(self.own):
            row, total = self._row_of(i), cell(0.0)
            for x in range(0, _X, VECTOR):
                for number in load4(self.peaks, row, x):
                    T.buffer_store(total, total[0] + number, [0])
            token, head = T.bind(row // self.size), T.bind(self.first_head + row % self.size)
            with T.If(token < self.count), T.Then():
                for j in range(self.columns):
                    d = T.bind(self.x + j * _X)
                    with T.If(d < self.dim), T.Then():
                        place = [self.first + token, head * self.dim + d]
                        T.buffer_store(self.prefill.out, self.output[i, j] / total[0], place)


def prefill_attention(cache: CacheShape, rotation: Rotation) -> tirx.PrimFunc:
    """PrimFunc with the arguments of kv_cache.py, qkv `[n, fused width]` and out `[n, q heads * head_dim]` in
    float32."""
    return attention_kernel("prefill_attention", lambda k: _Prefill(k, cache, rotation))
