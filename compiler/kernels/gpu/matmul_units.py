"""y = x W^T for many rows of x by matrix units: float16 products, float32 sums.

A first launch writes x as float16: normed, or each row divided by its root mean square, so that no value is larger than
the root of the number of columns; sums are multiplied by what was divided by. Then a workgroup of 8 warps (4 of 64
lanes) computes a block of 64 or 128 rows x 128 outputs (two halves of 64: neighbours, or gate and up of the same
outputs) from blocks of 64 columns in shared memory, where weights are float16 too:

    x block [rows, 64]   weights [64, 8 tiles of 16]       warp (m, n): 32 rows, 16 to 64 outputs of each half

The next block is on its way to registers meanwhile. A weight is widened once for 64 or 128 rows, which takes about 4
instructions: for 128 rows, 1 / 32 of one for each multiply-add. Of 8 warps each reads 4 fragments for 4 products of
16 x 16 x 16 (128 rows: 6 for 8).
"""
# mypy: ignore-errors

from tvm.tirx.script.builder import ir as T

from ...target.target import GpuTraits
from ..operations import Arguments, Matmul
from .launch import barrier, cell, launch, private, shared, strided
from .matmul import rows_of, write
from .matmul_block import HALF, THREADS, WeightBlock, launch_blocks
from .matmul_weights import QUAD, quad
from .matrix_units import FRAGMENT, MatrixUnits
from .reduce import sum_of_workgroup

_COLUMNS = 64  # x is filled up to a multiple of them
_ROWS = (64, 128)  # of a workgroup
_WARP_ROWS = 2 * FRAGMENT
_PADDING = 8  # float16: rows start in different banks
_LEAST_SQUARE = 1e-30  # a row of zeros has a root too


def unit_rows(traits: GpuTraits, units: MatrixUnits) -> list[int]:
    """How many rows a workgroup may compute, by the shared memory that it has."""
    others = _sums_of_warps(units) * 4 if units.own_memory else 0
    weights = 2 * _weight_places(units)
    return [rows for rows in _ROWS if 2 * rows * (units.step + _PADDING) + weights + others <= traits.shared_bytes]


def _weight_places(units: MatrixUnits) -> int:
    """How many float16 the weights of a step take in shared memory."""
    return 2 * HALF * (units.step + _PADDING) if units.turned else units.step * (2 * HALF + _PADDING)


def _sums_of_warps(units: MatrixUnits) -> int:
    """How many sums lie in shared memory on their way to the output: a fragment of each half from each warp."""
    return THREADS // units.lanes * 2 * FRAGMENT * FRAGMENT


class HalfRows:
    """x as float16 in the device's memory, its rows and columns filled up to whole blocks, and each row's factor."""

    def __init__(self, op: Matmul, count, most_rows: int) -> None:
        self.columns = -(-op.padded_columns // _COLUMNS) * _COLUMNS
        rows = T.floordiv(count + (most_rows - 1), most_rows) * most_rows
        self.values = T.sblock_alloc_buffer((rows, self.columns), "float16")
        self.factors = T.sblock_alloc_buffer((rows,), "float32")

    def write(self, op: Matmul, a: Arguments, count, traits: GpuTraits) -> None:
        """The launch that fills them: a workgroup for each row."""
        with launch([count], THREADS) as ((row,), (thread,)):
            x, values, factors = (
                rows_of(a.x, op.in_features),
                rows_of(self.values, self.columns),
                rows_of(self.factors, 1),
            )
            squares = cell(0.0)
            with strided(thread, THREADS, op.in_features) as i:
                T.buffer_store(squares, squares[0] + x[row, i] * x[row, i], [0])
            mean = sum_of_workgroup(squares[0], thread, THREADS, traits) / T.float32(op.in_features)
            root = cell(T.sqrt(mean + T.float32(_LEAST_SQUARE if op.norm_eps is None else op.norm_eps)))
            with T.If(thread == 0), T.Then():
                T.buffer_store(factors, root[0] if op.norm_eps is None else T.float32(1), [row, 0])
            with strided(thread, THREADS, self.columns) as i, T.If(i < op.in_features):
                with T.Then():
                    value = x[row, i] / root[0]
                    value = value if op.norm_eps is None else value * a.norm[i]
                    T.buffer_store(values, T.cast(value, "float16"), [row, i])
                with T.Else():
                    T.buffer_store(values, T.float16(0), [row, i])


def multiply_units(op: Matmul, a: Arguments, x: HalfRows, count, rows: int, units: MatrixUnits) -> None:
    """A launch for all rows, `rows` (of `unit_rows`) in each workgroup; `count` of them, int32."""
    launch_blocks(
        op, count, rows, x.columns // units.step, lambda *place: _Block(op, a, x, rows, units, count, *place)
    )  # fmt: skip


class _Block:
    """The statements of one thread."""

    def __init__(
        self, op: Matmul, a: Arguments, x: HalfRows, rows: int, matrix_units: MatrixUnits, count,
        column_block, first_row, thread,
    ) -> None:  # fmt: skip
        self.op, self.a, self.rows, self.thread, self.matrix = op, a, rows, thread, matrix_units
        self.column_block, self.first_row, self.count = column_block, first_row, count
        self.x, self.factors = rows_of(x.values, x.columns), rows_of(x.factors, 1)
        self.y = rows_of(a.y, op.result_features)
        self.residual = rows_of(a.residual, op.out_features) if op.residual else None
        self.step, self.x_stride = matrix_units.step, matrix_units.step + _PADDING
        # flat: TVM would cut columns off that nobody accesses, the padding
        self.x_block = shared([rows * self.x_stride], "float16")
        self.weights = shared([_weight_places(matrix_units)], "float16")
        self.weight_stride = self.x_stride if matrix_units.turned else 2 * HALF + _PADDING
        wide = matrix_units.vector
        parts = self.step // wide  # threads that read a row
        self.part = T.floormod(thread, parts) * wide
        self.x_values = [(first + T.floordiv(thread, parts), private(wide, "float16"))
                         for first in range(0, rows, THREADS // parts)]  # fmt: skip
        self.weight_block = WeightBlock(op, a, self.step, column_block, thread)
        lanes, down = matrix_units.lanes, rows // _WARP_ROWS
        self.across = HALF * down // (THREADS // lanes * FRAGMENT)  # fragments of a half that a warp computes
        self.warp = matrix_units.warp(thread)
        self.warp_row, self.warp_column = self._place(self.warp)
        self.sums = matrix_units.sums(4 * self.across)
        self.left, self.right = matrix_units.left(2), matrix_units.right(2)  # the right ones in turns

    def _place(self, warp) -> tuple:
        """The first row and the first column of what a warp computes."""
        down = self.rows // _WARP_ROWS
        return T.floormod(warp, down) * _WARP_ROWS, T.floordiv(warp, down) * (self.across * FRAGMENT)

    def fetch(self, step) -> None:
        """Bring the columns of a step to registers: 8 or 16 threads read 128 bytes of a row of x."""
        wide = self.matrix.vector
        for m, values in self.x_values:
            columns = T.ramp(step * self.step + self.part, 1, wide)
            T.buffer_store(values, self.x[self.first_row + m, columns], [T.ramp(0, 1, wide)])
        self.weight_block.fetch(step)

    def put(self) -> None:
        """Bring what was fetched to shared memory, weights as float16."""
        wide = self.matrix.vector
        for m, values in self.x_values:
            T.buffer_store(self.x_block, values[T.ramp(0, 1, wide)], [T.ramp(m * self.x_stride + self.part, 1, wide)])
        self.weight_block.put(self._put_weight)

    def _put_weight(self, c, n, weight) -> None:
        weight = T.cast(weight, "float16x4")
        if not self.matrix.turned:
            T.buffer_store(self.weights, weight, [quad(self._weight_place(c, n))])
            return
        numbers = private(QUAD, "float16")
        T.buffer_store(numbers, weight, [quad(0)])
        for i in range(QUAD):
            T.buffer_store(self.weights, numbers[i], [self._weight_place(c, n + i)])

    def _weight_place(self, c, n):
        """Where the weight of a column of the step and an output of the block lies."""
        return n * self.weight_stride + c if self.matrix.turned else c * self.weight_stride + n

    def multiply(self) -> None:
        """Add what is in shared memory to the warp's sums."""
        for k in range(0, self.step, FRAGMENT):
            for i in range(2):
                start = (self.warp_row + i * FRAGMENT) * self.x_stride + k
                self.matrix.load_left(self.left, i, self.x_block, start, self.x_stride)
            for j in range(2 * self.across):
                start = self._weight_place(k, self._column(j))
                self.matrix.load_right(self.right, j % 2, self.weights, start, self.weight_stride)
                for i in range(2):
                    self.matrix.multiply(self.sums, i * 2 * self.across + j, self.left, i, self.right, j % 2)

    def _column(self, j: int):
        """Where the warp's fragment j starts among the block's outputs: the first half's come first."""
        return self.warp_column + (j // self.across * HALF + j % self.across * FRAGMENT)

    def write(self) -> None:
        """Write the workgroup's outputs."""
        if not self.matrix.places(0):
            self._write_through_memory()
            return
        for i in range(2):
            for j in range(self.across):
                each = [self.matrix.places(self._sums_of(i, j, half)) for half in range(2)]
                for (left, r, c), (right, _, _) in zip(*each, strict=True):
                    self._write_output([self.sums[left], self.sums[right]], i, j, r, c)

    def _sums_of(self, i: int, j: int, half: int) -> int:
        """The number of the warp's sums (i, j) of a half."""
        return (i * 2 + half) * self.across + j

    def _write_through_memory(self) -> None:
        """Write the outputs by way of shared memory: nobody knows which lane has what."""
        size, lanes, count = FRAGMENT * FRAGMENT, self.matrix.lanes, _sums_of_warps(self.matrix)
        if self.matrix.own_memory:
            places = shared([count])
        else:
            places = T.decl_buffer((count,), "float32", data=self.weights.data, scope="shared")
        mine, others = (warp * (2 * size) for warp in (self.warp, T.floordiv(self.thread, lanes)))
        # lanes of other warps may write what a warp has computed
        self.warp_row, self.warp_column = self._place(T.floordiv(self.thread, lanes))
        for i in range(2):
            for j in range(self.across):
                for half in range(2):
                    self.matrix.store(self.sums, self._sums_of(i, j, half), places, mine + half * size)
                barrier()
                with strided(T.floormod(self.thread, lanes), lanes, size) as e:
                    values = [places[others + half * size + e] for half in range(2)]
                    self._write_output(values, i, j, T.floordiv(e, FRAGMENT), T.floormod(e, FRAGMENT))
                barrier()

    def _write_output(self, values: list, i: int, j: int, r, c) -> None:
        """Write output (r, c) of the warp's fragments (i, j) of both halves."""
        op = self.op
        row = self.first_row + self.warp_row + i * FRAGMENT + r
        for half in range(1 if op.swiglu else 2):
            column = self.column_block * (HALF if op.swiglu else 2 * HALF) + half * HALF + self._column(j) + c
            with T.If(T.And(row < self.count, column < op.result_features)), T.Then():
                factor = self.factors[row, 0]
                up = values[1] * factor if op.swiglu else None
                write(op, self.a, self.y, self.residual, row, column, values[half] * factor, up)
