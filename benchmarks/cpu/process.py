"""Running one measurement in a process of its own, and noticing what else the machine did meanwhile."""

import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_STAT = Path("/proc/stat")
_READ_RATE = (
    "from statistics import median\n"
    "from mlc_llm.runtime.bandwidth import ReadProbe\n"
    "from mlc_llm.runtime.processor import num_threads\n"
    "probe = ReadProbe(num_threads())\n"
    "print(median(probe.measure() for _ in range(5)))\n"
)


class Failed(Exception):
    """A program of the comparison could not do its work; the message is one line."""


@dataclass(frozen=True)
class Run:
    """A process that has ended well. `others` are seconds of processor time that went to neither it nor us."""

    output: str
    first_byte: float  # seconds from its start
    seconds: float
    peak: int  # bytes
    others: float


def run(command: Sequence[str], environment: Mapping[str, str], busy: bool = False, timeout: float = 900) -> Run:
    """Run `command` and watch its standard output. Raises Failed."""
    with _busy_process() if busy else _nobody() as companion:
        elsewhere = _busy_seconds() - _own_seconds()
        begin = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **environment},
        )
        assert process.stdout is not None
        timer = _kill_later(process, timeout)
        first, pieces = 0.0, []
        with process.stdout:
            while piece := os.read(process.stdout.fileno(), 1 << 16):
                first = first or time.perf_counter() - begin
                pieces.append(piece)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - begin
        elsewhere = _busy_seconds() - _own_seconds() - elsewhere
        timer.cancel()
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        raise Failed(f"exit code {process.returncode}: {shlex.join(command)}")
    used = usage.ru_utime + usage.ru_stime + companion.seconds
    return Run(
        b"".join(pieces).decode("utf-8", "replace"), first, seconds, usage.ru_maxrss * 1024, max(0.0, elsewhere - used)
    )


class _Companion:
    """The busy process: the processor time that it had."""

    seconds = 0.0


@contextmanager
def _nobody() -> Iterator[_Companion]:
    yield _Companion()


@contextmanager
def _busy_process() -> Iterator[_Companion]:
    """A process that computes without rest on the last core that we may use."""
    companion = _Companion()
    core = max(os.sched_getaffinity(0))
    code = f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-S", "-c", code])
    time.sleep(0.2)  # until it runs
    before = _processor_seconds(process.pid)
    try:
        yield companion
    finally:
        companion.seconds = _processor_seconds(process.pid) - before
        process.kill()
        process.wait()


def _kill_later(process: "subprocess.Popen[bytes]", seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def _own_seconds() -> float:
    times = os.times()
    return times.user + times.system


def _busy_seconds() -> float:
    """Seconds that all processors together have not been idle, those that other machines took included."""
    user, nice, system, _, _, irq, softirq, steal = map(int, _STAT.read_text().splitlines()[0].split()[1:9])
    return (user + nice + system + irq + softirq + steal) / _TICKS


def read_rate() -> float:
    """Bytes per second that the memory delivers at the moment, measured in a process of its own."""
    return float(run([sys.executable, "-c", _READ_RATE], {}).output)
