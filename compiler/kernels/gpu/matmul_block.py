"""What multiplications of blocks share: steps over the columns, and the weights of 128 outputs on their way to shared
memory.

    weights [columns of a step, 8 tiles of 16]      the left and the right half are neighbours, or gate and up of the
                                                    same outputs
"""
# mypy: ignore-errors

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from tvm.tirx.script.builder import ir as T

from ..operations import Arguments, Matmul
from ..storage import TILE, tiles
from .launch import barrier, launch
from .matmul_weights import QUAD, QUADS, reader, weight_of

THREADS = 256
HALF = 64  # outputs
TILES = 2 * HALF // TILE


def launch_blocks(op: Matmul, count, rows: int, steps: int, make: Callable) -> None:
    """A launch that computes all outputs of `count` rows (int32), `rows` x 128 in each workgroup. `make(column_block,
    first_row, thread)` makes the statements of one thread: `fetch`, `put`, `multiply`, `write`."""
    width = HALF if op.swiglu else 2 * HALF
    grid = [T.floordiv(count + (rows - 1), rows), -(-op.result_features // width)]  # neighbours read the same weights
    with launch(grid, THREADS) as ((row_block, column_block), (thread,)):
        block = make(column_block, row_block * rows, thread)
        block.fetch(0)
        with T.serial(0, steps) as step:
            block.put()
            barrier()
            block.fetch(T.min(step + 1, steps - 1))  # on its way while the products are made
            block.multiply()
            barrier()
        block.write()


class WeightBlock:
    """A thread's share of the weights of `columns` columns."""

    def __init__(self, op: Matmul, a: Arguments, columns: int, column_block, thread) -> None:
        self.op, self.columns, self.column_block, self.thread = op, columns, column_block, thread
        self.reader = reader(op, a.weight, 1)
        cells = columns // self.reader.columns * TILES * QUADS  # units of 4 rows in a step
        self.bringing = min(cells, THREADS)
        self.units = [self._place(first + thread) for first in range(0, cells, THREADS)]

    def _place(self, i):
        """(tile of the block, lane, offset in the step, registers) of the unit that is the i-th of a step."""
        lane, tile = T.floormod(i, QUADS) * QUAD, T.floormod(T.floordiv(i, QUADS), TILES)
        return tile, lane, T.floordiv(i, QUADS * TILES), self.reader.registers()

    def fetch(self, step) -> None:
        """Bring the weights of a step to registers: 4 threads read 64 bytes of a tile."""
        with self._ours():
            for tile, lane, offset, unit in self.units:
                # past the last unit, x is zero
                number = T.min(step * (self.columns // self.reader.columns) + offset, self.reader.count - 1)
                self.reader.load(unit, self._tile(tile), lane, number)

    def put(self, store: Callable) -> None:
        """Call `store(column of the step, output, float32 x 4)` for what was fetched."""
        with self._ours():
            for tile, lane, offset, unit in self.units:
                self.reader.scale(unit)
                for c in range(self.reader.columns):
                    weight = weight_of(unit, self.reader.factor(unit, c))
                    store(offset * self.reader.columns + c, tile * TILE + lane, weight)

    @contextmanager
    def _ours(self) -> Iterator[None]:
        """What the threads do that bring weights: of 4 bits, one half of them has all of 32 columns."""
        with ExitStack() as stack:
            if self.bringing < THREADS:
                stack.enter_context(T.If(self.thread < self.bringing))
                stack.enter_context(T.Then())
            yield

    def _tile(self, j):
        """The number of the block's tile j; past the matrix, any tile."""
        if not self.op.swiglu:
            return T.min(self.column_block * TILES + j, tiles(self.op.out_features) - 1)
        sets, half = self.op.tile_sets, TILES // 2
        number = T.min(self.column_block * half + T.floormod(j, half), sets - 1)
        return number + T.floordiv(j, half) * sets
