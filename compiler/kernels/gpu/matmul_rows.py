"""y = x W^T for one row of x, or a few: weights stream through once, each read by one thread.

    threads   q0 q1 q2 q3 | q0 q1 q2 q3 | ...      a slot is 4 threads that read the 16 rows of a tile at the same
              slot 0      | slot 1      | ...      columns; slots take units of columns in turn, and add up at the end

Memory is the limit: a weight of 4 bits with float16 scales of 32 is 0.56 bytes; it costs two integer operations and a
multiply-add for each row of x. Loads are 16 bytes wide, 512 neighbouring bytes for 32 threads, and a thread has a unit
of each tile under way (16 to 160 bytes) before it needs the first. Each workgroup reads x once, through the caches:
4 bytes of a row for 16 or 32 weights.
"""
# mypy: ignore-errors

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ...target.target import GpuTraits
from ..builder import load, splat, zeros
from ..operations import Arguments, Matmul
from ..storage import TILE, GroupStorage
from .launch import cell, launch, private, strided
from .matmul import inverse_root, load_row, rows_of, write
from .matmul_weights import QUAD, QUADS, quad, reader, registers, weight_of
from .reduce import power_of_two, sum_over_slots

_WORDS = 5  # of codes that a thread loads at once for one row of x
_SLOTS = 64  # of a workgroup
_LEAST_SLOTS = 8
_BUSY = 0.8
_MANY_TILES = 512  # from here on there are workgroups enough to give each one two tiles


@dataclass(frozen=True)
class RowsPlan:
    """The shape of a workgroup's work."""

    rows: int  # of x
    tiles: int  # of the matrix
    slots: int
    words: int  # of codes that a thread loads at once


def plan_rows(op: Matmul, rows: int, traits: GpuTraits) -> RowsPlan:
    """How a workgroup takes `rows` rows."""
    words = _WORDS if rows == 1 else 1
    tiles = 2 if op.swiglu or op.out_features >= _MANY_TILES * TILE else 1
    per_word = op.storage.codes_per_word if isinstance(op.storage, GroupStorage) else QUAD
    units = -(-op.padded_columns // (per_word * min(words, 4)))
    return RowsPlan(rows, tiles, _slots(units, min(_SLOTS, power_of_two(traits.max_threads) // QUADS)), words)


def _slots(units: int, most: int) -> int:
    """As many slots as keep all of them busy for most of the time: the last turn may have few units left."""

    def busy(slots: int) -> float:
        return units / (-(-units // slots) * slots)

    choices = [most >> i for i in range(most.bit_length()) if most >> i >= _LEAST_SLOTS]
    return next((slots for slots in choices if busy(slots) >= _BUSY), max(choices, key=busy))


def multiply_rows(op: Matmul, a: Arguments, count, rows: int, traits: GpuTraits) -> None:
    """A launch that multiplies all rows, `rows` in each workgroup. `count`: of rows, int32, or 1."""
    plan = plan_rows(op, rows, traits)
    sets = -(-op.result_features // (TILE * (1 if op.swiglu else plan.tiles)))
    # neighbours read the same weights
    with launch([T.floordiv(count + (rows - 1), rows), sets], plan.slots * QUADS) as ((block, tile_set), (thread,)):
        tiles = [op.tile(tile_set, j) if op.swiglu else tile_set * plan.tiles + j for j in range(plan.tiles)]
        kernel = _RowsKernel(op, a, plan, tiles, block * rows, count)
        kernel.accumulate(thread)
        sums = sum_over_slots(kernel.vectors(), thread, plan.slots, traits)
        kernel.write(sums, thread)


class _RowsKernel:
    """The statements of one thread."""

    def __init__(self, op: Matmul, a: Arguments, plan: RowsPlan, tiles: list, first_row, count) -> None:
        self.op, self.a, self.plan, self.tiles, self.first_row, self.count = op, a, plan, tiles, first_row, count
        self.x, self.y = rows_of(a.x, op.in_features), rows_of(a.y, op.result_features)
        self.residual = rows_of(a.residual, op.out_features) if op.residual else None
        self.norm = rows_of(a.norm, op.in_features) if op.norm_eps is not None else None
        self.reader = reader(op, a.weight, plan.words)
        self.sums = [[registers(zeros(QUAD)) for _ in tiles] for _ in range(plan.rows)]
        # every thread of a slot sees the same x: lane i of vector v is the sum of squares of row 4v + i
        norms = -(-plan.rows // QUAD) if op.norm_eps is not None else 0
        self.squares = [registers(zeros(QUAD)) for _ in range(norms)]

    def vectors(self) -> list:
        """What has to be added up over slots."""
        return [v for row in self.sums for v in row] + self.squares

    def accumulate(self, thread) -> None:
        """Add the products of this thread's units to `sums`."""
        slots, count = self.plan.slots, self.reader.count
        lane, slot = T.bitwise_and(thread, QUADS - 1) * QUAD, T.shift_right(thread, T.int32(2))
        with T.serial(0, -(-count // slots)) as turn:
            unit = turn * slots + slot
            if count % slots:
                with T.If(unit < count), T.Then():
                    self._unit(lane, unit)
            else:
                self._unit(lane, unit)

    def _unit(self, lane, number) -> None:
        units = [self.reader.registers() for _ in self.tiles]
        for unit, tile in zip(units, self.tiles, strict=True):
            self.reader.load(unit, tile, lane, number)
        norm = None
        if self.op.norm_eps is not None:
            norm = private(self.reader.columns)
            self._load(norm, self.norm, 0, number)
        for unit in units:
            self.reader.scale(unit)
        if self.plan.rows == 1:
            self._one_row(units, self._row(0, number, norm))
        else:
            self._some_rows(units, number, norm)

    def _load(self, values, x, row, number) -> None:
        columns = self.reader.columns
        load_row(values, x, row, number * columns, columns, self.op.in_features, ends=self.reader.count * columns)

    def _row(self, r: int, number, norm):
        """The values of a row of x at the columns of a unit."""
        columns = self.reader.columns
        values = private(columns)
        row = self.first_row + r if r == 0 else T.min(self.first_row + r, self.count - 1)
        self._load(values, self.x, row, number)
        if norm is not None:
            squares = self.squares[r // QUAD]
            for i in range(columns):
                T.buffer_store(squares, squares[r % QUAD] + values[i] * values[i], [r % QUAD])
                T.buffer_store(values, values[i] * norm[i], [i])
        return values

    def _one_row(self, units: list, values) -> None:
        """sum x * (f * a + b) = a * sum x * f + b * sum x: scales meet sums, not weights."""
        total, dots = cell(0.0), [registers(zeros(QUAD)) for _ in units]
        for i in range(self.reader.columns):
            T.buffer_store(total, total[0] + values[i], [0])
            for dot, unit in zip(dots, units, strict=True):
                product = splat(values[i], QUAD) * self.reader.factor(unit, i)
                T.buffer_store(dot, load(dot, QUAD) + product, [quad(0)])
        for sums, dot, unit in zip(self.sums[0], dots, units, strict=True):
            value = load(dot, QUAD)
            if unit.a is not None:
                value = value * load(unit.a, QUAD) + splat(total[0], QUAD) * load(unit.b, QUAD)
            T.buffer_store(sums, load(sums, QUAD) + value, [quad(0)])

    def _some_rows(self, units: list, number, norm) -> None:
        """Weights in registers meet one row after another."""
        columns = self.reader.columns
        weights = [[registers(weight_of(u, self.reader.factor(u, i))) for i in range(columns)] for u in units]
        for r in range(self.plan.rows):
            values = self._row(r, number, norm)
            for j, sums in enumerate(self.sums[r]):
                for i in range(columns):
                    product = splat(values[i], QUAD) * load(weights[j][i], QUAD)
                    T.buffer_store(sums, load(sums, QUAD) + product, [quad(0)])

    def write(self, sums, thread) -> None:
        """Every thread writes some of the workgroup's outputs."""
        op, plan = self.op, self.plan
        width = TILE if op.swiglu else TILE * plan.tiles  # outputs of a row
        with strided(thread, plan.slots * QUADS, plan.rows * width) as i:
            r, offset = T.floordiv(i, width), T.floormod(i, width)
            row, column = self.first_row + r, self.tiles[0] * TILE + offset
            inside = row < self.count if plan.rows > 1 else None
            if op.result_features % width:
                fits = column < op.result_features
                inside = fits if inside is None else T.And(inside, fits)
            if inside is None:
                self._write_output(sums, r, offset, row, column)
            else:
                with T.If(inside), T.Then():
                    self._write_output(sums, r, offset, row, column)

    def _write_output(self, sums, r, offset, row, column) -> None:
        op, tiles = self.op, self.plan.tiles
        scale = T.float32(1)
        if op.norm_eps is not None:
            squares = sums[self.plan.rows * tiles + T.floordiv(r, QUAD), T.floormod(r, QUAD)]
            scale = cell(inverse_root(op, squares))[0]
        first = r * tiles + (0 if op.swiglu else T.floordiv(offset, TILE))
        lane = T.floormod(offset, TILE)
        up = sums[first + 1, lane] * scale if op.swiglu else None
        write(op, self.a, self.y, self.residual, row, column, sums[first, lane] * scale, up)
