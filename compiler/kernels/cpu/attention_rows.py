"""The rows of a tile of prefill attention, and what is done with them for each block of keys.

Attention over many keys is done in blocks with a running maximum and an output that is rescaled when it grows
(FlashAttention, arXiv:2205.14135). All is kept transposed, so that a row stays in one lane throughout:

                       rows (3 vectors)                       rows
    keys of a block  +------------------+    head_dim      +---------------------+
         (64)        | scores, then     |  values^T  x  -> | output, in float32  |
                     | words of weights |                  |                     |
                     +------------------+                  +---------------------+

The weights of a block are relative to the block's own maximum: that uses all their bits where a row's largest score is
elsewhere. `old` and `new` bring what was there and what is added to the running maximum.
"""
# mypy: ignore-errors

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.script import tirx as T

from .attention_dot import ROUND, ROUND_BITS, rounded
from .attention_panels import KEY_BLOCK, ROW_SIZE, WEIGHT, Panels, Tile, grow, root
from .kv_pages import PAGE_SIZE
from .rope import Rotation, emit_rotate
from .vector import Expr, constant, copy, exp2, settled, span, splat, transpose

_LEAST = {"float32": -3e38, "int32": -(2**31)}  # below every score
_NOTHING = -1e30  # the maximum of a row that has seen no key

# 2^f on [-1/2, 1/2] as powers of f, least maximum relative error: 2e-3, 7e-5 and 7e-8, below the rounding of weights.
_EXP2 = {
    "int8": (1.000443146251842, 0.7034480592653332, 0.238428937878635),
    "int16": (0.9999280729970851, 0.6932609862035313, 0.24261113138740525, 0.055171669358639486),
    "float32": (
        1.0000000716552213,
        0.693146967063264,
        0.24022119721165097,
        0.055507132746512866,
        0.009675541479922787,
        0.001327647202852175,
    ),
}


@dataclass(frozen=True)
class Rows:
    """The rows of a tile, and what they carry from block to block."""

    token: Any  # [rows] int32
    column: Any  # [rows] int32, where the row's query head begins in a token of qkv and out
    last: Any  # [rows] int32, the last key that a row sees
    queries: Any  # [key words, rows]
    scale: Any  # [rows], of the integers in queries
    scores: Any  # [KEY_BLOCK, rows]: the bits of scores, then words of weights
    peak: Any  # [rows], the largest score of this block
    factor: Any  # [rows], what scores of this block are multiplied by
    offset: Any  # [rows], what is subtracted from the scores of this block
    maximum: Any  # [rows], the running maximum
    old: Any  # [rows], factor of what came before this block
    new: Any  # [rows], factor of this block
    total: Any  # [rows], sum of weights
    output: Any  # [padded, rows]

    @staticmethod
    def allocate(tile: Tile) -> "Rows":
        def vector(dtype: str = "float32") -> Any:
            return T.alloc_buffer((tile.rows,), dtype)

        word = tile.dot.word
        return Rows(
            token=vector("int32"),
            column=vector("int32"),
            last=vector("int32"),
            queries=T.alloc_buffer((tile.key_words, tile.rows), word),
            scale=vector(),
            scores=T.alloc_buffer((KEY_BLOCK, tile.rows), word),
            peak=vector(tile.score),
            factor=vector(),
            offset=vector(),
            maximum=vector(),
            old=vector(),
            new=vector(),
            total=vector(),
            output=T.alloc_buffer((tile.padded, tile.rows), "float32"),
        )

    def clear(self, tile: Tile) -> None:
        lanes = tile.lanes
        with T.serial(tile.vectors) as c:
            place = span(c * lanes, lanes)
            T.buffer_store(self.maximum, constant(_NOTHING, lanes), [place])
            T.buffer_store(self.total, constant(0.0, lanes), [place])
            with T.serial(tile.padded) as d:
                T.buffer_store(self.output, constant(0.0, lanes), [d, place])


@dataclass(frozen=True)
class _Row:
    """One row of a matrix, to be indexed like a vector."""

    matrix: Any
    index: Expr

    def __getitem__(self, place: Expr) -> Expr:
        return self.matrix[self.index, place]


def load_queries(tile: Tile, rotation: Rotation, qkv: Any, angles: tuple[Any, Any], rows: Rows, factor: float) -> None:
    """Rotate the queries of the rows, times `factor`, and pack them as words. `angles`: the cosines and sines of all
    tokens, `[tokens, rotary_dim / 2]` each."""
    lanes, unit, dim, dot = tile.lanes, tile.unit, tile.shape.head_dim, tile.dot
    staged = T.alloc_buffer((tile.rows, tile.padded), "float32")
    columns = T.alloc_buffer((tile.padded, lanes), "float32")
    whole, scale = span(0, lanes), constant(factor, rotation.unit(unit).lanes)
    # A loop of its own: LLVM 22 fails where it sees through memory that is written in narrower vectors than it is read.
    with T.serial(tile.rows) as row:
        token = T.bind(rows.token[row])
        source, target = (qkv, (token, rows.column[row])), (staged, (row, 0))
        cosines, sines = (_Row(table, token) for table in angles)
        emit_rotate(rotation, unit, source, target, cosines, sines, lambda vector: vector * scale)
        for d in range(dim, tile.padded):
            T.buffer_store(staged, T.float32(0), [row, d])
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        size = T.alloc_buffer((lanes,), "float32")
        T.buffer_store(size, constant(0.0, lanes), [whole])
        with T.serial(tile.padded // lanes) as part:
            square = [T.bind(staged[c * lanes + i, span(part * lanes, lanes)]) for i in range(lanes)]
            for i, vector in enumerate(transpose(square, lanes)):
                T.buffer_store(columns, vector, [part * lanes + i, whole])
                if dot.quantized:
                    T.buffer_store(size, grow(dot, size[whole], vector, lanes), [whole])
        inverse = None
        if dot.quantized:
            norm = root(dot, size[whole], lanes)
            inverse = T.bind(constant(ROW_SIZE[dot.format], lanes) / norm)
            T.buffer_store(rows.scale, norm * constant(1 / ROW_SIZE[dot.format], lanes), [place])
        with T.serial(tile.key_words) as w:
            numbers = [columns[w * dot.numbers + i, whole] for i in range(dot.numbers)]
            if dot.format == "int8":  # the lanes of a product are unsigned: see Panels.key_bias
                numbers = [rounded(vector * inverse + constant(128.0, lanes), lanes) for vector in numbers]
            elif dot.format == "int16":
                numbers = [rounded(vector * inverse, lanes) for vector in numbers]
            T.buffer_store(rows.queries, dot.pack(numbers, lanes), [w, place])


def _product(
    tile: Tile,
    depth: Expr,
    left: Callable[[Expr, int], Expr],
    right: Callable[[Expr, int], Expr],
    start: Callable[[int], Expr] | None = None,
) -> Callable[[int, int], Expr]:
    """Sums of a register tile: value(r, c) = start(r) + sum over k < depth of left(k, c) . right(k, r)."""
    lanes, dot, whole = tile.lanes, tile.dot, span(0, tile.lanes)
    # One buffer each: LLVM keeps them in registers, which it could not do for parts of one that TVM had shared.
    cells = [[T.alloc_buffer((lanes,), dot.word) for _ in range(tile.vectors)] for _ in range(tile.height)]
    for r, row in enumerate(cells):
        for cell in row:
            T.buffer_store(cell, splat(tirx.const(0, dot.word) if start is None else start(r), lanes), [whole])
    with T.serial(depth) as k:
        vectors = [T.bind(left(k, c)) for c in range(tile.vectors)]
        for r, row in enumerate(cells):
            shared = T.bind(splat(right(k, r), lanes))
            for cell, vector in zip(row, vectors, strict=True):
                T.buffer_store(cell, dot.add(cell[whole], vector, shared, lanes), [whole])
    return lambda r, c: T.bind(cells[r][c][whole])


def score(tile: Tile, panels: Panels, rows: Rows, head: Expr, first: Expr, count: Expr) -> None:
    """Scores of `count` keys (whole register tiles) from row `first` of the panel on, and their maxima."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        T.buffer_store(rows.peak, constant(_LEAST[tile.score], lanes, tile.score), [span(c * lanes, lanes)])
    with T.serial(count // tile.height) as step:
        j = T.bind(step * tile.height)
        sums = _product(
            tile,
            tile.key_words,
            lambda k, c: rows.queries[k, span(c * lanes, lanes)],
            lambda k, r: panels.keys[head, first + j + r, k],
            (lambda r: panels.key_bias[head, first + j + r]) if dot.format == "int8" else None,
        )
        for c in range(tile.vectors):
            place = span(c * lanes, lanes)
            peak = rows.peak[place]
            for r in range(tile.height):
                value = sums(r, c)
                if dot.format == "int8":
                    scale = panels.key_scales[head, first + j + r]
                    value = T.bind(T.cast(value, f"float32x{lanes}") * splat(scale, lanes))
                T.buffer_store(rows.scores, T.reinterpret(value, dtype=f"{dot.word}x{lanes}"), [j + r, place])
                peak = T.bind(T.max(peak, value))
            T.buffer_store(rows.peak, peak, [place])


def visible(rows: Rows, place: Expr, lanes: int, key: Expr, window: int | None) -> Expr:
    """Whether each row sees a key: a condition for Select."""
    last, key = rows.last[place], splat(key, lanes)
    if window is None:
        return key <= last
    return tirx.all(key <= last, key > last - constant(window, lanes, "int32"))


def find_visible_peaks(tile: Tile, rows: Rows, count: Expr, sees: Callable[[Expr, Expr], Expr]) -> None:
    """The maxima again, of a block of which some rows do not see every key."""
    lanes, dtype = tile.lanes, tile.score
    with T.serial(tile.vectors) as c:
        place, whole = span(c * lanes, lanes), span(0, lanes)
        peak, least = T.alloc_buffer((lanes,), dtype), constant(_LEAST[dtype], lanes, dtype)
        T.buffer_store(peak, least, [whole])
        with T.serial(count) as j:
            value = T.reinterpret(rows.scores[j, place], dtype=f"{dtype}x{lanes}")
            value = tirx.Select(sees(place, j), value, least)
            T.buffer_store(peak, T.max(peak[whole], value), [whole])
        T.buffer_store(rows.peak, peak[whole], [place])


def start_block(tile: Tile, panels: Panels, rows: Rows, head: Expr, first: Expr) -> None:
    """From the maxima of a block: how its weights are made, and the factors of old and new."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        peak = T.bind(rows.peak[place])
        maximum = peak
        if dot.quantized:
            factor = rows.scale[place]
            if dot.format == "int16":
                factor = factor * splat(panels.key_scales[head, first], lanes)
            factor = T.bind(factor)
            T.buffer_store(rows.factor, factor, [place])
            maximum = T.cast(peak, f"float32x{lanes}") * factor
        seen = peak > constant(_LEAST[tile.score], lanes, tile.score)
        maximum = settled(tirx.Select(seen, maximum, constant(_NOTHING, lanes)), "float32", lanes)
        before = T.bind(rows.maximum[place])
        after = T.bind(T.max(before, maximum))
        T.buffer_store(rows.maximum, after, [place])
        T.buffer_store(rows.old, exp2(before - after, lanes), [place])
        T.buffer_store(rows.new, exp2(maximum - after, lanes), [place])
        largest = math.log2(WEIGHT[tile.dot.format])
        T.buffer_store(rows.offset, maximum - constant(largest, lanes), [place])


def _power(x: Expr, precision: str, lanes: int) -> tuple[Expr, Expr]:
    """2^x for x <= 127 as a product of a number near 1 and a power of two, which for x < -126 is zero.

    As in vector.exp2, adding 1.5 * 2^23 leaves the nearest integer in the low bits; 127 more makes it an exponent.
    """
    x, magic = settled(x, "float32", lanes), constant(ROUND + 127, lanes)
    shifted = settled(T.reinterpret(x + magic, dtype=f"int32x{lanes}"), "int32", lanes)
    f = settled(x - (T.reinterpret(shifted, dtype=f"float32x{lanes}") - magic), "float32", lanes)
    coefficients = _EXP2[precision]
    near_one = constant(coefficients[-1], lanes)
    for coefficient in coefficients[-2::-1]:
        near_one = near_one * f + constant(coefficient, lanes)
    exponent = T.max(shifted, constant(ROUND_BITS, lanes, "int32")) << constant(23, lanes, "int32")
    return near_one, T.reinterpret(exponent, dtype=f"float32x{lanes}")


def weigh(tile: Tile, rows: Rows, count: Expr, sees: Callable[[Expr, Expr], Expr] | None = None) -> None:
    """Turn the sums of a block into words of weights, in place. `sees(place, j)`: which rows see key j, if not all."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.vectors) as c:
        place, whole = span(c * lanes, lanes), span(0, lanes)
        offset = T.bind(rows.offset[place])
        total = T.alloc_buffer((lanes,), dot.word)
        T.buffer_store(total, constant(0, lanes, dot.word), [whole])

        def weight(j: Expr) -> Expr:
            value = T.reinterpret(rows.scores[j, place], dtype=f"{tile.score}x{lanes}")
            if tile.dot.quantized:
                value = T.cast(value, f"float32x{lanes}") * rows.factor[place]
            near_one, power = _power(value - offset, dot.format, lanes)
            value = near_one * power
            if dot.quantized:
                value = rounded(value, lanes)
            if sees is not None:
                value = tirx.Select(sees(place, j), value, constant(0, lanes, dot.word))
            return settled(value, dot.word, lanes)

        with T.serial(count // dot.numbers) as j:
            weights = [weight(j * dot.numbers + i) for i in range(dot.numbers)]
            word = settled(dot.pack(weights, lanes), dot.word, lanes)
            T.buffer_store(rows.scores, word, [j, place])
            T.buffer_store(total, dot.add(total[whole], word, splat(dot.ones(), lanes), lanes), [whole])
        added = T.cast(total[whole], f"float32x{lanes}") if dot.quantized else total[whole]
        T.buffer_store(rows.total, rows.total[place] * rows.old[place] + added * rows.new[place], [place])


def add_values(tile: Tile, panels: Panels, rows: Rows, head: Expr, first: Expr, count: Expr) -> None:
    """output = old * output + new * (values x weights) for one block."""
    lanes, dot = tile.lanes, tile.dot
    with T.serial(tile.padded // tile.height) as step:
        d = T.bind(step * tile.height)
        sums = _product(
            tile,
            count // dot.numbers,
            lambda k, c: rows.scores[k, span(c * lanes, lanes)],
            lambda k, r: panels.values[head, first // dot.numbers + k, d + r],
        )
        for c in range(tile.vectors):
            place = span(c * lanes, lanes)
            old, new = T.bind(rows.old[place]), T.bind(rows.new[place])
            for r in range(tile.height):
                value = sums(r, c)
                if dot.quantized:
                    scale = panels.value_scales[head, first // PAGE_SIZE, d + r]
                    value = T.cast(value, f"float32x{lanes}") * splat(scale, lanes)
                T.buffer_store(rows.output, rows.output[d + r, place] * old + value * new, [d + r, place])


def store_output(tile: Tile, rows: Rows, out: Any) -> None:
    """Write the rows to out `[tokens, heads * head_dim]`."""
    lanes, dim = tile.lanes, tile.shape.head_dim
    unit = tile.unit.dividing(dim)
    staged = T.alloc_buffer((lanes, tile.padded), "float32")
    with T.serial(tile.vectors) as c:
        place = span(c * lanes, lanes)
        inverse = T.bind(constant(1.0, lanes) / rows.total[place])
        with T.serial(tile.padded // lanes) as part:
            square = [T.bind(rows.output[part * lanes + i, place] * inverse) for i in range(lanes)]
            for i, vector in enumerate(transpose(square, lanes)):
                T.buffer_store(staged, vector, [i, span(part * lanes, lanes)])
        with T.serial(lanes) as i:
            copy(unit, out, (rows.token[c * lanes + i], rows.column[c * lanes + i]), staged, (i, 0), dim)
