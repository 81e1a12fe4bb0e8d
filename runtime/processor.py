"""What this machine has: cores and instruction sets of the processor, memory to use."""

import ctypes
import math
import os
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path

from .errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")
_CPUS = Path("/sys/devices/system/cpu")

MAX_THREADS = 256  # as many as a library's kernels can use
_THREAD_VARIABLES = ("MLC_NUM_THREADS", "TVM_NUM_THREADS", "OMP_NUM_THREADS")


def _read(path: Path) -> str:
    """The text of a file that the kernel provides; empty where it does not."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def host_architecture() -> str:
    """The processor's architecture in the spelling of target triples: "x86_64", "aarch64"."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(os.uname().machine, os.uname().machine)


@cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this processor, in the spelling of `/proc/cpuinfo`; empty where that cannot be read."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def processor_name() -> str:
    """What the processor calls itself; its architecture where the kernel does not tell."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name" and value.strip():
            return value.strip()
    return host_architecture()


def physical_cores(cpus: Iterable[int]) -> int:
    """How many physical cores a set of logical processors stands for; siblings of one core count once."""
    siblings = {_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu) for cpu in cpus}
    return len(siblings)


def cpu_quota() -> float:
    """How many processors the control groups of this process allow at a time; infinity without a limit.

    A group's limit holds for the groups inside of it too. Control groups of version 2, then of version 1.
    """
    quota = math.inf
    for line in _read(_GROUPS).splitlines():
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        group = _CGROUP / ("cpu" if controllers else "") / name.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(_CGROUP):
                break
            fields = _read(folder / "cpu.max").split()
            if controllers:
                fields = [_read(folder / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
            with suppress(ValueError):  # "max", or a folder that is none of a group
                allowed, period = (int(field) for field in fields)
                if allowed > 0 and period > 0:
                    quota = min(quota, allowed / period)
    return quota


def num_threads(wanted: int | None = None) -> int:
    """How many threads the kernels use: one for each physical core that this process may run on, unless the user says.

    `wanted` is what was asked for in the program itself. Else `MLC_NUM_THREADS` is the setting; `TVM_NUM_THREADS` and
    `OMP_NUM_THREADS` count where it is not set, as with other programs on TVM. Raises UsageError for a value that is
    no number of threads.
    """
    if wanted is not None:
        if isinstance(wanted, bool) or not isinstance(wanted, int) or not 1 <= wanted <= MAX_THREADS:
            raise UsageError(f"num_threads is {wanted!r:.80}: expected a whole number from 1 to {MAX_THREADS}")
        return wanted
    for variable in _THREAD_VARIABLES:
        if value := os.environ.get(variable):
            if not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= MAX_THREADS):
                raise UsageError(f"{variable} is {value[:40]!r}: expected a whole number from 1 to {MAX_THREADS}")
            return int(value)
    cores = physical_cores(os.sched_getaffinity(0))
    return max(1, min(cores, math.ceil(min(cpu_quota(), MAX_THREADS)), MAX_THREADS))


def return_free_memory() -> None:
    """Let the C library give the kernel back what was freed: to parse a tokenizer leaves 6 MB of it."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's
    if trim is not None:
        trim(0)


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has left, less where the control group allows less."""
    fields = dict(line.split(":", 1) for line in _read(_MEMINFO).splitlines() if ":" in line)
    kilobytes = fields.get("MemAvailable", "").split()
    free = int(kilobytes[0]) * 1024 if kilobytes else 1 << 62
    limit, used = (_read(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free
