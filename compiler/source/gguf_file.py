"""Bounded, checked reading of a GGUF file's header: metadata and where each tensor lies.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Nothing in a file is believed before it is checked:
counts and lengths against the bytes that remain, shapes against the tensors' bytes, offsets against the file's size.
"""

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ...runtime.errors import ModelFileError
from .source import LFS_HINT, LFS_START

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_NAME_BYTES = 1024  # the specification allows 65535; keys and names in use have a tenth of this
_MAX_DIMENSIONS = 4
_MAX_ELEMENTS = 1 << 48
_MAX_ALIGNMENT = 1 << 20
_DEFAULT_ALIGNMENT = 32
_STRING, _ARRAY, _BOOL = 8, 9, 7
# Value type -> struct format, all little-endian.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", _BOOL: "B", 10: "Q", 11: "q", 12: "d"}
_MIN_ENTRY_BYTES = {"metadata": 8 + 4 + 1, "tensor": 8 + 4 + 8 + 4 + 8}


@dataclass(frozen=True)
class BlockType:
    """A tensor type: `elements` values take `nbytes` bytes."""

    name: str
    elements: int
    nbytes: int


# ggml's type numbers of what is read, with block sizes as in ggml-common.h.
BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    20: BlockType("IQ4_NL", 32, 18),
    23: BlockType("IQ4_XS", 256, 136),
    30: BlockType("BF16", 1, 2),
}
# Known to ggml, not read here: only for the refusal's text.
_OTHER_TYPES = {9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
                21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
                29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4"}  # fmt: skip


@dataclass(frozen=True)
class GGUFTensor:
    """`shape` is in numpy's order (rows first, the reverse of GGUF's); `offset` counts from the start of the file."""

    name: str
    shape: tuple[int, ...]
    type_id: int
    offset: int
    nbytes: int

    @property
    def block_type(self) -> BlockType:
        return BLOCK_TYPES[self.type_id]


class Metadata:
    """The key-value pairs of a GGUF file, read with the type that the caller expects. All raise ModelFileError."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def integer(self, key: str, default: int | None = None, *, low: int = 0, high: int = 1 << 31) -> int:
        value = self._get(key, default)
        if type(value) is not int or not low <= value <= high:
            raise self._wrong(key, value, f"an integer between {low} and {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite float; float32 as the shortest decimal that rounds to it: 1e-05, not 9.9999997e-06."""
        value = self._get(key, default)
        if type(value) not in (int, float) or not math.isfinite(value):
            raise self._wrong(key, value, "a finite number")
        if abs(value) > float(np.finfo(np.float32).max) or np.float32(value) != value:
            return float(value)
        return float(str(np.float32(value)))

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong(key, value, "true or false")
        return value

    def strings(self, key: str) -> list[str]:
        value = self._get(key, None)
        if not isinstance(value, list):
            raise self._wrong(key, value, "an array of strings")
        return value

    def numbers(self, key: str) -> np.ndarray:
        value = self._get(key, None)
        if not isinstance(value, np.ndarray):
            raise self._wrong(key, value, "an array of numbers")
        return value

    def _get(self, key: str, default: Any) -> Any:
        value = self.values.get(key, default)
        if value is None:
            raise ModelFileError(f"{self.path} has no metadata key {key}: it cannot be rebuilt without")
        return value

    def _wrong(self, key: str, value: Any, wanted: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: metadata key {key} is {str(value)!r:.100}, expected {wanted}")


@dataclass(frozen=True)
class GGUFFile:
    """The checked header. Raises ModelFileError from `open_gguf`, never later."""

    path: Path
    metadata: Metadata
    tensors: dict[str, GGUFTensor]  # in the order of their data


class _Reader:
    """Reads little-endian values and knows how many bytes are left."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size, self.position = path, file, size, 0

    def fail(self, problem: str) -> ModelFileError:
        where = f"at byte {self.position} of {self.size}"
        return ModelFileError(f"{self.path} is damaged or truncated: {problem} ({where}): download it again")

    def take(self, count: int, what: str) -> bytes:
        if count > self.size - self.position:
            raise self.fail(f"{what} needs {count} bytes, {self.size - self.position} are left")
        data = self.file.read(count)
        self.position += len(data)
        if len(data) != count:
            raise self.fail(f"{what} ends early")
        return data

    def scalar(self, format_: str, what: str) -> Any:
        return struct.unpack(f"<{format_}", self.take(struct.calcsize(f"<{format_}"), what))[0]

    def text(self, what: str, limit: int | None = None) -> str:
        length = self.scalar("Q", what)
        if limit is not None and length > limit:
            raise self.fail(f"{what} would have {length} bytes, at most {limit} allowed")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8") from None

    def name(self, what: str) -> str:
        """A key or a tensor name: short and printable, so that it can stand in a message."""
        name = self.text(what, _MAX_NAME_BYTES)
        if not name or not name.isprintable():
            raise self.fail(f"{what} is {name!r:.100}, expected a printable one")
        return name

    def count(self, what: str) -> int:
        count: int = self.scalar("Q", f"the {what} count")
        if count > (self.size - self.position) // _MIN_ENTRY_BYTES[what]:
            raise self.fail(f"a {what} count of {count} does not fit into the file")
        return count

    def value(self, key: str) -> Any:
        type_id = self.scalar("I", f"the type of {key}")
        if type_id == _STRING:
            return self.text(key)
        if type_id == _ARRAY:
            return self._array(key)
        return self._number(type_id, key)

    def _number(self, type_id: int, key: str) -> Any:
        if type_id not in _SCALARS:
            raise self.fail(f"{key} has unknown value type {type_id}")
        value = self.scalar(_SCALARS[type_id], key)
        return bool(value) if type_id == _BOOL else value

    def _array(self, key: str) -> list[str] | np.ndarray:
        type_id = self.scalar("I", f"the item type of {key}")
        length = self.scalar("Q", f"the length of {key}")
        if type_id == _STRING:
            if length > (self.size - self.position) // 8:
                raise self.fail(f"{key} would have {length} strings, which do not fit into the file")
            return [self.text(key) for _ in range(length)]
        if type_id not in _SCALARS:
            raise self.fail(f"{key} is an array of unknown item type {type_id}")
        dtype = np.dtype(f"<{_SCALARS[type_id]}")
        return np.frombuffer(self.take(length * dtype.itemsize, key), dtype)


def open_gguf(path: Path) -> GGUFFile:
    """Read and check the header of a GGUF file. Raises ModelFileError in one line."""
    try:
        with path.open("rb") as file:
            reader = _Reader(path, file, path.stat().st_size)
            _check_start(reader)
            tensor_count, metadata_count = reader.count("tensor"), reader.count("metadata")
            metadata = _read_metadata(reader, metadata_count)
            alignment = metadata.integer("general.alignment", _DEFAULT_ALIGNMENT, low=1, high=_MAX_ALIGNMENT)
            if alignment & (alignment - 1):
                raise reader.fail(f"general.alignment is {alignment}, not a power of two")
            records = [_read_tensor_record(reader) for _ in range(tensor_count)]
            data_start = -(-reader.position // alignment) * alignment
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    return GGUFFile(path, metadata, _place_tensors(reader, records, data_start, alignment))


def _check_start(reader: _Reader) -> None:
    magic = reader.take(4, "the magic number")
    if magic == LFS_START[: len(magic)]:
        raise ModelFileError(f"{reader.path} {LFS_HINT}")
    if magic != MAGIC:
        raise ModelFileError(f"{reader.path} is not a GGUF file: it starts with {magic!r}, not {MAGIC!r}")
    version = reader.scalar("I", "the version")
    if version not in _VERSIONS:
        hint = " (big-endian files are not read)" if version & 0xFFFF == 0 else ""
        raise ModelFileError(
            f"{reader.path} is GGUF version {version}{hint}; versions 2 and 3 are read: convert it again"
        )


def _read_metadata(reader: _Reader, count: int) -> Metadata:
    values: dict[str, Any] = {}
    for _ in range(count):
        key = reader.name("a metadata key")
        if key in values:
            raise reader.fail(f"metadata key {key:.100} appears twice")
        values[key] = reader.value(key)
    return Metadata(reader.path, values)


def _read_tensor_record(reader: _Reader) -> GGUFTensor:
    """One tensor record; its offset is still relative to the data."""
    name = reader.name("a tensor name")
    dimensions = reader.scalar("I", f"the dimension count of {name}")
    if not 1 <= dimensions <= _MAX_DIMENSIONS:
        raise reader.fail(f"tensor {name:.100} has {dimensions} dimensions, expected 1 to {_MAX_DIMENSIONS}")
    shape = struct.unpack(f"<{dimensions}Q", reader.take(8 * dimensions, f"the shape of {name}"))
    type_id = reader.scalar("I", f"the type of {name}")
    offset = reader.scalar("Q", f"the offset of {name}")
    if type_id not in BLOCK_TYPES:
        readable = ", ".join(block.name for block in BLOCK_TYPES.values())
        seen = _OTHER_TYPES.get(type_id, f"type number {type_id}")
        raise ModelFileError(f"{reader.path}: tensor {name:.100} is stored as {seen}; these are read: {readable}")
    block = BLOCK_TYPES[type_id]
    elements = math.prod(shape)
    if not 0 < elements <= _MAX_ELEMENTS or shape[0] % block.elements:
        raise reader.fail(f"tensor {name:.100} has shape {list(shape)}, which {block.name} cannot hold")
    return GGUFTensor(name, shape[::-1], type_id, offset, elements // block.elements * block.nbytes)


def _place_tensors(
    reader: _Reader, records: list[GGUFTensor], data_start: int, alignment: int
) -> dict[str, GGUFTensor]:
    """Tensors by name in data order, offsets made absolute; each inside the file, none over another."""
    tensors: dict[str, GGUFTensor] = {}
    end = data_start
    for record in sorted(records, key=lambda record: record.offset):
        start = data_start + record.offset
        label = f"{reader.path}: tensor {record.name:.100}"
        if record.name in tensors:
            raise ModelFileError(f"{label} appears twice")
        if start % alignment:
            raise ModelFileError(f"{label} starts at byte {start}, which is not a multiple of {alignment}")
        if start < end:
            raise ModelFileError(
                f"{label} starts at byte {start}, inside the tensor before it, which ends at {end}: download it again"
            )
        end = start + record.nbytes
        if end > reader.size:
            raise ModelFileError(
                f"{label} would end at byte {end} but the file has {reader.size}: it is truncated or its offsets lie: "
                "download it again"
            )
        tensors[record.name] = GGUFTensor(record.name, record.shape, record.type_id, start, record.nbytes)
    if not tensors:
        raise ModelFileError(f"{reader.path} holds no tensors (a vocabulary only): expected a whole model")
    return tensors
