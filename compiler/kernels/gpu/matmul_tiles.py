"""y = x W^T for many rows of x: a workgroup computes a block of rows x 128 outputs from blocks in shared memory.

    x block [rows, 32]   weights [32, 8 tiles of 16]       thread (m, n) of 16 x 16: `per_thread` rows from m on,
                                                           outputs 4n .. 4n + 3 of the left and of the right half

The halves are neighbours, or gate and up of the same outputs. Weights become float32 once for each block of rows. A
thread reads 16 bytes of x for 4 columns of a row and 32 of weights for a column: 16 * per_thread + 128 bytes of shared
memory for 32 * per_thread multiply-adds.
"""
# mypy: ignore-errors

from tvm.tirx.script.builder import ir as T

from ..builder import load, splat, zeros
from ..operations import Arguments, Matmul
from .launch import barrier, cell, private, shared, strided
from .matmul import inverse_root, load_row, rows_of, write
from .matmul_block import HALF, THREADS, WeightBlock, launch_blocks
from .matmul_weights import QUAD, quad, registers

_SIDE = 16  # threads along rows, and along outputs
_STEP = 32  # columns that lie in shared memory
_X_STRIDE = _STEP + QUAD  # rows of x start in different banks
_PARTS = _STEP // QUAD  # threads that read a row of x


def multiply_tiles(op: Matmul, a: Arguments, count, per_thread: int) -> None:
    """A launch for all rows; `count` of them, int32."""
    launch_blocks(
        op, count, _SIDE * per_thread, -(-op.padded_columns // _STEP),
        lambda *place: _Block(op, a, per_thread, count, *place),
    )  # fmt: skip


class _Block:
    """The statements of one thread."""

    def __init__(self, op: Matmul, a: Arguments, per_thread: int, count, column_block, first_row, thread) -> None:
        self.op, self.a, self.per_thread, self.thread = op, a, per_thread, thread
        self.column_block, self.first_row, self.count = column_block, first_row, count
        self.x, self.y = rows_of(a.x, op.in_features), rows_of(a.y, op.result_features)
        self.residual = rows_of(a.residual, op.out_features) if op.residual else None
        self.norm = rows_of(a.norm, op.in_features) if op.norm_eps is not None else None
        self.rows = _SIDE * per_thread
        self.m, self.n = T.floordiv(thread, _SIDE) * per_thread, T.floormod(thread, _SIDE) * QUAD
        self.x_block = shared([self.rows * _X_STRIDE])  # flat: TVM would cut the padding off, which nobody accesses
        self.weights = shared([_STEP, 2 * HALF])
        self.sums = [[registers(zeros(QUAD)) for _ in range(2)] for _ in range(per_thread)]
        self.part = T.floormod(thread, _PARTS) * QUAD
        at_once = THREADS // _PARTS  # rows of x that all threads together read
        self.x_values = [(first + T.floordiv(thread, _PARTS), private(QUAD)) for first in range(0, self.rows, at_once)]
        self.weight_block = WeightBlock(op, a, _STEP, column_block, thread)
        if self.norm is not None:
            self.norm_values = private(QUAD)
            self.squares = [cell(0.0) for _ in self.x_values]
            self.inverse = shared([self.rows])

    def fetch(self, step) -> None:
        """Bring the columns of a step to registers: 8 threads read 128 bytes of a row of x."""
        in_features, ends = self.op.in_features, -(-self.op.padded_columns // _STEP) * _STEP
        column = step * _STEP + self.part
        if self.norm is not None:
            load_row(self.norm_values, self.norm, 0, column, QUAD, in_features, ends=ends)
        for m, values in self.x_values:
            row = T.min(self.first_row + m, self.count - 1)
            load_row(values, self.x, row, column, QUAD, in_features, ends=ends)
        self.weight_block.fetch(step)

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
        self.weight_block.put(lambda c, n, weight: T.buffer_store(self.weights, weight, [c, quad(n)]))

    def multiply(self) -> None:
        """Add what is in shared memory to the thread's sums."""
        x = private(self.per_thread * QUAD)
        with T.serial(0, _STEP // QUAD) as k:
            for r in range(self.per_thread):
                T.buffer_store(x, self.x_block[quad((self.m + r) * _X_STRIDE + k * QUAD)], [quad(r * QUAD)])
            for c in range(QUAD):
                for half in range(2):
                    weights = registers(self.weights[k * QUAD + c, quad(half * HALF + self.n)])
                    for r, sums in enumerate(self.sums):
                        value = load(sums[half], QUAD) + splat(x[r * QUAD + c], QUAD) * load(weights, QUAD)
                        T.buffer_store(sums[half], value, [quad(0)])

    def write(self) -> None:
        """Write the thread's outputs."""
        op = self.op
        if self.norm is not None:
            self._find_inverse()
        width = HALF if op.swiglu else 2 * HALF
        for r in range(self.per_thread):
            row = self.first_row + self.m + r
            with T.If(row < self.count), T.Then():
                if self.norm is not None:
                    for sums in self.sums[r]:
                        value = load(sums, QUAD) * splat(self.inverse[self.m + r], QUAD)
                        T.buffer_store(sums, value, [quad(0)])
                for half in range(1 if op.swiglu else 2):
                    with T.serial(0, QUAD) as i:
                        column = self.column_block * width + half * HALF + self.n + i
                        with T.If(column < op.result_features), T.Then():
                            up = self.sums[r][1][i] if op.swiglu else None
                            write(op, self.a, self.y, self.residual, row, column, self.sums[r][half][i], up)

    def _find_inverse(self) -> None:
        """Add the threads' squares up: the 8 of a row wrote x, whose memory is free by now."""
        for (m, _), squares in zip(self.x_values, self.squares, strict=True):
            T.buffer_store(self.x_block, squares[0], [m * _X_STRIDE + T.floormod(self.thread, _PARTS)])
        barrier()
        with strided(self.thread, THREADS, self.rows) as m:
            total = self.x_block[m * _X_STRIDE]
            for part in range(1, _PARTS):
                total = total + self.x_block[m * _X_STRIDE + part]
            T.buffer_store(self.inverse, inverse_root(self.op, total), [m])
        barrier()
