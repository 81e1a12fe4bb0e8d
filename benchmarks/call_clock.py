"""A clock for the calls of TVM's virtual machine and the parallel loops in them, and what the processor can do at most:
the functions of call_clock.c, which is compiled for this machine when it is needed.
"""

import ctypes
import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import tvm_ffi

from mlc_llm.runtime import ffi
from mlc_llm.runtime.model import Model

_SOURCE = Path(__file__).with_suffix(".c")


@dataclass(frozen=True)
class Times:
    """Of the calls of a pass, in nanoseconds."""

    calls: list[int]  # before and after each
    loops: list[int]  # spent in parallel loops, where `calls` has the end of the call


class Clock:
    """Takes times while `function` is the instrument of a virtual machine and, of its loops, inside of `loops`."""

    def __init__(self, model: Model) -> None:
        with tempfile.TemporaryDirectory() as folder:
            library = Path(folder) / "call_clock.so"
            flags = ["-O3", "-march=native", "-shared", "-fPIC"]
            subprocess.run([os.environ.get("CC", "cc"), *flags, str(_SOURCE), "-o", str(library)], check=True)
            self._library = ctypes.CDLL(str(library))
        handle = ctypes.c_void_p()
        create = ctypes.CDLL(tvm_ffi.libinfo.find_libtvm_ffi()).TVMFFIFunctionCreate
        if create(None, self._library.take_time, None, ctypes.byref(handle)) or not handle.value:
            raise RuntimeError("TVM does not take the clock")
        self.function = ffi.Function(handle.value)
        self._count = ctypes.c_int64.in_dll(self._library, "num_call_times")
        self._times, self._loop_times = (
            (ctypes.c_int64 * (1 << 16)).in_dll(self._library, name) for name in ("call_times", "loop_times")
        )
        self._launch = ctypes.c_void_p.in_dll(ctypes.CDLL(str(model._library.path)), "__TVMBackendParallelLaunch")
        ctypes.c_void_p.in_dll(self._library, "launch").value = self._launch.value

    @contextmanager
    def loops(self) -> Iterator[None]:
        """Time the parallel loops too."""
        usual, timed = self._launch.value, ctypes.cast(self._library.timed_launch, ctypes.c_void_p).value
        self._launch.value = timed
        try:
            yield
        finally:
            self._launch.value = usual

    def take(self) -> Times:
        """The times since the last call."""
        count, self._count.value = self._count.value, 0
        return Times(self._times[:count], self._loop_times[:count])

    def exchange(self) -> float:
        """Seconds in which a cache line gets from one core to another; 0 where there is only one."""
        cores = sorted(os.sched_getaffinity(0))[:2]
        if len(cores) < 2:
            return 0.0

        def take_part(thread: int, rounds: int) -> None:
            os.sched_setaffinity(0, {cores[thread]})  # of this thread only
            self._library.exchange(thread, ctypes.c_int64(rounds))

        best, rounds = float("inf"), 10_000
        for _ in range(3):
            threads = [threading.Thread(target=take_part, args=(i, rounds)) for i in (0, 1)]
            begin = perf_counter()
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            best = min(best, perf_counter() - begin)
        return best / (2 * rounds)

    def peak(self, name: str, threads: int) -> float:
        """Operations per second of `multiply_<name>` on some threads; 0 where the processor cannot."""
        multiply = self._library[f"multiply_{name}"]
        multiply.argtypes, multiply.restype = [ctypes.c_int64], ctypes.c_int64
        best, rounds = 0.0, 5_000_000
        for _ in range(5):
            workers = [threading.Thread(target=multiply, args=(rounds,)) for _ in range(threads - 1)]
            begin = perf_counter()
            for worker in workers:
                worker.start()
            operations = multiply(rounds)
            for worker in workers:
                worker.join()
            best = max(best, operations * threads / (perf_counter() - begin))
        return best
