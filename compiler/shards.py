"""Writes a folder's weights in MLC's format: `params_shard_*.bin` and `tensor-cache.json`, all of it or nothing.

The same tensors in the same order give the same bytes as `tvm.contrib.tvmjs.dump_tensor_cache`.
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from ..runtime.artifact import TENSOR_CACHE_NAME, TENSOR_CACHE_OLD_NAME, ParamMetadata
from ..runtime.errors import EngineError

SHARD_BYTES = 32 << 20
TENSOR_CACHE_BF16_NAME = "tensor-cache-b16.json"  # the same shards, with those tensors declared as bfloat16
_TEMPORARY_NAME = ".weights.tmp"
_INDEX_ROOM = 1 << 20  # bytes set aside for the JSON beside the shards
_SHARD_NAME = re.compile(r"params_shard_\d+\.bin")


class ShardWriter:
    """Collects tensors into shards inside a hidden folder; `finish` moves them into place.

    Used as a context manager: whatever ends the block before `finish` leaves the folder as it was.
    Raises EngineError when the disk is full, the folder cannot be written or another process is writing it.
    """

    def __init__(
        self, folder: Path, total_bytes: int, *, record_format: str = "f32-to-bf16", shard_bytes: int = SHARD_BYTES
    ) -> None:
        """`record_format` "f32-to-bf16": float32 tensors come as bfloat16, all others as they are; "raw": all do."""
        self.folder = folder
        self._format = record_format
        self.total_bytes = total_bytes
        self._temporary = folder / _TEMPORARY_NAME
        self._shard_bytes = shard_bytes
        self._shards: list[dict[str, Any]] = []
        self._pending = bytearray()
        self._pending_records: list[dict[str, Any]] = []
        self._lock = -1
        self._made_folder = False

    def __enter__(self) -> "ShardWriter":
        with self._explained():
            self._made_folder = not self.folder.exists()
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with self._explained():
                self._take_lock()
                shutil.rmtree(self._temporary, ignore_errors=True)  # left by a process that was killed
                if _free_bytes(self.folder) < self.total_bytes + _INDEX_ROOM:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                self._temporary.mkdir()
        except BaseException:
            self._release()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._release()

    def add(self, record: ParamMetadata, data: npt.NDArray[Any]) -> None:
        """Append one tensor: `data` holds its bytes at rest.

        A tensor of half a shard or more that does not fit gets a file of its own at once, numbered before the shard
        that is still being filled.
        """
        size = data.nbytes
        entry: dict[str, Any] = {"name": record.name, "shape": record.shape, "dtype": record.dtype}
        entry |= {"format": self._format, "nbytes": size}
        raw = data.reshape(-1).view(np.uint8).data
        if len(self._pending) + size >= self._shard_bytes:
            if size * 2 >= self._shard_bytes:
                entry["byteOffset"] = 0
                self._write_shard(raw, [entry])
                return
            self._flush()
        entry["byteOffset"] = len(self._pending)
        self._pending_records.append(entry)
        self._pending += raw

    def finish(self, metadata: dict[str, Any]) -> None:
        """Write the index and move everything into place.

        The old index goes first and the new one comes last: an interruption in between leaves a folder without an
        index, never one whose index describes other shards.
        """
        self._flush()
        with self._explained():
            indexes = self._write_indexes(metadata)
            for name in (TENSOR_CACHE_NAME, TENSOR_CACHE_OLD_NAME, TENSOR_CACHE_BF16_NAME):
                (self.folder / name).unlink(missing_ok=True)
            new = {shard["dataPath"] for shard in self._shards}
            for path in self.folder.iterdir():
                if _SHARD_NAME.fullmatch(path.name) and path.name not in new:
                    path.unlink()
            for name in [*new, *reversed(indexes)]:
                (self._temporary / name).replace(self.folder / name)
        self._made_folder = False

    def _flush(self) -> None:
        if self._pending:
            self._write_shard(memoryview(self._pending), self._pending_records)
            self._pending, self._pending_records = bytearray(), []

    def _write_shard(self, data: memoryview, records: list[dict[str, Any]]) -> None:
        name = f"params_shard_{len(self._shards)}.bin"
        with self._explained(), (self._temporary / name).open("wb", buffering=0) as file:
            rest = data
            while rest:
                rest = rest[file.write(rest) :]
        digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
        shard = {"dataPath": name, "format": "raw-shard", "nbytes": len(data), "records": records, "md5sum": digest}
        self._shards.append(shard)

    def _write_indexes(self, metadata: dict[str, Any]) -> list[str]:
        """`tensor-cache.json`, and its bfloat16 twin when a float32 tensor is among the records."""
        names = [TENSOR_CACHE_NAME]
        (self._temporary / TENSOR_CACHE_NAME).write_text(_index(metadata, self._shards), encoding="utf-8")
        records = [record for shard in self._shards for record in shard["records"]]
        if self._format == "f32-to-bf16" and any(record["dtype"] == "float32" for record in records):
            twins = [shard | {"records": [_as_bfloat16(r) for r in shard["records"]]} for shard in self._shards]
            (self._temporary / TENSOR_CACHE_BF16_NAME).write_text(_index(metadata, twins), encoding="utf-8")
            names.append(TENSOR_CACHE_BF16_NAME)
        return names

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EngineError(
                f"{self.folder}: another process is writing weights here: wait for it or end it"
            ) from None
        except OSError:
            pass  # a file system without locks

    def _release(self) -> None:
        os.close(self._lock)
        if self._made_folder:
            with suppress(OSError):  # something else is in it by now
                self.folder.rmdir()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns an operating system's error into one line that says what is needed and where."""
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                need = self.total_bytes + _INDEX_ROOM
                raise EngineError(
                    f"{self.folder}: disk full: the weights take {need} bytes, {_free_bytes(self.folder)} are free: "
                    "make room or choose another folder with -o"
                ) from None
            raise EngineError(
                f"{self.folder}: cannot write weights: {error.strerror or error}: choose another folder with -o"
            ) from None


def _free_bytes(folder: Path) -> int:
    """Free bytes of the file system that `folder`, which may not exist yet, is or will be on."""
    return shutil.disk_usage(next(path for path in (folder, *folder.resolve().parents) if path.exists())).free


def _as_bfloat16(record: dict[str, Any]) -> dict[str, Any]:
    if record["dtype"] != "float32":
        return record
    return record | {"dtype": "bfloat16", "format": "raw"}


def _index(metadata: dict[str, Any], shards: list[dict[str, Any]]) -> str:
    return json.dumps({"metadata": metadata, "records": shards}, indent=4)
