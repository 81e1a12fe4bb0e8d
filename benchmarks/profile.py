"""Where the time of one pass goes, kernel by kernel, beside what memory and arithmetic would allow.

    python benchmarks/profile.py MODEL [--model-lib FILE] [--prefill 512] [--depth 64] [--batch-size 1 8]

MODEL is a compiled model folder. TVM's virtual machine calls back before and after each of its calls; the callbacks
cost time themselves, so their sum is above an undisturbed pass, whose time is given as well. Bytes are those of
weights, activations, keys and values, once each; percentages are of the rate at which this machine reads memory,
measured in the same run. GOP/s counts two operations for each weight and row. Medians over the passes.
"""

import argparse
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import tvm_ffi

from mlc_llm.runtime.artifact import library_places, load_chat_config
from mlc_llm.runtime.bandwidth import ReadProbe
from mlc_llm.runtime.devices import num_threads
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.tvm_runtime import global_function

_HOOK = "mlc_llm.benchmarks.profile"
_MATRIX = re.compile(r"matmul_(\d+)x(\d+)")


@dataclass
class Kernel:
    """What one name of the virtual machine's calls took."""

    seconds: list[float] = field(default_factory=list)
    nbytes: int = 0  # of a call: its tensors, without the pages of the cache


class Profiler:
    """Times every call of a model's virtual machine."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.kernels: dict[str, Kernel] = defaultdict(Kernel)
        self._begin = 0.0
        tvm_ffi.register_global_func(_HOOK, self._hook, override=True)

    def _hook(self, _function: Any, name: str, before: bool, _result: Any, *arguments: Any) -> None:
        if before:
            kernel = self.kernels[name]
            if not kernel.nbytes:
                tensors = [a for a in arguments if isinstance(a, tvm_ffi.Tensor) and len(a.shape) < 5]
                kernel.nbytes = 0 if name == "embedding" else sum(map(_nbytes, tensors))
            self._begin = perf_counter()
        else:
            self.kernels[name].seconds.append(perf_counter() - self._begin)

    def run(self, step: Callable[[], object], passes: int) -> float:
        """Profile some passes of `step`. Returns the seconds of a pass that nobody looked at."""
        undisturbed = []
        for _ in range(passes):
            begin = perf_counter()
            step()
            undisturbed.append(perf_counter() - begin)
        self.kernels.clear()
        instrument = self.model._library._machine["set_instrument"]
        instrument(global_function(_HOOK))
        try:
            for _ in range(passes):
                step()
        finally:
            instrument(None)
        return median(undisturbed)


def _nbytes(tensor: Any) -> int:
    count = 1
    for extent in tensor.shape:
        count *= extent
    return count * tensor.dtype.itemsize


def report(profiler: Profiler, title: str, rows: int, cached: int, seconds: float, passes: int, rate: float) -> None:
    """Print a table. `rows` of activations pass each matrix, `cached` bytes of keys and values each attention."""
    print(f"\n{title}: {seconds * 1e6:.0f} us undisturbed; memory reads {rate / 1e9:.1f} GB/s\n")
    print("| us | calls | us each | GB/s | of memory | GOP/s | call |\n|---|---|---|---|---|---|---|")
    rest = total = 0.0
    entries = [(len(k.seconds) / passes * median(k.seconds), name, k) for name, k in profiler.kernels.items()]
    for spent, name, kernel in sorted(entries, key=lambda entry: -entry[0]):
        total += spent
        if name.startswith("vm.") or spent < 2e-6:
            rest += spent
            continue
        each = median(kernel.seconds)
        nbytes = kernel.nbytes + (cached if "attention" in name else 0)
        matrix = _MATRIX.search(name)
        count = 1 if name.rstrip("0123456789").endswith("gemv") else rows
        operations = f"{2 * int(matrix[1]) * int(matrix[2]) * count / each / 1e9:.0f}" if matrix else ""
        speed = f"{nbytes / each / 1e9:.1f} | {nbytes / each / rate:.0%}" if nbytes else "|"
        calls = len(kernel.seconds) // passes
        print(f"| {spent * 1e6:.0f} | {calls} | {each * 1e6:.1f} | {speed} | {operations} | {name} |")
    print(f"| {rest * 1e6:.0f} | | | | | | the virtual machine, timed from outside |")
    print(f"| {total * 1e6:.0f} | | | | | | all of these |")


def main() -> None:
    """Profile a prefill and decode steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--prefill", type=int, default=512)
    parser.add_argument("--depth", type=int, default=64, help="tokens in the cache before a decode step")
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    places = library_places(arguments.model, load_chat_config(arguments.model), "cpu")
    library = arguments.model_lib or next(place for place in places if place.is_file())
    batch = max(arguments.batch_size)
    room = max(arguments.prefill, (arguments.depth + 64) * batch) + 16 * batch
    model = Model.load(arguments.model, library, max_num_sequence=batch, max_total_sequence_length=room)
    probe = ReadProbe(num_threads())
    profiler = Profiler(model)
    cache = model.metadata.kv_cache
    itemsize = {"float16": 2, "float32": 4, "int8": 1}[cache.dtype]
    token_bytes = 2 * cache.num_key_value_heads * cache.head_dim * itemsize

    def measure(title: str, rows: int, cached: int, passes: int, step: Callable[[], object]) -> None:
        before = probe.measure()
        seconds = profiler.run(step, passes)
        report(profiler, title, rows, cached, seconds, passes, max(before, probe.measure()))

    def prefill(tokens: Sequence[int]) -> None:
        sequence = model.add_sequence()
        model.prefill(sequence, tokens)
        model.remove_sequence(sequence)

    prompt = [7 + i % 1000 for i in range(arguments.prefill)]
    measure(f"prefill of {len(prompt)} tokens", len(prompt), len(prompt) * token_bytes, 5, lambda: prefill(prompt))
    for size in arguments.batch_size:
        sequences = [model.add_sequence() for _ in range(size)]
        for sequence in sequences:
            model.prefill(sequence, [7 + i % 1000 for i in range(arguments.depth)])
        title = f"decode of {size} at depth {arguments.depth}"
        cached = size * arguments.depth * token_bytes
        measure(title, size, cached, 20, lambda s=sequences: model.decode(s, [11] * len(s)))  # type: ignore[misc]
        for sequence in sequences:
            model.remove_sequence(sequence)


if __name__ == "__main__":
    main()
