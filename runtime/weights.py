"""Reads the weights of a model folder; every record of the index is checked before a byte is used."""

import math
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .artifact import ShardRecord, TensorRecord, load_tensor_cache
from .checksums import Shard, verify_shards
from .errors import EngineError, ModelFileError

ALIGNMENT = 64  # what TVM's kernels assume of a tensor's address
_MAX_SHARDS = 1 << 16
_MAX_RECORDS = 1 << 20
_MAX_DIMENSIONS = 8
_MAX_NAME = 1024
_WIDEN_BLOCK = 1 << 20

# dtype of a record -> numpy dtype of what is read. Types that numpy lacks come back as their bits.
_DTYPES: dict[str, npt.DTypeLike] = {
    "float16": np.float16,
    "bfloat16": np.uint16,
    "float32": np.float32,
    "uint32": np.uint32,
    "int32": np.int32,
    "uint8": np.uint8,
    "int8": np.int8,
    "float8_e4m3fn": np.uint8,
    "float8_e5m2": np.uint8,
    "e4m3_float8": np.uint8,  # the name in older folders
    "e5m2_float8": np.uint8,
}


def aligned_empty(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """An uninitialised C-contiguous array whose first element lies at a multiple of 64 bytes."""
    kind = np.dtype(dtype)
    nbytes = math.prod(shape) * kind.itemsize
    buffer = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    return buffer[start : start + nbytes].view(kind).reshape(shape)


class WeightStore:
    """The weights of a model folder by name: MLC's `tensor-cache.json`, or `ndarray-cache.json` in older folders.

    Opening checks the index, the sizes of all shards and, unless `verify` is false, their md5 sums (once per version
    of a file, see `checksums.py`). No shard stays open or mapped. Raises ModelFileError.
    """

    records: Mapping[str, TensorRecord]
    index: Path
    shards: tuple[Path, ...]

    def __init__(self, folder: Path, *, verify: bool = True) -> None:
        self.index, cache = load_tensor_cache(folder)
        self._closed = False
        _check_counts(self.index, cache.records)
        records: dict[str, TensorRecord] = {}
        self._shard_of: dict[str, Shard] = {}
        shards: dict[str, Shard] = {}
        for shard_record in cache.records:
            shard = _check_shard(folder, self.index, shard_record)
            if shard_record.dataPath in shards:
                raise ModelFileError(f"{self.index}: {shard_record.dataPath} is listed twice")
            shards[shard_record.dataPath] = shard
            for record in shard_record.records:
                if record.name in records:
                    raise ModelFileError(f"{self.index}: {record.name} is listed twice")
                records[record.name] = record
                self._shard_of[record.name] = shard
        if verify:
            verify_shards(self.index, list(shards.values()))
        self.shards = tuple(shard.path for shard in shards.values())
        self.records = MappingProxyType(records)

    def read(self, name: str) -> npt.NDArray[Any]:
        """A tensor in memory of its own, 64-byte aligned, in the record's shape.

        Float32 that is stored as bfloat16 is widened; bfloat16 comes back as uint16 bits, float8 as uint8 bits (the
        record's dtype tells). Raises ModelFileError when the folder has no such tensor or its shard changed or broke.
        """
        record = self._record(name)
        out = aligned_empty(tuple(record.shape), _DTYPES[record.dtype])
        self.read_into(name, out)
        return out

    def read_into(self, name: str, out: npt.NDArray[Any]) -> None:
        """As `read`, into a C-contiguous array of the record's shape. Raises ValueError when `out` does not fit."""
        record = self._record(name)
        if out.shape != tuple(record.shape) or out.dtype != _DTYPES[record.dtype] or not out.flags.c_contiguous:
            raise ValueError(f"{name} is {record.dtype} {record.shape}, not {out.dtype} {list(out.shape)}")
        flat = out.reshape(-1)
        shard = self._shard_of[name]
        try:
            with shard.path.open("rb", buffering=0) as file:
                if not shard.is_unchanged(os.fstat(file.fileno())):
                    raise ModelFileError(f"{shard.path} changed while the model was loading: load it again")
                if _is_narrowed(record):
                    _read_widened(file.fileno(), record.byteOffset, flat)
                else:
                    _read_exactly(file.fileno(), record.byteOffset, flat.view(np.uint8).data)
        except (OSError, EOFError) as error:
            raise ModelFileError(f"{shard.path} cannot be read: {getattr(error, 'strerror', None) or error}") from None

    def close(self) -> None:
        """Nothing can be read any more."""
        self._closed = True

    def _record(self, name: str) -> TensorRecord:
        if self._closed:
            raise EngineError(f"{name} cannot be read: the weights of {self.index.parent} are closed")
        record = self.records.get(name)
        if record is None:
            raise ModelFileError(
                f"{self.index} has no tensor {name}: the weights and the model library are of different models "
                "or quantizations"
            )
        return record


def _is_narrowed(record: TensorRecord) -> bool:
    """Whether a float32 tensor lies in its shard as bfloat16."""
    return record.format == "f32-to-bf16" and record.dtype == "float32"


def _read_exactly(descriptor: int, offset: int, out: memoryview) -> None:
    while out:
        count = os.preadv(descriptor, [out], offset)
        if count == 0:
            raise EOFError("it ends too early")
        out, offset = out[count:], offset + count


def _read_widened(descriptor: int, offset: int, out: npt.NDArray[np.float32]) -> None:
    """bfloat16 is the upper half of a float32."""
    bits = out.view(np.uint32)
    block = np.empty(min(out.size, _WIDEN_BLOCK), np.uint16)
    for start in range(0, out.size, _WIDEN_BLOCK):
        part = block[: out.size - start]
        _read_exactly(descriptor, offset + 2 * start, part.view(np.uint8).data)
        np.left_shift(part, 16, out=bits[start : start + part.size], dtype=np.uint32)


def _check_counts(index: Path, shards: list[ShardRecord]) -> None:
    tensors = sum(len(shard.records) for shard in shards)
    if not 0 < len(shards) <= _MAX_SHARDS or not 0 < tensors <= _MAX_RECORDS:
        raise ModelFileError(
            f"{index} lists {tensors} tensors in {len(shards)} shards: expected 1..{_MAX_RECORDS} in 1..{_MAX_SHARDS}"
        )


def _check_shard(folder: Path, index: Path, shard: ShardRecord) -> Shard:
    """The shard's file, after checks of its path, its size and the ranges of its records."""
    path = PurePosixPath(shard.dataPath)
    plain = shard.dataPath.isprintable() and len(shard.dataPath) <= _MAX_NAME
    if not plain or not path.parts or path.is_absolute() or ".." in path.parts:
        raise ModelFileError(f"{index}: shard {_shown(shard.dataPath)} is not a file inside the folder")
    if shard.format != "raw-shard":
        raise ModelFileError(f"{index}: {path} has format {_shown(shard.format)}: expected 'raw-shard'")
    try:
        status = (folder / path).stat()
    except OSError as error:
        raise ModelFileError(
            f"{folder / path} cannot be read: {error.strerror or error}: compile or download the model again"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise ModelFileError(f"{folder / path} is not a regular file")
    if status.st_size != shard.nbytes:
        raise ModelFileError(
            f"{folder / path} has {status.st_size} bytes, {index.name} says {shard.nbytes}: "
            "the file is damaged, compile or download it again"
        )
    for record in shard.records:
        _check_record(index, shard, record)
    _check_overlap(index, shard.records)
    return Shard(folder / path, status.st_size, status.st_mtime_ns, shard.md5sum)


def _check_record(index: Path, shard: ShardRecord, record: TensorRecord) -> None:
    name = _shown(record.name)
    if not record.name.isprintable() or not 0 < len(record.name) <= _MAX_NAME:
        raise ModelFileError(f"{index}: {name} is not the name of a tensor")
    if record.dtype not in _DTYPES or record.format not in ("raw", "f32-to-bf16"):
        raise ModelFileError(
            f"{index}: {name} has unknown dtype {_shown(record.dtype)} or format {_shown(record.format)}"
        )
    if len(record.shape) > _MAX_DIMENSIONS or not all(0 < size < 1 << 40 for size in record.shape):
        raise ModelFileError(f"{index}: {name} has shape {_shown(record.shape)}: expected up to 8 positive sizes")
    itemsize = 2 if _is_narrowed(record) else np.dtype(_DTYPES[record.dtype]).itemsize
    if record.nbytes != math.prod(record.shape) * itemsize:
        raise ModelFileError(
            f"{index}: {name} has {record.nbytes} bytes: {record.dtype} {record.shape} takes "
            f"{math.prod(record.shape) * itemsize}"
        )
    if record.byteOffset + record.nbytes > shard.nbytes:
        raise ModelFileError(
            f"{index}: {name} ends at byte {record.byteOffset + record.nbytes}, "
            f"but {shard.dataPath} has {shard.nbytes} bytes"
        )


def _check_overlap(index: Path, records: Iterable[TensorRecord]) -> None:
    end, last = 0, ""
    for record in sorted(records, key=lambda record: record.byteOffset):
        if record.byteOffset < end:
            raise ModelFileError(f"{index}: {record.name} overlaps {last}")
        end, last = record.byteOffset + record.nbytes, record.name


def _shown(value: object) -> str:
    """A value from the file, bounded, for a message in one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
