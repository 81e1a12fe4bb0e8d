"""How long a compiled model takes from the start of the process to the first text, and what memory it takes at most.

    python benchmarks/start.py MODEL [--model-lib FILE] [--rounds 11] [--max-tokens 32] [--command "mlc"]

Each round is a process of its own: `mlc chat MODEL -p PROMPT`, its standard output a pipe (or a terminal with --pty).
The clock starts before the process is made and stops at the first byte of the answer. The first round, which may
derive weights and fill the page cache, is told apart. Peak memory is what the kernel counted (ru_maxrss).

PYTHONDONTWRITEBYTECODE is taken out of the environment: pip compiles modules when it installs them, but those of a
checkout would be compiled anew in every round.
"""

import argparse
import os
import pty
import shlex
import statistics
import sys
import time
from dataclasses import dataclass

PROMPT = "What is the capital of France?"


@dataclass(frozen=True)
class Start:
    """One process: seconds to the first byte and to the end, processor seconds, peak memory in bytes."""

    first: float
    end: float
    processor: float
    peak: int
    text: str


def measure(command: list[str], terminal: bool) -> Start:
    """Run `command`, watching its standard output. Raises RuntimeError when it fails."""
    reader, writer = pty.openpty() if terminal else os.pipe()
    begin = time.perf_counter()
    pid = os.posix_spawnp(
        command[0],
        command,
        {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0) if not terminal else (os.POSIX_SPAWN_DUP2, writer, 0),
            (os.POSIX_SPAWN_DUP2, writer, 1),
            (os.POSIX_SPAWN_CLOSE, reader),
        ],
    )
    os.close(writer)
    first, pieces = 0.0, []
    while piece := _read(reader):
        first = first or time.perf_counter() - begin
        pieces.append(piece)
    _, status, usage = os.wait4(pid, 0)
    end = time.perf_counter() - begin
    os.close(reader)
    if os.waitstatus_to_exitcode(status) != 0 or not pieces:
        raise RuntimeError(f"{shlex.join(command)} failed: status {os.waitstatus_to_exitcode(status)}")
    text = b"".join(pieces).decode("utf-8", "replace").strip()
    return Start(first, end, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, text)


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except OSError:  # how a terminal says that the other side is gone
        return b""


def spread(values: list[float]) -> str:
    """Median and range, in milliseconds."""
    low, middle, high = (1e3 * value for value in (min(values), statistics.median(values), max(values)))
    return f"{middle:.0f} ms (min {low:.0f}, max {high:.0f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--model-lib")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--command", default=f"{shlex.quote(sys.executable)} -m mlc_llm")
    parser.add_argument("--pty", action="store_true", help="a terminal instead of a pipe")
    arguments = parser.parse_args()
    command = [*shlex.split(arguments.command), "chat", arguments.model, "-p", PROMPT, "--temperature", "0"]
    command += ["--max-tokens", str(arguments.max_tokens)]
    command += ["--model-lib", arguments.model_lib] if arguments.model_lib else []
    first, *starts = [measure(command, arguments.pty) for _ in range(arguments.rounds + 1)]
    print(shlex.join(command))
    print(f"answer: {first.text[:100]!r}")
    print(f"first start: {1e3 * first.first:.0f} ms to the first text, peak {first.peak / 1e6:.0f} MB")
    print(f"start to first text: {spread([start.first for start in starts])}")
    print(f"start to end of {arguments.max_tokens} tokens: {spread([start.end for start in starts])}")
    print(f"processor time: {spread([start.processor for start in starts])}")
    print(f"peak memory: {statistics.median(start.peak for start in starts) / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
