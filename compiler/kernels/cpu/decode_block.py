# mypy: ignore-errors
"""One block of keys and values of one key head in decode attention.

Compute and memory have to go on at the same time. Prefetches alone cannot keep memory busy: a core has too few buffers
for lines that it waits for. But where lines are asked for in the order in which they lie in memory, the hardware reads
ahead by itself. So while a block is used, the next one is asked for in memory's order, whatever the order of use, and
always as many bytes as are read meanwhile:

    used        keys of head 0    values of head 0    keys of head 1   ...    of pages 0 to 3
    asked for   all heads of page 4 ..., page 5 ..., page 6 ..., page 7
"""

from collections.abc import Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from .flash import KEY_BLOCK, HeadShape, RowState
from .kv_pages import KEY, PAGE_SIZE, VALUE, PagedKV, index64
from .vector import Expr, fold, prefetch, settled, span, splat

BLOCK_PAGES = KEY_BLOCK // PAGE_SIZE


def _parts(count: int, most: int) -> list[range]:
    """0..count in parts of at most `most`, about the same in each."""
    size = -(-count // -(-count // most))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


@dataclass(frozen=True)
class KeyBlock:
    """The keys start <= key < start + present of a sequence, and the rows of queries and outputs that use them."""

    shape: HeadShape
    paged: PagedKV
    sequence: Expr
    head: Expr
    start: Expr
    present: Expr
    first_row: Expr

    def score(self, queries, scores) -> None:
        """scores[row, key] = queries[first_row + row] . key, for whole vectors of keys.

        Lanes are dimensions; the sums over lanes are taken for `lanes` keys together. First those of four keys are
        folded into one vector, in a loop that is short enough for the registers:

            key 0  a a a a a a a a ...         a b a b a b a b ...
            key 1  b b b b b b b b ...   ->                          ->   a b c d a b c d ...
            key 2  c c c c c c c c ...         c d c d c d c d ...
            key 3  d d d d d d d d ...
        """
        lanes, paged = self.shape.vectors.lanes, self.paged
        at_once = 3 if self.shape.unit.registers >= 32 else 1  # rows that share a load of the key
        with T.serial(T.ceildiv(self.present, lanes)) as part:
            first = T.bind(part * lanes)
            index = paged.index(self.sequence, self.start + first, KEY, self.head)
            for rows in _parts(self.shape.group, at_once):
                ahead = self._next_rows(KEY, first) if rows[0] == 0 else None
                totals = self._dots(queries, rows, index, ahead, T.min(self.present - first, lanes))
                for row, total in zip(rows, totals, strict=True):
                    if paged.scales is not None:
                        total = total * paged.row_scales(index, lanes)
                    T.buffer_store(scores, total, [row, span(first, lanes)])

    def _dots(self, queries, rows: Sequence[int], index, ahead, count) -> list[Expr]:
        """For each row, the vector of its products with `lanes` keys, of which `count` are there."""
        lanes = self.shape.vectors.lanes
        together = min(4, lanes)
        partial = T.alloc_buffer((lanes // together, len(rows), lanes), "float32")
        with T.serial(T.ceildiv(settled(count), together)) as four:
            keys = [(*index[:-2], index[-2] + four * together + j) for j in range(together)]
            sums = [[None] * together for _ in rows]
            for d in range(0, self.shape.head_dim, lanes):
                if ahead is not None and d == 0:
                    for j in range(together):
                        prefetch(self.paged.kv, (*ahead[:-2], ahead[-2] + four * together + j, 0), self.shape.head_dim)
                parts = [self.paged.load((*key, T.int64(0)), T.int64(d)) for key in keys]
                for r, row in enumerate(rows):
                    query = T.bind(queries[self.first_row + row, span(d, lanes)])
                    for j, part in enumerate(parts):
                        sums[r][j] = T.bind(query * part if d == 0 else sums[r][j] + query * part)
            for r in range(len(rows)):
                T.buffer_store(partial, _folded(sums[r], lanes, 1), [four, r, span(0, lanes)])
        fours = range(lanes // together)
        return [
            _folded([T.bind(partial[four, r, span(0, lanes)]) for four in fours], lanes, together)
            for r in range(len(rows))
        ]

    def add_values(self, scores, state: RowState) -> None:
        """output[first_row + row] = rescale * output + weights x values, the weights being in `scores`."""
        shape, paged, lanes = self.shape, self.paged, self.shape.vectors.lanes
        if paged.scales is not None:  # the weights take the factors of the values
            with T.serial(T.ceildiv(self.present, lanes)) as part:
                index = paged.index(self.sequence, self.start + part * lanes, VALUE, self.head)
                factors = T.bind(paged.row_scales(index, lanes))
                with T.serial(shape.group) as row:
                    place = span(part * lanes, lanes)
                    T.buffer_store(scores, scores[row, place] * factors, [row, place])
        for rows in _parts(shape.group, shape.tile_rows):
            for columns in _parts(shape.head_dim // lanes, shape.tile_columns):
                self._add_tile(scores, state, rows, columns)

    def _add_tile(self, scores, state: RowState, rows: Sequence[int], columns: Sequence[int]) -> None:
        """Some vectors of some outputs, in registers."""
        paged, lanes = self.paged, self.shape.vectors.lanes
        whole = span(0, lanes)
        cells = {(row, column): T.alloc_buffer((lanes,), "float32") for row in rows for column in columns}
        for (row, column), cell in cells.items():
            factor = splat(state.rescale[self.first_row + row], lanes)
            output = state.output[self.first_row + row, span(column * lanes, lanes)]
            T.buffer_store(cell, output * factor, [whole])
        with T.serial(T.ceildiv(self.present, PAGE_SIZE)) as page:
            first = T.bind(page * PAGE_SIZE)
            index = paged.index(self.sequence, self.start + first, VALUE, self.head)
            ahead = self._next_rows(VALUE, first)
            with T.serial(settled(T.min(self.present - first, PAGE_SIZE))) as k:
                if rows[0] == 0 and columns[0] == 0:
                    prefetch(paged.kv, (*ahead[:-2], index64(k), T.int64(0)), self.shape.head_dim)
                value = (*index[:-2], index64(k), T.int64(0))
                vectors = [paged.load(value, T.int64(column * lanes)) for column in columns]
                weights = [T.bind(splat(scores[row, first + k], lanes)) for row in rows]
                for (row, column), cell in cells.items():
                    product = weights[row - rows[0]] * vectors[column - columns[0]]
                    T.buffer_store(cell, cell[whole] + product, [whole])
        for (row, column), cell in cells.items():
            T.buffer_store(state.output, cell[whole], [self.first_row + row, span(column * lanes, lanes)])

    def _next_rows(self, which, first):
        """The index of what is asked for while the keys or values from the `first` of the block on are used: as much of
        the next block, in memory's order."""
        paged, heads = self.paged, self.shape.num_kv_heads
        order = settled((self.head * 2 + which) * BLOCK_PAGES + first // PAGE_SIZE)
        pages = T.bind(T.ceildiv(paged.lengths[self.sequence], PAGE_SIZE))
        page = settled(T.min(self.start // PAGE_SIZE + BLOCK_PAGES + order // (2 * heads), pages - 1))
        run = T.bind(T.floormod(order, 2 * heads))
        index = paged.index(self.sequence, page * PAGE_SIZE, run // heads, T.floormod(run, heads))
        return (*index[:-2], index64(T.floormod(first, PAGE_SIZE)), T.int64(0))


def _folded(vectors: list[Expr], lanes: int, stride: int) -> Expr:
    """One vector of the sums of several, each in lanes of its own: `stride` lanes after those of the one before."""
    while len(vectors) > 1:
        vectors = [fold(a, b, lanes, stride) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
        stride *= 2
    return vectors[0]
