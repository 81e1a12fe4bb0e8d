"""What this machine has: cores and instruction sets of the processor, memory to use."""

import math
import os
import platform
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from .errors import UsageError

_CPUINFO = Path("/proc/cpuinfo")
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_CPUS = Path("/sys/devices/system/cpu")


def _read(path: Path) -> str:
    """The text of a file that the kernel provides; empty where it does not."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def resolve_device(name: str) -> str:
    """The device that `--device` means: "auto" is the processor. Raises UsageError for one that is not supported."""
    if name in ("auto", "cpu", "cpu:0"):
        return "cpu"
    raise UsageError(f"device {name!r} is not supported yet: use 'cpu' or 'auto'")


def host_architecture() -> str:
    """The processor's architecture in the spelling of target triples: "x86_64", "aarch64"."""
    return {"AMD64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())


@cache
def cpu_features() -> frozenset[str]:
    """Instruction sets of this processor, in the spelling of `/proc/cpuinfo`; empty where that cannot be read."""
    for line in _read(_CPUINFO).splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def physical_cores(cpus: Iterable[int]) -> int:
    """How many physical cores a set of logical processors stands for; siblings of one core count once."""
    siblings = {_read(_CPUS / f"cpu{cpu}/topology/thread_siblings_list").strip() or str(cpu) for cpu in cpus}
    return len(siblings)


def cpu_quota() -> float:
    """How many processors the control group allows at a time; infinity without a limit (cgroup v2, then v1)."""
    fields = _read(_CGROUP / "cpu.max").split()
    if not fields:
        fields = [_read(_CGROUP / f"cpu/cpu.cfs_{name}_us").strip() for name in ("quota", "period")]
    try:
        quota, period = (int(field) for field in fields)
    except ValueError:
        return math.inf
    return quota / period if quota > 0 and period > 0 else math.inf


def num_threads() -> int:
    """How many threads the kernels should use: one for each physical core that this process may run on."""
    return max(1, min(physical_cores(os.sched_getaffinity(0)), math.ceil(min(cpu_quota(), 1 << 16))))


def available_memory() -> int:
    """Bytes that this process can still take: what the machine has left, less where the control group allows less."""
    fields = dict(line.split(":", 1) for line in _read(_MEMINFO).splitlines() if ":" in line)
    kilobytes = fields.get("MemAvailable", "").split()
    free = int(kilobytes[0]) * 1024 if kilobytes else 1 << 62
    limit, used = (_read(_CGROUP / name).strip() for name in ("memory.max", "memory.current"))
    if limit.isdigit() and used.isdigit():
        free = min(free, max(0, int(limit) - int(used)))
    return free
