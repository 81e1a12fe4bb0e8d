"""y = x W^T for many rows of x: a workgroup computes a block of rows x 128 outputs from blocks in shared memory.

    x block [rows, 32]   weights [32, 8 tiles of 16]       thread (m, n) of 16 x 16: `per_thread` rows from m on,
                                                           outputs 4n .. 4n + 3 of the left and of the right half

The halves are neighbours, or gate and up of the same outputs. Weights become float32 once for each block of rows. A
thread reads 16 bytes of x for 4 columns of a row and 32 of weights for a column: 16 * per_thread + 128 bytes of shared
memory for 32 * per_thread multiply-adds.
"""
# mypy: ignore-errors

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tvm.tirx.script.builder import ir as T

from ..builder import load, splat, zeros
from ..operations import Arguments, Matmul
from ..storage import TILE, tiles
from .launch import barrier, cell, launch, private, shared, strided
from .matmul import inverse_root, load_row, rows_of, write
from .matmul_weights import QUAD, QUADS, quad, reader, registers, weight_of

_SIDE = 16  # threads along rows, and along outputs
_THREADS = _SIDE * _SIDE
_STEP = 32  # columns that lie in shared memory
_HALF = _SIDE * QUAD  # outputs
_TILES = 2 * _HALF // TILE
_X_STRIDE = _STEP + QUAD  # rows of x start in different banks
_PARTS = _STEP // QUAD  # threads that read a row of x


def multiply_tiles(op: Matmul, a: Arguments, count, per_thread: int) -> None:
    """A launch for all rows; `count` of them, int32."""
    rows = _SIDE * per_thread
    width = _HALF if op.swiglu else 2 * _HALF
    grid = [T.floordiv(count + (rows - 1), rows), -(-op.result_features // width)]  # neighbours read the same weights
    with launch(grid, _THREADS) as ((row_block, column_block), (thread,)):
        block = _Block(op, a, per_thread, column_block, row_block * rows, count, thread)
        steps = -(-op.padded_columns // _STEP)
        block.fetch(0)
        with T.serial(0, steps) as step:
            block.put()
            barrier()
            block.fetch(T.min(step + 1, steps - 1))  # on its way while the products are made
            block.multiply()
            barrier()
        block.write()


class _Block:
    """The statements of one thread."""

    def __init__(self, op: Matmul, a: Arguments, per_thread: int, column_block, first_row, count, thread) -> None:
        self.op, self.a, self.per_thread, self.thread = op, a, per_thread, thread
        self.column_block, self.first_row, self.count = column_block, first_row, count
        self.x, self.y = rows_of(a.x, op.in_features), rows_of(a.y, op.result_features)
        self.residual = rows_of(a.residual, op.out_features) if op.residual else None
        self.norm = rows_of(a.norm, op.in_features) if op.norm_eps is not None else None
        self.reader = reader(op, a.weight, 1)
        self.rows = _SIDE * per_thread
        self.m, self.n = T.floordiv(thread, _SIDE) * per_thread, T.floormod(thread, _SIDE) * QUAD
        self.x_block = shared([self.rows * _X_STRIDE])  # flat: TVM would cut the padding off, which nobody accesses
        self.weights = shared([_STEP, 2 * _HALF])
        self.sums = [[registers(zeros(QUAD)) for _ in range(2)] for _ in range(per_thread)]
        self.part = T.floormod(thread, _PARTS) * QUAD
        at_once = _THREADS // _PARTS  # rows of x that all threads together read
        self.x_values = [(first + T.floordiv(thread, _PARTS), private(QUAD)) for first in range(0, self.rows, at_once)]
        cells = _STEP // self.reader.columns * _TILES * QUADS  # units of 4 rows in a step
        self.bringing = min(cells, _THREADS)
        self.units = [self._place(first + thread) for first in range(0, cells, _THREADS)]
        if self.norm is not None:
            self.norm_values = private(QUAD)
            self.squares = [cell(0.0) for _ in self.x_values]
            self.inverse = shared([self.rows])

    def _place(self, i):
        """(tile of the block, lane, offset in the step, registers) of the unit that is the i-th of a step."""
        lane, tile = T.floormod(i, QUADS) * QUAD, T.floormod(T.floordiv(i, QUADS), _TILES)
        return tile, lane, T.floordiv(i, QUADS * _TILES), self.reader.registers()

    def fetch(self, step) -> None:
        """Bring the columns of a step to registers: 8 threads read 128 bytes of a row of x, 4 threads 64 bytes of a
        tile of weights."""
        in_features, ends = self.op.in_features, -(-self.op.padded_columns // _STEP) * _STEP
        column = step * _STEP + self.part
        if self.norm is not None:
            load_row(self.norm_values, self.norm, 0, column, QUAD, in_features, ends=ends)
        for m, values in self.x_values:
            row = T.min(self.first_row + m, self.count - 1)
            load_row(values, self.x, row, column, QUAD, in_features, ends=ends)
        with self._weights_are_ours():
            for tile, lane, offset, unit in self.units:
                # past the last unit, x is zero
                number = T.min(step * (_STEP // self.reader.columns) + offset, self.reader.count - 1)
                self.reader.load(unit, self._tile(tile), lane, number)

    def put(self) -> None:
        """Bring what was fetched to shared memory: x normed, weights as float32."""
        for i, (m, values) in enumerate(self.x_values):
            value = load(values, QUAD)
            if self.norm is not None:
                squares = self.squares[i]
                for j in range(QUAD):
                    T.buffer_store(squares, squares[0] + values[j] * values[j], [0])
                value = value * load(self.norm_values, QUAD)
            T.buffer_store(self.x_block, value, [quad(m * _X_STRIDE + self.part)])
        with self._weights_are_ours():
            for tile, lane, offset, unit in self.units:
                self.reader.scale(unit)
                for c in range(self.reader.columns):
                    weight = weight_of(unit, self.reader.factor(unit, c))
                    T.buffer_store(self.weights, weight, [offset * self.reader.columns + c, quad(tile * TILE + lane)])

    @contextmanager
    def _weights_are_ours(self) -> Iterator[None]:
        """What the threads do that bring weights: of 4 bits, one half of them has all."""
        with ExitStack() as stack:
            if self.bringing < _THREADS:
                stack.enter_context(T.If(self.thread < self.bringing))
                stack.enter_context(T.Then())
            yield

    def _tile(self, j):
        """The number of the block's tile j; past the matrix, any tile."""
        if not self.op.swiglu:
            return T.min(self.column_block * _TILES + j, tiles(self.op.out_features) - 1)
        sets, half = self.op.tile_sets, _TILES // 2
        number = T.min(self.column_block * half + T.floormod(j, half), sets - 1)
        return number + T.floordiv(j, half) * sets

    def multiply(self) -> None:
        """Add what is in shared memory to the thread's sums."""
        x = private(self.per_thread * QUAD)
        with T.serial(0, _STEP // QUAD) as k:
            for r in range(self.per_thread):
                T.buffer_store(x, self.x_block[quad((self.m + r) * _X_STRIDE + k * QUAD)], [quad(r * QUAD)])
            for c in range(QUAD):
                for half in range(2):
                    weights = registers(self.weights[k * QUAD + c, quad(half * _HALF + self.n)])
                    for r, sums in enumerate(self.sums):
                        value = load(sums[half], QUAD) + splat(x[r * QUAD + c], QUAD) * load(weights, QUAD)
                        T.buffer_store(sums[half], value, [quad(0)])

    def write(self) -> None:
        """Write the thread's outputs."""
        op = self.op
        if self.norm is not None:
            self._find_inverse()
        width = _HALF if op.swiglu else 2 * _HALF
        for r in range(self.per_thread):
            row = self.first_row + self.m + r
            with T.If(row < self.count), T.Then():
                if self.norm is not None:
                    for sums in self.sums[r]:
                        value = load(sums, QUAD) * splat(self.inverse[self.m + r], QUAD)
                        T.buffer_store(sums, value, [quad(0)])
                for half in range(1 if op.swiglu else 2):
                    with T.serial(0, QUAD) as i:
                        column = self.column_block * width + half * _HALF + self.n + i
                        with T.If(column < op.result_features), T.Then():
                            up = self.sums[r][1][i] if op.swiglu else None
                            write(op, self.a, self.y, self.residual, row, column, self.sums[r][half][i], up)

    def _find_inverse(self) -> None:
        """Add the threads' squares up: the 8 of a row wrote x, whose memory is free by now."""
        for (m, _), squares in zip(self.x_values, self.squares, strict=True):
            T.buffer_store(self.x_block, squares[0], [m * _X_STRIDE + T.floormod(self.thread, _PARTS)])
        barrier()
        with strided(self.thread, _THREADS, self.rows) as m:
            total = self.x_block[m * _X_STRIDE]
            for part in range(1, _PARTS):
                total = total + self.x_block[m * _X_STRIDE + part]
            T.buffer_store(self.inverse, inverse_root(self.op, total), [m])
        barrier()
