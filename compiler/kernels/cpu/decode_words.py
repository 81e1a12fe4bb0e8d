# mypy: ignore-errors
"""Products of decode attention over caches of int8, by instructions that multiply four bytes of a word.

Keys and values are multiplied as they are stored. Queries and weights are rounded to integers of 15 and 16 bits, in
two bytes each:

    query    128 * high + low     signed, by keys with 128 added: 128 times the sum of the query is too much
    weight   256 * high + low     unsigned, by signed values
"""

from collections.abc import Sequence
from itertools import product

from tvm.script import tirx as T

from ..kv_cache import PAGE_SIZE
from .attention_dot import Dot, rounded_int32
from .decode_block import KeyBlock, each_tile, parts
from .flash import HeadShape
from .kv_pages import KEY, KEY_BLOCK, NUMBERS, VALUE, HeadPage
from .vector import Expr, abs_max, add, constant, reduce, settled, span, splat

LARGEST_QUERY = 127 * 128  # whose high byte is 127
LARGEST_WEIGHT = 65535
PLANES = range(2)  # high, low


class WordProducts:
    """Queries as integers, and their products and those of weights."""

    def __init__(self, shape: HeadShape, dot: Dot, floats, queries) -> None:
        """`floats`: the queries, float32 [rows, head_dim]; `queries`: room for their words, int32 [2, rows, ...]."""
        self.shape, self.dot, self.floats, self.queries = shape, dot, floats, queries
        self.scale = T.alloc_buffer((shape.num_q_heads,), "float32")
        self.offset = T.alloc_buffer((shape.num_q_heads,), "int32")  # what is added to the sums of a row
        self.weights = T.alloc_buffer((2, shape.group, KEY_BLOCK // NUMBERS), "int32")

    def prepare(self) -> None:
        """Round the queries."""
        shape, lanes = self.shape, self.shape.vectors.lanes
        dims = range(0, shape.head_dim, lanes)
        with T.serial(shape.num_q_heads) as row:
            vectors = [T.bind(self.floats[row, span(d, lanes)]) for d in dims]
            size = settled(T.max(abs_max(vectors, lanes), T.float32(1e-30)), "float32")
            T.buffer_store(self.scale, size * T.float32(1 / LARGEST_QUERY), [row])
            factor = T.bind(splat(T.float32(LARGEST_QUERY) / size, lanes))
            sums = constant(0, lanes, "int32")
            for d, vector in zip(dims, vectors, strict=True):
                number = rounded_int32(vector * factor, lanes)
                sums = settled(sums + number, "int32", lanes)
                high = settled((number + constant(64, lanes, "int32")) >> constant(7, lanes, "int32"), "int32", lanes)
                for plane, part in zip(PLANES, (high, number - (high << constant(7, lanes, "int32"))), strict=True):
                    T.buffer_store(self.queries, _words(part, lanes), [plane, row, _word_span(d, lanes)])
            T.buffer_store(self.offset, reduce(sums, lanes, add) * -128, [row])

    def score(self, block: KeyBlock, head: Expr) -> None:
        """scores[row, key] = query . key for the rows of a head. Lanes are keys."""
        shape, lanes = self.shape, self.shape.vectors.lanes
        whole, shift = span(0, lanes), constant(7, lanes, "int32")
        with T.serial(T.ceildiv(block.present, lanes)) as part:
            column, key = T.bind(part * lanes), T.bind(part * lanes % PAGE_SIZE)
            keys, ahead = block.page(KEY, head, column // PAGE_SIZE)
            ahead.prefetch_scales()
            scale = keys.scale(key, lanes)
            for rows in parts(shape.group, block.accumulators // 2):
                cells = self._dots(keys, ahead if rows[0] == 0 else None, head, rows, key)
                for row in rows:
                    index = head * shape.group + row
                    high, low = (cells[plane, row][whole] for plane in PLANES)
                    total = T.cast((high << shift) + low, f"float32x{lanes}")
                    total = total * (scale * splat(self.scale[index], lanes))
                    T.buffer_store(block.rows.scores, total, [index, span(column, lanes)])

    def _dots(self, keys: HeadPage, ahead: HeadPage | None, head: Expr, rows: Sequence[int], key: Expr):
        """The sums of each row's products with `lanes` keys, in cells [plane, row]."""
        shape, lanes = self.shape, self.shape.vectors.lanes
        whole = span(0, lanes)
        cells = {(plane, row): T.alloc_buffer((lanes,), "int32") for plane in PLANES for row in rows}
        for (plane, row), cell in cells.items():
            start = splat(self.offset[head * shape.group + row] if plane else T.int32(0), lanes)
            T.buffer_store(cell, start, [whole])
        with T.serial(shape.head_dim // NUMBERS) as word:
            if ahead is not None:
                ahead.prefetch((word * PAGE_SIZE + key) * NUMBERS, lanes * NUMBERS)
            vector = keys.key_word(key, word, lanes)
            for (plane, row), cell in cells.items():
                query = splat(self.queries[plane, head * shape.group + row, word], lanes)
                T.buffer_store(cell, self.dot.add(cell[whole], vector, query, lanes), [whole])
        return cells

    def add_values(self, block: KeyBlock, head: Expr) -> None:
        """output = rescale * output + weights x values for the rows of a head. Lanes are dimensions."""
        shape, lanes = self.shape, self.shape.vectors.lanes
        scale = self._round_weights(block, head)

        def add_columns(first: Expr, count: int) -> None:
            for rows in parts(shape.group, block.accumulators // 2 // count):
                self._add_tile(block, head, rows, first, range(count), scale)

        each_tile(shape.head_dim // lanes, 4 if shape.unit.registers >= 32 else 2, add_columns)

    def _round_weights(self, block: KeyBlock, head: Expr) -> Expr:
        """Round weights times the scales of their values. Returns what the integers are multiplied by."""
        lanes, planes = self.shape.vectors.lanes, PLANES
        end, none = T.bind(splat(block.present, lanes)), constant(0.0, lanes)
        places, scales = [span(key, lanes) for key in range(0, KEY_BLOCK, lanes)], []
        for i, place in enumerate(places):
            page = block.page(VALUE, head, i * lanes // PAGE_SIZE)[0]
            # there may be anything in the scales of keys that are not there
            scales.append(T.bind(T.Select(place < end, page.scale(i * lanes % PAGE_SIZE, lanes), none)))
        largest = settled(T.max(abs_max(scales, lanes), T.float32(1e-30)), "float32")
        factor = T.bind(splat(T.float32(LARGEST_WEIGHT) / largest, lanes))
        scales = [T.bind(scale * factor) for scale in scales]
        with T.serial(self.shape.group) as row:
            for i, (place, scale) in enumerate(zip(places, scales, strict=True)):
                weight = block.rows.scores[head * self.shape.group + row, place]
                number = rounded_int32(weight * scale, lanes)
                for plane, part in zip(planes, (number >> constant(8, lanes, "int32"), number), strict=True):
                    T.buffer_store(self.weights, _words(part, lanes), [plane, row, _word_span(i * lanes, lanes)])
        return settled(largest * T.float32(1 / LARGEST_WEIGHT), "float32")

    def _add_tile(
        self, block: KeyBlock, head: Expr, rows: Sequence[int], first: Expr, columns: Sequence[int], scale: Expr
    ) -> None:
        """Some vectors of some outputs, from vector `first` on, in registers."""
        shape, lanes, state = self.shape, self.shape.vectors.lanes, block.rows
        whole, shift = span(0, lanes), constant(8, lanes, "int32")
        cells = {(p, r, c): T.alloc_buffer((lanes,), "int32") for p in PLANES for r in rows for c in columns}
        for cell in cells.values():
            T.buffer_store(cell, constant(0, lanes, "int32"), [whole])
        with T.serial(T.ceildiv(block.present, PAGE_SIZE)) as number:
            values, ahead = block.page(VALUE, head, number)
            start = T.bind(number * PAGE_SIZE)
            here = settled(T.min(block.present - start, PAGE_SIZE))
            if rows[0] == 0:
                ahead.prefetch_scales()
            with T.serial(T.ceildiv(here, NUMBERS)) as group:
                if rows[0] == 0:
                    place = (group * shape.head_dim + first * lanes) * NUMBERS
                    ahead.prefetch(place, len(columns) * lanes * NUMBERS)
                vectors = {column: values.value_word(group, (first + column) * lanes, lanes) for column in columns}
                word = T.bind(start // NUMBERS + group)
                for plane, row in product(PLANES, rows):
                    weight = T.bind(splat(self.weights[plane, row, word], lanes))
                    for column, vector in vectors.items():
                        cell = cells[plane, row, column]
                        T.buffer_store(cell, self.dot.add(cell[whole], weight, vector, lanes), [whole])
        factor = T.bind(splat(scale, lanes))
        for row in rows:
            index = head * shape.group + row
            for column in columns:
                high, low = (cells[plane, row, column][whole] for plane in PLANES)
                added = T.cast((high << shift) + low, f"float32x{lanes}") * factor
                place = span((first + column) * lanes, lanes)
                T.buffer_store(state.output, state.output[index, place] * state.rescale(index) + added, [index, place])


def _words(numbers: Expr, lanes: int) -> Expr:
    """The low bytes of int32 lanes, four in a word."""
    count = lanes // NUMBERS
    return T.reinterpret(T.cast(numbers, f"int8x{lanes}"), dtype="int32" if count == 1 else f"int32x{count}")


def _word_span(first: int, lanes: int) -> Expr:
    return span(first // NUMBERS, lanes // NUMBERS)
