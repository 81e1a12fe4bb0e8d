"""Checked reading of one `.safetensors` file: 8 bytes of header length, a JSON header, then the tensors' bytes.

The rules are those of the format's specification and its 2023 audit: a bounded header, each tensor's bytes equal
to its shape times its dtype, and the tensors covering the data without overlap, hole or remainder.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from ...runtime.errors import ModelFileError
from .source import LFS_HINT, LFS_START, TensorSpec

MAX_HEADER_BYTES = 100_000_000
MAX_DIMENSIONS = 8
MAX_NAME_CHARACTERS = 1024
# Stored dtype -> (numpy dtype in the file, dtype that `read` returns).
_DTYPES: dict[str, tuple[np.dtype[Any], str]] = {
    "F64": (np.dtype("<f8"), "float32"),
    "F32": (np.dtype("<f4"), "float32"),
    "F16": (np.dtype("<f2"), "float16"),
    "BF16": (np.dtype(ml_dtypes.bfloat16), "bfloat16"),
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: `nbytes` at `offset` from the start of the file."""

    path: Path
    name: str
    stored_dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.shape, _DTYPES[self.stored_dtype][1])

    def read(self) -> np.ndarray:
        """The tensor in memory of its own. Raises ModelFileError when the file has shrunk or vanished."""
        buffer = np.empty(self.nbytes, np.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.offset)
                read = _read_into(file, buffer.data)
        except OSError as error:
            raise ModelFileError(f"{self.path} cannot be read: {error.strerror or error}") from None
        if read != self.nbytes:
            raise ModelFileError(f"{self.path}: tensor {self.name} ends after {read} of {self.nbytes} bytes")
        tensor = buffer.view(_DTYPES[self.stored_dtype][0]).reshape(self.shape)
        return tensor.astype(np.float32) if self.stored_dtype == "F64" else tensor


def _read_into(file: Any, view: memoryview) -> int:
    """Fill the view from an unbuffered file, which may return less than was asked; the bytes read."""
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            break
        done += count
    return done


def read_header(path: Path) -> list[StoredTensor]:
    """The tensors of a file in file order, with every claim of the header checked. Raises ModelFileError."""
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            header, data_start = _parse_header(path, file, size)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    header.pop("__metadata__", None)
    tensors = [_check_record(path, name, record, data_start) for name, record in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = data_start
    for tensor in tensors:
        if tensor.offset != end:
            problem = "overlaps the tensor before it" if tensor.offset < end else "leaves a hole before it"
            raise ModelFileError(
                f"{path}: tensor {tensor.name} starts at byte {tensor.offset}, not {end}: it {problem}: "
                "download it again"
            )
        end += tensor.nbytes
    if end != size:
        what = "it is truncated (download it again)" if size < end else "unused bytes follow the last tensor"
        raise ModelFileError(f"{path} has {size} bytes but its header describes {end}: {what}")
    return tensors


def _parse_header(path: Path, file: BinaryIO, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header as a dict and the offset of the first tensor byte."""
    prefix = file.read(8)
    if prefix == LFS_START[:8]:
        raise ModelFileError(f"{path} {LFS_HINT}")
    if len(prefix) < 8:
        raise ModelFileError(f"{path} has {size} bytes: too short for a safetensors file: download it again")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise ModelFileError(
            f"{path} is not a safetensors file: its header would have {length} bytes, the limit is {MAX_HEADER_BYTES}: "
            "download it again"
        )
    if 8 + length > size:
        raise ModelFileError(
            f"{path} is truncated: its header needs {8 + length} bytes, the file has {size}: download it again"
        )
    try:
        header = json.loads(file.read(length), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: the safetensors header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise ModelFileError(f"{path}: the safetensors header is a {type(header).__name__}, not a JSON object")
    return header, 8 + length


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in pairs:
        if name in result:
            raise ValueError(f"{name!r:.200} appears twice")
        result[name] = value
    return result


def _check_record(path: Path, name: str, record: Any, data_start: int) -> StoredTensor:
    """One header entry, with its types, dtype and byte count checked."""
    if not name.isprintable() or len(name) > MAX_NAME_CHARACTERS:
        raise ModelFileError(f"{path}: a tensor is called {name!r:.100}, expected a printable name")
    match record:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(begin), int(end)]} if len(record) == 3:
            pass
        case _:
            raise ModelFileError(
                f"{path}: tensor {name} needs dtype, shape and two data_offsets, found {record!r:.200}"
            )
    if dtype not in _DTYPES:
        raise ModelFileError(
            f"{path}: tensor {name} is stored as {dtype!r:.100}; {', '.join(_DTYPES)} are read"
            " (a checkpoint that is already quantized cannot be a source)"
        )
    if len(shape) > MAX_DIMENSIONS or not all(type(dim) is int and dim > 0 for dim in shape):
        raise ModelFileError(f"{path}: tensor {name} has shape {shape!s:.200}; expected up to 8 positive integers")
    nbytes = math.prod(shape) * _DTYPES[dtype][0].itemsize
    if begin < 0 or end - begin != nbytes:
        raise ModelFileError(f"{path}: tensor {name} spans bytes {begin} to {end}, its shape and dtype need {nbytes}")
    return StoredTensor(path, name, dtype, tuple(shape), data_start + begin, nbytes)
