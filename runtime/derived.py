"""Packed weights on disk: what a library's layout functions made of a folder's weights, for the next start to read.

The weights of a folder stay in MLC's format; the file beside them can be deleted at any time. There is one for each
library of a folder:

    <model folder>/.mlc-derived/<library>.bin
    <cache folder>/derived/<hash of the model folder>/<library>.bin     where the model folder cannot be written

    | prefix, header as JSON, zeros up to a page | the tensors as they lie in memory |

The header names the files that the tensors were made of with their sizes and modification times, so a change of any of
them makes the file stale; so does a library that describes itself in other words. The header also states the file's own
modification time: a file that has another one was copied or touched, and its sums are compared once more.
"""

import json
import os
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple

from .artifact import TENSOR_CACHE_NAME, cache_home
from .locks import locked
from .policy import derived_weights_policy
from .processor import num_threads
from .tvm_runtime import Arena

FOLDER_NAME = ".mlc-derived"
_MAGIC = b"mlc-aot packed weights 1\n"
_PREFIX = struct.Struct("<25sxxxII")  # magic, bytes of the JSON, CRC of the JSON
_PAGE = 4096
_MAX_HEADER = 4 << 20
_MAX_BYTES = 1 << 44
_PIECE = 32 << 20  # bytes under one CRC
_LEAST_SHARE = 128 << 20  # bytes that are worth a thread of their own
_MOST_AT_ONCE = 1 << 30  # bytes of one call; Linux moves less than 2 GiB
_KEPT = 4  # files in one of the folders
_TICK = 2 * 10**9  # ns; the coarsest modification times that file systems keep

FileState = tuple[str, int, int]  # path, size, modification time in ns


class _Header(NamedTuple):
    """What the file says of itself."""

    files: tuple[FileState, ...]  # what the tensors were made of: the weight index, the shards, the library
    fingerprint: int  # of the library's description of itself
    nbytes: int  # of the tensors
    pieces: tuple[int, ...]  # CRC of each piece of them
    mtime_ns: int

    def to_bytes(self) -> bytes:
        text = json.dumps(self._asdict()).encode()
        start = _PREFIX.pack(_MAGIC, len(text), zlib.crc32(text)) + text
        return start + bytes(-len(start) % _PAGE)


class Reading:
    """Packed weights on their way into memory; other threads read them while this one does something else."""

    def __init__(self, folder: Path, descriptor: int, path: Path, header: _Header, start: int) -> None:
        self._folder, self._path, self._header = folder, path, header
        self._touched = os.fstat(descriptor).st_mtime_ns != header.mtime_ns
        self._arena = Arena(header.nbytes)
        self._failed = False
        memory = self._arena.memory[: header.nbytes]
        count = max(1, min(num_threads(), header.nbytes // _LEAST_SHARE))
        share = -(-header.nbytes // count // _PAGE) * _PAGE
        self._threads = [
            Thread(target=self._read, args=(os.dup(descriptor), memory[at : at + share], start + at), daemon=True)
            for at in range(0, header.nbytes, share)
        ]
        for thread in self._threads:
            thread.start()

    def finish(self, library: Path, fingerprint: int, nbytes: int) -> Arena | None:
        """The memory with the tensors; None where they are another library's, or could not be read."""
        for thread in self._threads:
            thread.join()
        header = self._header
        if self._failed or (header.fingerprint, header.nbytes) != (fingerprint, nbytes):
            return None
        if header.files[-1] != _library_state(self._folder, library):  # it was compiled anew in the meantime
            return None
        if self._touched:
            if _sums(self._arena.memory[: header.nbytes]) != header.pieces:
                return None
            with suppress(OSError):  # else they are compared again at the next start
                os.utime(self._path, ns=(header.mtime_ns, header.mtime_ns))
        return self._arena

    def _read(self, descriptor: int, memory: memoryview, offset: int) -> None:
        # One call for all of it where possible: to go on after each one needs the interpreter, which may be busy.
        try:
            while memory:
                count = os.preadv(descriptor, [memory[:_MOST_AT_ONCE]], offset)
                if count == 0:
                    raise EOFError
                memory, offset = memory[count:], offset + count
        except (OSError, EOFError):
            self._failed = True
        finally:
            os.close(descriptor)


def start_reading(folder: Path, library: Path) -> Reading | None:
    """Begin to read the packed weights of a folder for a library; None where there are none that are fresh and whole.

    Raises UsageError for an unknown MLC_DERIVED_WEIGHTS_POLICY.
    """
    if derived_weights_policy() not in ("ON", "READONLY"):
        return None
    for path in _places(folder, library):
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            status = os.fstat(descriptor)
            header, start = _read_header(descriptor)
            if status.st_size == start + header.nbytes and header.files == _states(folder, header.files):
                return Reading(folder, descriptor, path, header, start)
        except (OSError, ValueError):  # stale or damaged: it is made anew
            pass
        finally:
            os.close(descriptor)
    return None


def _read_header(descriptor: int) -> tuple[_Header, int]:
    """The header and where the tensors begin. Raises ValueError, OSError."""
    prefix = os.pread(descriptor, _PREFIX.size, 0)
    if len(prefix) < _PREFIX.size:
        raise ValueError("no header")
    magic, length, crc = _PREFIX.unpack(prefix)
    if magic != _MAGIC or length > _MAX_HEADER:
        raise ValueError("not packed weights")
    text = os.pread(descriptor, length, _PREFIX.size)
    if zlib.crc32(text) != crc:
        raise ValueError("damaged header")
    fields: dict[str, Any] = json.loads(text)
    files = tuple((str(name), int(size), int(mtime)) for name, size, mtime in fields["files"])
    header = _Header(files, fields["fingerprint"], fields["nbytes"], tuple(fields["pieces"]), fields["mtime_ns"])
    if not 0 < header.nbytes < _MAX_BYTES:
        raise ValueError("no tensors")
    return header, -(-(_PREFIX.size + length) // _PAGE) * _PAGE


def inputs(folder: Path, library: Path, index: Path, shards: Iterable[Path]) -> tuple[FileState, ...]:
    """The state of the files that packed weights are made of. Raises OSError when one cannot be seen."""
    names = [os.path.relpath(path, folder) for path in (index, *shards)]
    return (*(_state(folder, name) for name in names), _library_state(folder, library))


def _library_state(folder: Path, library: Path) -> FileState:
    return _state(folder, os.path.relpath(library.resolve(), folder.resolve()))


def _states(folder: Path, files: Sequence[FileState]) -> tuple[FileState, ...]:
    """The state of the same files now."""
    if files[0][0] != TENSOR_CACHE_NAME and (folder / TENSOR_CACHE_NAME).exists():
        raise ValueError("another index")
    return tuple(_state(folder, name) for name, _, _ in files)


def _state(folder: Path, name: str) -> FileState:
    status = os.stat(os.path.join(folder, name))  # noqa: PTH116, PTH118 - hundreds of shards, before the first token
    return name, status.st_size, status.st_mtime_ns


def write(
    arena: Arena, nbytes: int, fingerprint: int, files: tuple[FileState, ...], folder: Path, library: Path
) -> None:
    """Keep packed weights for the next start, where there is room for them and MLC_DERIVED_WEIGHTS_POLICY allows.

    What goes wrong is no error: the next start packs them again.
    """
    if derived_weights_policy() not in ("ON", "REDO"):
        return
    memory = arena.memory[:nbytes]
    mtime_ns = time.time_ns() // _TICK * _TICK
    header = _Header(files, fingerprint, nbytes, _sums(memory), mtime_ns)
    for path in _places(folder, library):
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with locked(path.with_suffix(".lock"), path, lambda note: None):
                _write(path, header, memory)
            _remove_others(path)
            return


def _write(path: Path, header: _Header, memory: memoryview) -> None:
    """Write the file under a temporary name and move it into place. Raises OSError."""
    temporary = path.with_suffix(".tmp")
    start = header.to_bytes()
    space = os.statvfs(path.parent)
    if space.f_bavail * space.f_frsize < 2 * (len(start) + header.nbytes):
        raise OSError("the disk is nearly full")
    try:
        with temporary.open("wb", buffering=0) as file:
            file.write(start)
            for at in range(0, header.nbytes, _PIECE):
                piece = memory[at : at + _PIECE]
                while piece:
                    piece = piece[file.write(piece) :]
            os.utime(file.fileno(), ns=(header.mtime_ns, header.mtime_ns))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _places(folder: Path, library: Path) -> list[Path]:
    """Where packed weights can be: beside the stored ones, and in the cache folder."""
    name = f"{library.stem}.bin"
    places = [folder / FOLDER_NAME / name]
    with suppress(RuntimeError):  # no home directory
        key = f"{zlib.crc32(os.fsencode(folder.resolve())):08x}"
        places.append(cache_home() / "derived" / f"{folder.resolve().name}-{key}" / name)
    return places


def _remove_others(path: Path) -> None:
    """Keep the disk from filling up with the packed weights of libraries that are no longer used."""
    files = sorted(path.parent.glob("*.bin"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
    for old in files[_KEPT:]:
        old.unlink(missing_ok=True)


def _sums(memory: memoryview) -> tuple[int, ...]:
    """The CRC of each piece, computed by all cores."""
    starts = range(0, memory.nbytes, _PIECE)
    sums = [0] * len(starts)

    def work(first: int, step: int) -> None:
        for index in range(first, len(starts), step):
            sums[index] = zlib.crc32(memory[starts[index] : starts[index] + _PIECE])

    count = num_threads()
    threads = [Thread(target=work, args=(first, count)) for first in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tuple(sums)
