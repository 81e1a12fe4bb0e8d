"""How weights lie in memory while kernels read them, and the kernels that bring stored weights there, on the host.

A matrix [N, K] (N output features) is cut into tiles of 16 rows, so that one vector holds 16 outputs
and no sum ever crosses lanes:

    stored   row 0: k0 k1 k2 ...          packed   tile 0:  k0 of rows 0..15 | k1 of rows 0..15 | ...
             row 1: k0 k1 k2 ...                   tile 1:  k0 of rows 16..31 | ...

For group quantization the unit is a 32-bit word of 8 (or 10) codes instead of a single k, and the scales are
tiled alike. Missing rows of the last tiles are zero.
"""
# mypy: ignore-errors

from dataclasses import dataclass
from math import prod

from tvm import DataType, tirx
from tvm.tirx.script.builder import ir as T

from .builder import Kernel, kernel
from .cpu.vector import float32_of_half_bits

TILE = 16  # rows of a tile: one AVX-512 vector, two of AVX2, four of NEON or SSE
TILE_MULTIPLE = 2  # kernels may take two tiles at a time
_AHEAD = 16  # words of prefetching: 1 KB


def tiles(rows: int) -> int:
    """The number of tiles that hold `rows`, padded to what kernels take at a time."""
    return -(-rows // (TILE * TILE_MULTIPLE)) * TILE_MULTIPLE


def rows_of_pieces(storage: "Storage", rows: int, columns: int, largest: int) -> tuple[int, ...]:
    """How many rows of a matrix lie in each of the tensors that hold it, where none may have more than `largest` bytes:
    as few tensors as will do, of about the same size. Each holds whole pairs of tiles."""
    nbytes = max(prod(shape) * DataType(dtype).bits // 8 for shape, dtype in storage.parts(rows, columns).values())
    pairs, pair = tiles(rows) // TILE_MULTIPLE, TILE * TILE_MULTIPLE  # of tiles; rows of one
    most = max(1, pairs * largest // nbytes)  # pairs of a tensor
    each = -(-pairs // -(-pairs // most)) * pair
    return tuple(min(each, rows - first) for first in range(0, rows, each))


def lanes(start, count: int = TILE):
    """A vector index of consecutive elements."""
    return T.ramp(start, 1, count)


def widen(value, dtype: str, count: int = TILE):
    """A vector of stored numbers as float32. bfloat16 is stored as its 16 bits."""
    if dtype == "float32":
        return value
    if dtype == "uint16":
        bits = T.shift_left(T.cast(value, _vector("uint32", count)), _splat(T.uint32(16), count))
        return T.reinterpret(bits, dtype=_vector("float32", count))
    return T.cast(value, _vector("float32", count))


def _vector(dtype: str, count: int) -> str:
    return dtype if count == 1 else f"{dtype}x{count}"


def _splat(value, count: int):
    return value if count == 1 else T.broadcast(value, count)


def storage_dtype(dtype: str) -> str:
    """The type in which a stored tensor is handed to kernels: bfloat16 passes as its bits."""
    return "uint16" if dtype == "bfloat16" else dtype


def packed_dtype(dtype: str, *, converts_float16: bool) -> str:
    """The type in which kernels read stored numbers; without F16C halves are widened once, at load."""
    return "float32" if dtype == "float16" and not converts_float16 else storage_dtype(dtype)


@dataclass(frozen=True)
class GroupStorage:
    """Unsigned codes of `bits` in 32-bit words and, for each `group_size` inputs of a row, a scale, perhaps a minimum:

        weight = (code - zero_point) * scale (+ minimum)

    Code i of a word is in its bits [i * bits, (i + 1) * bits). Codes past the last input are met by zeros of x.
    Scales and minima may have two levels: then a small one of each group is multiplied by one of `super_size` inputs.
    """

    bits: int  # 4 or 8
    group_size: int  # a multiple of the codes in a word
    scale_dtype: str  # float16, float32 or uint16 (bfloat16); int8 for two levels
    zero_point: int
    minimum: bool = False
    super_size: int = 0  # a multiple of group_size, or 0 for one level
    super_dtype: str = ""  # float16 or float32

    @property
    def codes_per_word(self) -> int:
        return 32 // self.bits

    @property
    def words_per_group(self) -> int:
        return self.group_size // self.codes_per_word

    def groups(self, columns: int) -> int:
        return -(-columns // self.group_size)

    def parts(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int, int], str]]:
        """The packed tensors of a matrix [rows, columns] in the order of kernels' arguments: name -> shape, type."""
        groups = self.groups(columns)
        parts = {
            "words": (tiled_shape(rows, groups * self.words_per_group), "int32"),
            "scales": (tiled_shape(rows, groups), self.scale_dtype),
        }
        if self.minimum:
            parts["minima"] = (tiled_shape(rows, groups), self.scale_dtype)
        if self.super_size:
            factors = tiled_shape(rows, -(-columns // self.super_size)), self.super_dtype
            parts |= {f"super_{name}": factors for name in ("scales", "minima") if name in parts}
        return parts

    def code(self, words, index: int):
        """Code `index` of each of 16 words as float32, without the zero point taken off."""
        shifted = T.shift_right(words, T.broadcast(T.int32(index * self.bits), TILE)) if index else words
        masked = T.bitwise_and(shifted, T.broadcast(T.int32(2**self.bits - 1), TILE))
        return T.cast(masked, _vector("float32", TILE))


@dataclass(frozen=True)
class DenseStorage:
    """Plain numbers: float16, float32 or uint16 (bfloat16)."""

    dtype: str

    def parts(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int, int], str]]:
        """The packed tensor of a matrix [rows, columns], as `GroupStorage.parts` gives it."""
        return {"weight": (tiled_shape(rows, columns), self.dtype)}


def _prefetch_line(buffer, index) -> None:
    """Ask for the cache line of an element to be brought into the second-level cache."""
    read, second_level, data = T.int32(0), T.int32(2), T.int32(1)
    address = T.address_of(buffer[index])
    T.evaluate(T.call_llvm_intrin("llvm.prefetch", address, read, second_level, data, dtype="void"))


class PackedWeight:
    """The arguments of a kernel that hold one matrix [rows, columns], and how to read 16 rows of it at a time."""

    def __init__(self, k: Kernel, storage: "Storage", rows: int, columns: int, suffix: str = "") -> None:
        self.storage = storage
        self.buffers = {name: k.input(f"{name}{suffix}", *part) for name, part in storage.parts(rows, columns).items()}

    def word(self, tile, index):
        """int32 x 16: word `index` of each row of a tile."""
        return self.buffers["words"][tile, index, lanes(0)]

    def scale(self, tile, group):
        """float32 x 16: the scales of a group."""
        return self._of_group("scales", tile, group, lanes(0))

    def minimum(self, tile, group):
        """float32 x 16: the minima of a group, for storages that have them."""
        return self._of_group("minima", tile, group, lanes(0))

    def _of_group(self, name: str, tile, group, lane, count: int = TILE):
        """float32 x count: scales or minima of a group, from both of their levels where there are two."""
        storage = self.storage
        value = widen(self.buffers[name][tile, group, lane], storage.scale_dtype, count)
        if not storage.super_size:
            return value
        block = T.floordiv(group, storage.super_size // storage.group_size)
        return value * widen(self.buffers[f"super_{name}"][tile, block, lane], storage.super_dtype, count)

    def column(self, tile, column):
        """float32 x 16: one column of plain numbers."""
        return widen(self.buffers["weight"][tile, column, lanes(0)], self.storage.dtype)

    def prefetch(self, tile, group) -> None:
        """Ask for the words and scales that follow a group at a distance, in this tile or the next: memory is slower
        than the kernels, and the processor's own prediction starts anew with each page."""
        per_group = self.storage.words_per_group
        for word in range(per_group):
            _prefetch_line(self.buffers["words"], (tile, group * per_group + word + _AHEAD, 0))
        for name in ("scales", "minima"):
            if name in self.buffers:
                _prefetch_line(self.buffers[name], (tile, group + max(2, _AHEAD // per_group), 0))

    def element(self, tile, lane, column):
        """float32: the weight of one row and column."""
        storage, buffers = self.storage, self.buffers
        if isinstance(storage, DenseStorage):
            return widen(buffers["weight"][tile, column, lane], storage.dtype, 1)
        group, word = T.floordiv(column, storage.group_size), T.floordiv(column, storage.codes_per_word)
        shift = T.cast(T.floormod(column, storage.codes_per_word) * storage.bits, "int32")
        code = T.bitwise_and(T.shift_right(buffers["words"][tile, word, lane], shift), T.int32(2**storage.bits - 1))
        value = T.cast(code - T.int32(storage.zero_point), "float32")
        value = value * self._of_group("scales", tile, group, lane, 1)
        return value + self._of_group("minima", tile, group, lane, 1) if storage.minimum else value


Storage = GroupStorage | DenseStorage


def declare_pieces(k: Kernel, storage: Storage, pieces: tuple[int, ...], columns: int) -> list[PackedWeight]:
    """A matrix as the arguments of a kernel: all tensors of its first rows, of the next ones, and so on."""
    return [PackedWeight(k, storage, rows, columns, f"_{i}" if i else "") for i, rows in enumerate(pieces)]


def tiled_shape(rows: int, units: int) -> tuple[int, int, int]:
    """The shape of a matrix [rows, units] in tiles."""
    return tiles(rows), units, TILE


def pack_rows(name: str, rows: int, units: int, dtype: str, packed_dtype: str, *, transposed: bool) -> tirx.PrimFunc:
    """A kernel that tiles a stored matrix [rows, units] ([units, rows] if transposed) -> [tiles, units, 16]."""
    shape = (units, rows) if transposed else (rows, units)
    with kernel(name) as k:
        source = k.input("source", shape, dtype)
        packed = k.input("packed", tiled_shape(rows, units), packed_dtype)
        with k.body(), T.parallel(0, tiles(rows)) as tile, T.serial(0, units) as unit, T.serial(0, TILE) as lane:
            row = tile * TILE + lane
            clamped = T.min(row, rows - 1)
            value = source[unit, clamped] if transposed else source[clamped, unit]
            value = _convert(value, dtype, packed_dtype)
            zero = tirx.const(0, packed_dtype)
            T.buffer_store(packed, T.Select(row < rows, value, zero) if rows % (TILE * TILE_MULTIPLE) else value,
                           [tile, unit, lane])  # fmt: skip
    return k.function


def pack_codes(name: str, rows: int, groups: int, *, bits: int, group_size: int, transposed: bool) -> tirx.PrimFunc:
    """A kernel that tiles stored words of 3-bit codes as words of 4-bit codes, none of which crosses a byte."""
    stored_words, per_word = group_size // (32 // bits), 32 // bits
    units = groups * stored_words
    packed_words = group_size // 8
    with kernel(name) as k:
        source = k.input("source", (units, rows) if transposed else (rows, units), "uint32")
        packed = k.input("packed", tiled_shape(rows, groups * packed_words), "int32")
        with k.body(), T.parallel(0, tiles(rows)) as tile, T.serial(0, groups) as g, T.serial(0, TILE) as lane:
            row = T.min(tile * TILE + lane, rows - 1)
            keep = T.Select(tile * TILE + lane < rows, T.int32(2**bits - 1), T.int32(0))
            for w in range(packed_words):
                word = T.int32(0)
                for i in range(8):
                    code = w * 8 + i
                    unit = g * stored_words + code // per_word
                    stored = T.reinterpret(source[unit, row] if transposed else source[row, unit], dtype="int32")
                    value = T.bitwise_and(T.shift_right(stored, T.int32(code % per_word * bits)), keep)
                    word = T.bitwise_or(word, T.shift_left(value, T.int32(4 * i)))
                T.buffer_store(packed, word, [tile, g * packed_words + w, lane])
    return k.function


def widen_vector(name: str, length: int, dtype: str) -> tirx.PrimFunc:
    """A kernel that turns a stored vector (norm weight, bias) into float32."""
    with kernel(name) as k:
        source = k.input("source", (length,), dtype)
        result = k.input("result", (length,), "float32")
        with k.body(), T.serial(0, length) as i:
            T.buffer_store(result, _convert(source[i], dtype, "float32"), [i])
    return k.function


def _convert(value, dtype: str, packed_dtype: str):
    """A stored scalar in the type that kernels read: the same bits, or a half widened without needing F16C."""
    if dtype == packed_dtype:
        return value
    if packed_dtype != "float32":
        return T.reinterpret(value, dtype=packed_dtype)
    return (
        widen(value, dtype, 1) if dtype == "uint16" else float32_of_half_bits(T.reinterpret(value, dtype="uint16"), 1)
    )
