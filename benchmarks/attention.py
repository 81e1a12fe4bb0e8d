"""Time of one layer's attention with the geometry of SmolLM2-135M: 9 query heads, 3 key heads, 64 dimensions.

    python benchmarks/attention.py [--dtype float16|float32] [--device cpu|cpu:x86-64-v3] [--threads N]

"from memory" cycles through caches that together exceed the last-level cache, as the layers of a model do; "from cache"
reads one again and again. GB/s counts the bytes of keys and values. Times are medians; the best is in brackets.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

HEADS, KV_HEADS, DIM, PAGE_SIZE = 9, 3, 64, 16
DEPTHS = (128, 1024, 4096)
PROMPT = 512
BEYOND_CACHE = 256 << 20  # bytes


def microseconds(calls: list[Callable[[], Any]], seconds: float = 1.0) -> list[float]:
    """Times of the calls in turn, repeated for about `seconds`."""
    for call in calls[:2]:
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call in calls:
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
    return times


def line(name: str, times: list[float], nbytes: int | None = None) -> None:
    median, best = statistics.median(times), min(times)
    speed = f"{nbytes / median / 1e3:7.1f} GB/s ({nbytes / best / 1e3:.1f})" if nbytes else ""
    print(f"{name:44} {median:9.1f} us ({best:.1f}) {speed}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)  # read once, when tvm loads

    import numpy as np
    import tvm

    from mlc_llm.compiler.kernels.cpu.decode import decode_paged
    from mlc_llm.compiler.kernels.cpu.flash import HeadShape
    from mlc_llm.compiler.kernels.cpu.prefill import prefill_ragged
    from mlc_llm.compiler.kernels.cpu.vector import VectorUnit
    from mlc_llm.compiler.target import resolve_target

    target = resolve_target(arguments.device)
    unit = VectorUnit(target.lanes, target.vector_registers, target.converts_float16)
    shape = HeadShape(HEADS, KV_HEADS, DIM, arguments.dtype, unit)
    kernels = {"decode": decode_paged(shape), "prefill": prefill_ragged(shape, None)}
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    library = tvm.compile(module, target=target.tvm_target())
    random, tensor = np.random.default_rng(0), tvm.runtime.tensor

    def normal(*size: int) -> Any:
        return tensor(random.standard_normal(size, np.float32).astype(arguments.dtype))

    def integers(*values: int) -> Any:
        return tensor(np.array(values, np.int32))

    print(f"{target.attributes['mcpu']}, {arguments.threads} threads, {arguments.dtype}")
    decode, lse = library["decode"], tensor(np.zeros((1, HEADS), np.float32))
    q, output = normal(1, HEADS, DIM), normal(1, HEADS, DIM)
    for depth in DEPTHS:
        pages = -(-depth // PAGE_SIZE)
        first = normal(pages, 2, KV_HEADS, PAGE_SIZE, DIM)
        nbytes = first.numpy().nbytes
        caches = [first, *(tensor(first.numpy()) for _ in range(min(BEYOND_CACHE // nbytes, 1000)))]
        rest = (integers(0, pages), integers(*range(pages)), integers((depth - 1) % PAGE_SIZE + 1))
        rest += (integers(0), integers(depth), output, lse, 0, 1.0, 1.0, DIM**-0.5)
        calls = [lambda cache=cache, rest=rest: decode(q, cache, *rest) for cache in caches]
        line(f"decode at depth {depth}, from memory", microseconds(calls), nbytes)
        line(f"decode at depth {depth}, from cache", microseconds(calls[:1]), nbytes)
    prefill = library["prefill"]
    q, k, v, output = (normal(PROMPT, heads, DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    lse, rows, offset = tensor(np.zeros((PROMPT, HEADS), np.float32)), integers(0, PROMPT), integers(0)
    positions = integers(*range(PROMPT))
    scalars = (1, 0, 1.0, 1.0, DIM**-0.5)
    calls = [lambda: prefill(q, rows, k, v, rows, positions, offset, output, lse, *scalars)]
    line(f"prefill of {PROMPT} tokens", microseconds(calls))


if __name__ == "__main__":
    main()
