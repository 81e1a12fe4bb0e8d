"""How fast this machine reads memory: the limit of decoding, which reads every weight for every token.

The C library's `memchr` scans with vector instructions as fast as the memory delivers, and ctypes lets go of Python's
lock meanwhile, so one thread for each core gives the rate of the whole machine without a kernel of our own.
"""

import ctypes
import os
import threading
from pathlib import Path
from time import perf_counter

import numpy as np

from .tvm_runtime import Arena

_LEAST_BYTES = 256 << 20
_MOST_BYTES = 4 << 30
_PASSES = 4  # over the buffer: starting the threads takes no part of the time then
_CPUS = Path("/sys/devices/system/cpu")
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def cache_bytes() -> int:
    """Bytes of the last-level caches that this process can use, all of them together; 0 where that is not known."""
    caches: dict[str, int] = {}
    for cpu in os.sched_getaffinity(0):
        folder = _CPUS / f"cpu{cpu}/cache/index3"
        try:
            size = (folder / "size").read_text().strip()
            caches[(folder / "shared_cpu_list").read_text()] = int(size[:-1]) * _UNITS[size[-1]]
        except (OSError, ValueError, KeyError, IndexError):
            continue
    return sum(caches.values())


class ReadProbe:
    """A buffer that no cache holds, and threads that read it. It stays in memory: `nbytes` of the process are its."""

    def __init__(self, threads: int, nbytes: int | None = None) -> None:
        """`nbytes` is 256 MiB, or four times the caches where that is more. Raises EngineError without that memory."""
        self.nbytes = nbytes or min(max(_LEAST_BYTES, 4 * cache_bytes()), _MOST_BYTES)
        self._buffer = Arena(self.nbytes).array((self.nbytes,), np.dtype(np.uint8))
        self._buffer.fill(0)  # pages that nobody has written are one page of zeros, in the cache
        self._threads = threads
        self._memchr = ctypes.CDLL(None).memchr
        self._memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._memchr.restype = ctypes.c_void_p

    def measure(self) -> float:
        """Bytes per second that all threads read together, now; takes some 20 ms."""
        part = self.nbytes // self._threads
        start = self._buffer.ctypes.data
        readers = [threading.Thread(target=self._read, args=(start + i * part, part)) for i in range(self._threads)]
        begin = perf_counter()
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()
        return _PASSES * part * self._threads / (perf_counter() - begin)

    def _read(self, address: int, nbytes: int) -> None:
        for _ in range(_PASSES):
            self._memchr(address, 1, nbytes)  # looks for a byte that is not there
