"""Where the time of one pass goes, kernel by kernel, beside what memory and arithmetic would allow.

    python benchmarks/profile.py MODEL [--model-lib FILE] [--prefill 512] [--depth 100 4096] [--batch-size 1]

MODEL is a compiled model folder. TVM's virtual machine calls back before and after each of its calls. The callback is
a function in C that takes the time (call_clock.c): one in Python would let the kernels' worker threads fall asleep, and
so slow down what comes after it. Passes with and without the clock alternate, and their medians are both given. "In its
loop" is the part of a kernel that several threads share; the rest is one thread's, mostly norms and the rounding of
activations.

Bytes are those of weights, activations, keys and values, once each; percentages are of the rate at which this machine
reads memory, measured in every round, as is the time in which a cache line gets from one core to another: a virtual
machine may be moved while this runs. GOP/s counts two operations for each weight and row, or for each number of the
keys and values that are attended; the most that the processor does in registers is measured beside it.
"""

import argparse
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import tvm_ffi
from call_clock import Clock, Times

from mlc_llm.runtime.artifact import KVCacheMetadata, library_places, load_chat_config
from mlc_llm.runtime.bandwidth import ReadProbe
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.processor import num_threads
from mlc_llm.runtime.tvm_runtime import global_function

_HOOK = "mlc_llm.benchmarks.profile"
_MATRIX = re.compile(r"matmul_(\d+)x(\d+)")


@dataclass(frozen=True)
class Work:
    """A pass that is profiled. `undo` makes the next one the same, outside of the time."""

    title: str
    step: Callable[[], object]
    undo: Callable[[], object]
    rounds: int
    rows: int  # of activations that pass each matrix
    attended: int  # keys that all rows together attend, each with all its heads
    cached: int  # tokens whose keys and values are read


@dataclass
class Kernel:
    """A name of the virtual machine's calls."""

    calls: list[int] = field(default_factory=list)  # which of a pass's calls
    nbytes: int = 0  # of a call: its tensors, without the pages of the cache


class Profiler:
    """Times every call of a model's virtual machine."""

    def __init__(self, model: Model) -> None:
        self.clock = Clock(model)
        self.probe = ReadProbe(num_threads())
        self._instrument = model._library._machine["set_instrument"]
        self._kernels: dict[str, Kernel] = {}
        self._num_calls = 0
        tvm_ffi.register_global_func(_HOOK, self._look, override=True)

    def _look(self, _function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
        if before:
            kernel = self._kernels[name]
            kernel.calls.append(self._num_calls)
            self._num_calls += 1
            tensors = [a for a in arguments if isinstance(a, tvm_ffi.Tensor) and len(a.shape) < 5]
            kernel.nbytes = 0 if name == "embedding" else sum(map(_nbytes, tensors))

    def run(self, work: Work) -> "Profile":
        """Profile the rounds of a work."""
        self._kernels, self._num_calls = defaultdict(Kernel), 0
        self._timed(work, global_function(_HOOK))
        self.clock.take()
        profile = Profile(self._kernels)
        for _ in range(work.rounds):
            profile.rates.append(self.probe.measure())
            profile.exchanges.append(self.clock.exchange())
            self._timed(work, None)  # brings back what the probe has pushed out of the caches
            profile.undisturbed.append(self._timed(work, None))
            with self.clock.loops():
                profile.timed.append(self._timed(work, self.clock.function))
            profile.times.append(self.clock.take())
        return profile

    def _timed(self, work: Work, hook: Any) -> float:
        self._instrument(hook)
        try:
            begin = perf_counter()
            work.step()
            return perf_counter() - begin
        finally:
            self._instrument(None)
            work.undo()


@dataclass
class Profile:
    """What was measured of a work, a value for each round."""

    kernels: dict[str, Kernel]
    undisturbed: list[float] = field(default_factory=list)  # seconds of a pass without the clock
    timed: list[float] = field(default_factory=list)  # and with it
    rates: list[float] = field(default_factory=list)  # bytes per second that the memory gives
    exchanges: list[float] = field(default_factory=list)  # seconds in which a cache line gets from core to core
    times: list[Times] = field(default_factory=list)

    def seconds(self, kernel: Kernel) -> float:
        """Of all calls of a kernel in a pass."""
        return median(sum(t.calls[2 * i + 1] - t.calls[2 * i] for i in kernel.calls) for t in self.times) / 1e9

    def in_loops(self, kernel: Kernel) -> float:
        """Seconds of that in the parallel loops of the kernel."""
        return median(sum(t.loops[2 * i + 1] for i in kernel.calls) for t in self.times) / 1e9

    def between(self) -> float:
        """Seconds from the end of each call to the beginning of the next one, in a pass."""
        gaps = (sum(t.calls[i + 1] - t.calls[i] for i in range(1, len(t.calls) - 1, 2)) for t in self.times)
        return median(gaps) / 1e9


def _nbytes(tensor: Any) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count * tensor.dtype.itemsize


def report(profile: Profile, work: Work, cache: KVCacheMetadata) -> None:
    """Print a table."""
    rate, whole = median(profile.rates), median(profile.undisturbed)
    print(f"\n{work.title}: {whole * 1e6:.0f} us ({_spread(profile.undisturbed, 1e6, 0)}), "
          f"with the clock {median(profile.timed) * 1e6:.0f}; "
          f"memory reads {rate / 1e9:.1f} GB/s ({_spread(profile.rates, 1e-9, 1)}), "
          f"a cache line takes {median(profile.exchanges) * 1e9:.0f} ns from core to core "
          f"({_spread(profile.exchanges, 1e9, 0)})")  # fmt: skip
    print(
        "\n| us | share | calls | us each | in its loop | MB each | GB/s | of memory | GOP/s | call |\n|" + "---|" * 10
    )
    rest, rest_calls, nbytes, in_loops = 0.0, 0, 0, 0.0
    for name, kernel in sorted(profile.kernels.items(), key=lambda item: -profile.seconds(item[1])):
        seconds, calls = profile.seconds(kernel), len(kernel.calls)
        if name.startswith("vm.") or seconds < 2e-6:
            rest, rest_calls = rest + seconds, rest_calls + calls
            continue
        size, operations = _counts(name, kernel, work, cache)
        nbytes, in_loops = nbytes + size * calls, in_loops + profile.in_loops(kernel)
        each, loop = seconds / calls, profile.in_loops(kernel) / calls
        speed = f"{size / 1e6:.3f} | {size / each / 1e9:.1f} | {size / each / rate:.0%}" if size else "| |"
        rates = f"{operations / each / 1e9:.0f}" if operations else ""
        print(f"| {seconds * 1e6:.0f} | {seconds / whole:.1%} | {calls} | {each * 1e6:.1f} | {loop * 1e6:.1f} "
              f"| {speed} | {rates} | {name} |")  # fmt: skip
    between, kernels = profile.between(), sum(map(profile.seconds, profile.kernels.values()))
    outside = median(profile.timed) - between - kernels
    for seconds, count, what in (
        (rest, str(rest_calls), "the virtual machine's own calls"),
        (between, "", "between the calls"),
        (outside, "", "before the first call and after the last one"),
    ):
        print(f"| {seconds * 1e6:.0f} | {seconds / whole:.1%} | {count} | | | | | | | {what} |")
    print(f"\nRead in a pass: {nbytes / 1e6:.1f} MB, for which memory takes {nbytes / rate * 1e6:.0f} us. "
          f"In the loops: {in_loops * 1e6:.0f} us, {nbytes / in_loops / 1e9:.1f} GB/s.")  # fmt: skip


def _counts(name: str, kernel: Kernel, work: Work, cache: KVCacheMetadata) -> tuple[int, int]:
    """Bytes and operations of a call."""
    matrix = _MATRIX.search(name)
    if matrix:
        rows = 1 if name.rstrip("0123456789").endswith("gemv") else work.rows
        return kernel.nbytes, 2 * int(matrix[1]) * int(matrix[2]) * rows
    if "attention" not in name:
        return kernel.nbytes, 0
    itemsize = {"float16": 2, "float32": 4, "int8": 1}[cache.dtype]
    token = 2 * cache.num_key_value_heads * cache.head_dim * itemsize
    return kernel.nbytes + work.cached * token, 4 * cache.num_attention_heads * cache.head_dim * work.attended


def _spread(values: list[float], factor: float, digits: int) -> str:
    return f"{min(values) * factor:.{digits}f}-{max(values) * factor:.{digits}f}"


def works(model: Model, arguments: argparse.Namespace) -> Iterator[Work]:
    """A prefill, then decode at each depth with each batch size."""

    def tokens(count: int) -> list[int]:
        return [7 + i % 1000 for i in range(count)]

    def prefill(sequences: list[int], count: int) -> None:
        sequences.append(model.add_sequence())
        model.prefill(sequences[-1], tokens(count))

    def forget(sequences: list[int]) -> None:
        while sequences:
            model.remove_sequence(sequences.pop())

    sequences: list[int] = []
    size = arguments.prefill
    yield Work(
        f"prefill of {size} tokens", lambda: prefill(sequences, size), lambda: forget(sequences),
        arguments.rounds // 3 + 1, size, size * (size + 1) // 2, size,
    )  # fmt: skip
    for depth in arguments.depth:
        for size in arguments.batch_size:
            for _ in range(size):
                prefill(sequences, depth)
            yield Work(
                f"decode of {size} at depth {depth}", lambda: model.decode(sequences, [11] * len(sequences)),
                lambda: [model.pop(sequence, 1) for sequence in sequences],
                arguments.rounds, size, size * (depth + 1), size * (depth + 1),
            )  # fmt: skip
            forget(sequences)


def main() -> None:
    """Profile a prefill and decode steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, nargs="*", default=[100, 4096], help="tokens in the cache before a step")
    parser.add_argument("--batch-size", type=int, nargs="*", default=[1])
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    sys.setswitchinterval(1)
    places = library_places(arguments.model, load_chat_config(arguments.model), "cpu")
    library = arguments.model_lib or next(place for place in places if place.is_file())
    batch = max([1, *arguments.batch_size])
    room = max(arguments.prefill, max([0, *arguments.depth]) * batch) + 32 * batch
    model = Model.load(arguments.model, library, max_num_sequence=batch, max_total_sequence_length=room)
    profiler = Profiler(model)
    threads = num_threads()
    peaks = {name: profiler.clock.peak(name, threads) for name in ("float32", "int8")}
    text = ", ".join(f"{name} {peak / 1e9:.0f} GOP/s" for name, peak in peaks.items() if peak)
    print(f"{library.name}, {threads} threads; in registers they multiply and add {text}")
    for work in works(model, arguments):
        report(profiler.run(work), work, model.metadata.kv_cache)


if __name__ == "__main__":
    main()
