# mypy: ignore-errors
"""Products of decode attention in float32: queries by the keys of a block, weights by its values.

Compute and memory have to go on at the same time. Prefetches alone cannot keep memory busy: a core has too few buffers
for lines that it waits for. But where lines are asked for in the order in which they lie in memory, the hardware reads
ahead by itself. A block is four pages, most often a sheet; it is used in memory's order, and as much of the next one is
asked for as is used of this:

    used        keys of head 0    keys of head 1    ...    values of head 0    ...    of this block
    asked for   keys of head 0    keys of head 1    ...    values of head 0    ...    of the next block
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from ..kv_cache import PAGE_SIZE, SHEET_PAGES
from .decode_rows import Rows
from .flash import HeadShape
from .kv_pages import KEY, NUMBERS, VALUE, HeadPage, PagedKV
from .vector import Expr, constant, each, settled, span, splat


def parts(count: int, most: int) -> list[range]:
    """0..count in parts of at most `most`, about the same in each."""
    size = -(-count // -(-count // most))
    return [range(first, min(first + size, count)) for first in range(0, count, size)]


def each_tile(count: int, most: int, emit: Callable[[Expr, int], None]) -> None:
    """emit(first, size) for such parts."""
    size = len(parts(count, most)[0])
    each(count // size, lambda i: emit(i * size, size))
    if count % size:
        emit(count // size * size, count % size)


@dataclass(frozen=True)
class KeyBlock:
    """A block of keys and values of a sequence, and the rows that use the first `present` of them."""

    shape: HeadShape
    paged: PagedKV
    sequence: Expr
    first_page: Expr
    last_page: Expr  # of the sequence
    present: Expr
    rows: Rows

    def page(self, which: int, head: Expr, number: Expr) -> tuple[HeadPage, HeadPage]:
        """The keys or values of a head in a page of the block, and those that are asked for meanwhile."""
        return tuple(
            self.paged.head(self.sequence, T.min(self.first_page + number + ahead, self.last_page), which, head)
            for ahead in (0, SHEET_PAGES)
        )

    @property
    def accumulators(self) -> int:
        """Registers for sums; the others are for operands."""
        return 24 if self.shape.unit.registers >= 32 else 12


class FloatProducts:
    """Queries, and their products and those of weights."""

    def __init__(self, shape: HeadShape, queries) -> None:
        """`queries`: float32 [rows, head_dim]."""
        self.shape, self.queries = shape, queries

    def prepare(self) -> None:
        """Queries are used as they are."""

    def score(self, block: KeyBlock, head: Expr) -> None:
        """scores[row, key] = query . key for the rows of a head. Lanes are keys."""
        lanes = self.shape.vectors.lanes
        with T.serial(T.ceildiv(block.present, lanes)) as part:
            column, key = T.bind(part * lanes), T.bind(part * lanes % PAGE_SIZE)
            keys, ahead = block.page(KEY, head, column // PAGE_SIZE)
            ahead.prefetch_scales()
            for rows in parts(self.shape.group, block.accumulators // NUMBERS):
                cells = self._dots(keys, ahead if rows[0] == 0 else None, head, rows, key)
                for row in rows:
                    total = sum_of([cells[row, i][span(0, lanes)] for i in range(NUMBERS)])
                    if keys.quantized:
                        total = total * keys.scale(key, lanes)
                    T.buffer_store(block.rows.scores, total, [head * self.shape.group + row, span(column, lanes)])

    def _dots(self, keys: HeadPage, ahead: HeadPage | None, head: Expr, rows: Sequence[int], key: Expr):
        """The sums of each row's products with `lanes` keys, over every fourth dimension, in cells [row, first]."""
        lanes, whole = self.shape.vectors.lanes, span(0, self.shape.vectors.lanes)
        cells = {(row, i): T.alloc_buffer((lanes,), "float32") for row in rows for i in range(NUMBERS)}
        for cell in cells.values():
            T.buffer_store(cell, constant(0.0, lanes), [whole])
        with T.serial(self.shape.head_dim // NUMBERS) as step:
            d = T.bind(step * NUMBERS)
            if ahead is not None:  # as much as is used
                ahead.prefetch(d * PAGE_SIZE + key * NUMBERS, lanes * NUMBERS)
            vectors = keys.keys(key, d, lanes)
            for row in rows:
                for i, vector in enumerate(vectors):
                    query = splat(self.queries[head * self.shape.group + row, d + i], lanes)
                    T.buffer_store(cells[row, i], cells[row, i][whole] + query * vector, [whole])
        return cells

    def add_values(self, block: KeyBlock, head: Expr) -> None:
        """output = rescale * output + weights x values for the rows of a head. Lanes are dimensions."""
        shape, lanes = self.shape, self.shape.vectors.lanes
        if block.paged.scales is not None:
            self._scale_weights(block, head)

        def add_columns(first: Expr, count: int) -> None:
            for rows in parts(shape.group, block.accumulators // count):
                self._add_tile(block, head, rows, first, range(count))

        each_tile(shape.head_dim // lanes, 4 if shape.unit.registers >= 32 else 2, add_columns)

    def _scale_weights(self, block: KeyBlock, head: Expr) -> None:
        """Multiply weights by the scales of their values; there may be anything in those of keys that are not there."""
        lanes = self.shape.vectors.lanes
        end = T.bind(splat(block.present, lanes))
        with T.serial(T.ceildiv(block.present, lanes)) as part:
            place, number = span(part * lanes, lanes), part * lanes // PAGE_SIZE
            scale = block.page(VALUE, head, number)[0].scale(part * lanes % PAGE_SIZE, lanes)
            scales = T.bind(T.Select(place < end, scale, constant(0.0, lanes)))
            with T.serial(self.shape.group) as row:
                index = [head * self.shape.group + row, place]
                T.buffer_store(block.rows.scores, block.rows.scores[tuple(index)] * scales, index)

    def _add_tile(self, block: KeyBlock, head: Expr, rows: Sequence[int], first: Expr, columns: Sequence[int]) -> None:
        """Some vectors of some outputs, from vector `first` on, in registers."""
        shape, lanes, state = self.shape, self.shape.vectors.lanes, block.rows
        whole, first_row = span(0, lanes), head * shape.group
        cells = {(row, column): T.alloc_buffer((lanes,), "float32") for row in rows for column in columns}
        for (row, column), cell in cells.items():
            output = state.output[first_row + row, span((first + column) * lanes, lanes)]
            T.buffer_store(cell, output * state.rescale(first_row + row), [whole])

        def add(key: Expr, vectors: list[Expr]) -> None:
            for row in rows:
                weight = T.bind(splat(state.scores[first_row + row, key], lanes))
                for column, vector in zip(columns, vectors, strict=True):
                    T.buffer_store(cells[row, column], cells[row, column][whole] + weight * vector, [whole])

        with T.serial(T.ceildiv(block.present, PAGE_SIZE)) as number:
            values, ahead = block.page(VALUE, head, number)
            start = T.bind(number * PAGE_SIZE)
            here = settled(T.min(block.present - start, PAGE_SIZE))
            if rows[0] == 0:
                ahead.prefetch_scales()
            count = values.group
            with T.serial(T.ceildiv(here, count)) as step:
                if rows[0] == 0:
                    place = (step * shape.head_dim + first * lanes) * count
                    ahead.prefetch(place, count * len(columns) * lanes)
                vectors = [values.values(step, (first + column) * lanes, lanes) for column in columns]
                for i in range(count):
                    add(start + step * count + i, [vector[i] for vector in vectors])
        for (row, column), cell in cells.items():
            T.buffer_store(state.output, cell[whole], [first_row + row, span((first + column) * lanes, lanes)])


def sum_of(vectors: list[Expr]) -> Expr:
    """The sum of 2^n vectors, in pairs."""
    while len(vectors) > 1:
        vectors = [T.bind(a + b) for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    return vectors[0]
