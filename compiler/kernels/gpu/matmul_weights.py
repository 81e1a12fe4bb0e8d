"""How a thread of a device reads packed weights: four rows of a tile at a time, 16 bytes of words.

    tile   k-word 0: rows 0..3 | 4..7 | 8..11 | 12..15      one thread reads one cell of this table: 4 words, which
           k-word 1: rows 0..3 | 4..7 | 8..11 | 12..15      are 8 (or 4) columns of 4 rows. 32 neighbouring threads
           ...                                              read 512 neighbouring bytes.

A code becomes a float without a conversion, which costs several instructions' time on most devices: its bits are put at
the top of the mantissa of 1.0, so that f = 1 + code / 2^bits, and weight = f * a + b with

    a = 2^bits * scale        b = minimum - (2^bits + zero_point) * scale
"""
# mypy: ignore-errors

from dataclasses import dataclass

from tvm.tirx.script.builder import ir as T

from ..builder import load, splat
from ..operations import Matmul
from ..storage import TILE, DenseStorage, GroupStorage, PackedWeight, widen
from .launch import private

QUAD = 4  # rows of a tile that a thread reads at once
QUADS = TILE // QUAD
_MANTISSA = 23  # bits
_ONE = 0x3F800000  # 1.0
_LARGE = 2**31  # elements that int32 cannot count


def quad(first):
    """A vector index of 4 neighbours."""
    return T.ramp(first, 1, QUAD)


def registers(value):
    """4 registers with a first value, float32 x 4."""
    cells = private(QUAD)
    T.buffer_store(cells, value, [quad(0)])
    return cells


@dataclass
class Unit:
    """Registers for some columns of 4 rows. Loads fill `stored`; `scale` makes a and b of them."""

    stored: dict[str, object]  # words and scales, or numbers, as they are in memory
    a: object | None = None  # None: the factor is the weight
    b: object | None = None


class GroupReader:
    """Reads a matrix of codes in groups. A unit is a run of words within a group."""

    def __init__(self, op: Matmul, weight: PackedWeight, most_words: int) -> None:
        self.storage: GroupStorage = op.storage
        self.buffers = weight.buffers
        per_group = self.storage.words_per_group
        self.words = max(n for n in range(1, most_words + 1) if per_group % n == 0)
        self.columns = self.words * self.storage.codes_per_word
        self.count = op.padded_columns // self.columns  # units of a row

    def registers(self) -> Unit:
        """Room for a unit."""
        stored = {name: private((self.words if name == "words" else 1) * QUAD, buffer.dtype)
                  for name, buffer in self.buffers.items()}  # fmt: skip
        return Unit(stored, private(QUAD), private(QUAD))

    def load(self, unit: Unit, tile, lane, number) -> None:
        """Bring unit `number` of rows lane..lane+3 of a tile, a multiple of 4."""
        storage = self.storage
        group = T.floordiv(number, storage.words_per_group // self.words)
        for name, cells in unit.stored.items():
            if name == "words":
                first, count = number * self.words, self.words
            elif name.startswith("super_"):
                first, count = T.floordiv(group, storage.super_size // storage.group_size), 1
            else:
                first, count = group, 1
            for i in range(count):
                T.buffer_store(cells, read(self.buffers[name], tile, first + i, quad(lane)), [quad(i * QUAD)])

    def scale(self, unit: Unit) -> None:
        """Make a and b from what was loaded."""
        storage = self.storage
        T.buffer_store(unit.b, self._of_group(unit, "scales"), [quad(0)])
        scale = load(unit.b, QUAD)
        T.buffer_store(unit.a, scale * splat(T.float32(2**storage.bits), QUAD), [quad(0)])
        b = scale * splat(T.float32(-(2**storage.bits) - storage.zero_point), QUAD)
        T.buffer_store(unit.b, b + self._of_group(unit, "minima") if storage.minimum else b, [quad(0)])

    def factor(self, unit: Unit, column: int):
        """float32 x 4: 1 + code / 2^bits of a column of a unit."""
        bits = self.storage.bits
        word, code = divmod(column, self.storage.codes_per_word)
        value = unit.stored["words"][quad(word * QUAD)]
        up = _MANTISSA - bits - code * bits  # how far the code is from the mantissa's top
        shift = T.shift_left if up > 0 else T.shift_right
        value = shift(value, splat(T.int32(abs(up)), QUAD)) if up else value
        value = T.bitwise_and(value, splat(T.int32((2**bits - 1) << (_MANTISSA - bits)), QUAD))
        return T.reinterpret(T.bitwise_or(value, splat(T.int32(_ONE), QUAD)), dtype="float32x4")

    def _of_group(self, unit: Unit, name: str):
        """float32 x 4: scales or minima, from both of their levels where there are two."""
        value = widen(load(unit.stored[name], QUAD), self.storage.scale_dtype, QUAD)
        if not self.storage.super_size:
            return value
        return value * widen(load(unit.stored[f"super_{name}"], QUAD), self.storage.super_dtype, QUAD)


class DenseReader:
    """Reads a matrix of plain numbers. A unit is some neighbouring columns."""

    def __init__(self, op: Matmul, weight: PackedWeight, most_words: int) -> None:
        self.storage: DenseStorage = op.storage
        self.weights = weight.buffers["weight"]
        self.in_features = op.in_features
        self.columns = QUAD * (2 if most_words > 1 else 1)
        self.count = -(-op.in_features // self.columns)

    def registers(self) -> Unit:
        """Room for a unit."""
        return Unit({"weight": private(self.columns * QUAD, self.storage.dtype)})

    def load(self, unit: Unit, tile, lane, number) -> None:
        """Bring unit `number` of rows lane..lane+3 of a tile, a multiple of 4. Past the last column it is repeated: x
        is zero there."""
        for i in range(self.columns):
            column = number * self.columns + i
            if self.in_features % self.columns:
                column = T.min(column, self.in_features - 1)
            T.buffer_store(unit.stored["weight"], read(self.weights, tile, column, quad(lane)), [quad(i * QUAD)])

    def scale(self, unit: Unit) -> None:
        """Plain numbers need none."""

    def factor(self, unit: Unit, column: int):
        """float32 x 4: the weights of a column of a unit."""
        return widen(unit.stored["weight"][quad(column * QUAD)], self.storage.dtype, QUAD)


def reader(op: Matmul, weight: PackedWeight, most_words: int) -> GroupReader | DenseReader:
    """The reader of a matrix; `most_words`: of codes in a unit."""
    return (DenseReader if isinstance(op.storage, DenseStorage) else GroupReader)(op, weight, most_words)


def weight_of(unit: Unit, factor):
    """float32 x 4: weights from factors."""
    return factor if unit.a is None else factor * load(unit.a, QUAD) + load(unit.b, QUAD)


def read(buffer, tile, row, lanes):
    """Elements of a packed tensor [tiles, rows, 16]. Indices are int32 where that can count its elements: products of
    int64 are slow on devices."""
    size = 1
    for extent in buffer.shape:
        size *= int(extent)
    return buffer[T.cast(tile, "int64") if size >= _LARGE else tile, row, lanes]
