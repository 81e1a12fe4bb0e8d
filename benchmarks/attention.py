"""Time of one layer's attention, with the runtime's cache and threads; the geometry is SmolLM2-135M's unless told.

    python -m mlc_llm.benchmarks.attention [--dtype float16|float32|int8] [--device cpu|cpu:x86-64-v3] [--threads N]
        [--heads 9 --kv-heads 3 --head-dim 64]

"from memory" goes through so many layers that no cache holds their keys and values, as a model does; "from cache"
asks one layer again and again. GB/s counts the bytes of keys and values; "% of memory" is that beside the rate at which
plain reads of huge pages go at the same time. GFLOP/s counts two operations for each product that causal attention
needs. Times are medians, the best in brackets.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

DEPTHS = (16, 100, 256, 1024, 4096, 16384)
BATCHES = ((8, 100), (8, 1024), (32, 512))  # sequences, depth
PROMPTS = ((128, 0), (512, 0), (512, 3584), (4096, 0))  # new tokens, past
BEYOND_CACHE = 90 << 20  # bytes


def microseconds(calls: list[Callable[[], Any]], seconds: float) -> list[float]:
    """Times of the calls in turn, repeated for about `seconds`."""
    for call in calls:
        call()
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for call in calls:
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e6)
    return times


def line(name: str, times: list[float], nbytes: int = 0, rate: float = 0, operations: int = 0) -> None:
    median, best = statistics.median(times), min(times)
    speed = f"{nbytes / median / 1e3:7.1f} GB/s ({nbytes / best / 1e3:.1f})" if nbytes else ""
    share = f" {100 * nbytes / median * 1e6 / rate:4.0f} % of memory" if rate else ""
    speed += f"{operations / median / 1e3:7.0f} GFLOP/s ({operations / best / 1e3:.0f})" if operations else ""
    print(f"{name:44} {median:9.1f} us ({best:.1f}) {speed}{share}", flush=True)


def arguments_of_script() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float16", "float32", "int8"), default="float16")
    parser.add_argument("--activation-bits", type=int, choices=(8, 16, 32), default=16, help="of prefill attention")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each figure")
    parser.add_argument("--only", default="", help="figures whose name has this in it")
    return parser.parse_args()


def compiled(arguments: argparse.Namespace, layers: int) -> Any:
    """The two kernels as a library with the threads of model libraries, loaded by the runtime."""
    import tvm

    from mlc_llm.compiler.kernels.cache_kernels import CacheShape
    from mlc_llm.compiler.kernels.cpu import attention
    from mlc_llm.compiler.model.rope import parse_rope
    from mlc_llm.compiler.target import resolve_target
    from mlc_llm.runtime import ffi
    from mlc_llm.runtime.tvm_runtime import load_runtime

    target = resolve_target(arguments.device)
    rope = parse_rope({"rope_theta": 1e5, "head_dim": arguments.head_dim, "max_position_embeddings": 1 << 17})
    shape = CacheShape(layers, arguments.heads, arguments.kv_heads, arguments.head_dim, rope, arguments.dtype)
    kernels = attention.cache_kernels(shape, target, arguments.activation_bits)
    names = ("decode_attention", "prefill_attention")
    functions = {name: getattr(kernels, name).with_attr("global_symbol", name) for name in names}
    built = tvm.compile(tvm.IRModule(functions), target=target.tvm_target())
    threads = Path(attention.__file__).with_name("threads.c")
    load_runtime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.so"
        built.export_library(str(path), addons=[str(threads)], options=["-O2", "-pthread"])
        library = ffi.load_module(str(path))
    library["set_num_threads"](arguments.threads)
    print(
        f"{target.attributes['mcpu']}, {arguments.threads} threads, {arguments.dtype}, {arguments.activation_bits} bits"
    )
    return library


def main() -> None:
    arguments = arguments_of_script()
    import numpy as np

    from mlc_llm.compiler.kernels.kv_cache import PAGE_SIZE, SHEET_PAGES
    from mlc_llm.runtime.artifact import KVCacheMetadata
    from mlc_llm.runtime.bandwidth import ReadProbe
    from mlc_llm.runtime.kv_cache import KVCache
    from mlc_llm.runtime.tvm_runtime import Arena, tensor

    layers = 30
    library = compiled(arguments, layers)
    layout = KVCacheMetadata(
        num_hidden_layers=layers, num_attention_heads=arguments.heads, num_key_value_heads=arguments.kv_heads,
        head_dim=arguments.head_dim, dtype=arguments.dtype, page_size=PAGE_SIZE, sheet_pages=SHEET_PAGES,
    )  # fmt: skip
    layer_bytes = layout.bytes_per_token // layers
    probe = ReadProbe(arguments.threads)
    random = np.random.default_rng(0)

    def floats(*shape: int) -> Any:
        array = Arena(4 * int(np.prod(shape)) + 64).array(shape, np.dtype(np.float32))
        array[:] = random.standard_normal(shape, np.float32)
        return tensor(array)

    def measure(name: str, past: int, new: int, sequences: int) -> None:
        """One figure from memory and one from cache for decoding, one for prefill."""
        if arguments.only not in name:
            return
        tokens = (past + new) * sequences
        cache = KVCache(layout, max_num_sequence=sequences, max_total_sequence_length=tokens, max_new_tokens=tokens)
        ids = [cache.add() for _ in range(sequences)]
        for stored in cache._stored:  # what nobody has written is one page of zeros, in the cache
            stored.numpy()[:] = 1
        if past:
            cache.begin_forward(ids, [past] * sequences)
        state = list(cache.begin_forward(ids, [new] * sequences))
        fused = (arguments.heads + 2 * arguments.kv_heads) * arguments.head_dim
        rows = (sequences, 1) if name.startswith("decode") else (new * sequences,)
        qkv, out = floats(*rows, fused), floats(*rows, arguments.heads * arguments.head_dim)
        function = library["decode_attention" if name.startswith("decode") else "prefill_attention"]
        calls = [lambda layer=layer: function(qkv, layer, *state, out) for layer in range(layers)]
        if not name.startswith("decode"):
            pairs = sequences * (new * past + new * (new + 1) // 2)  # of a query and a key that it sees
            operations = 4 * pairs * arguments.heads * arguments.head_dim
            line(name, microseconds(calls[:1], arguments.seconds), operations=operations)
            return
        nbytes = layer_bytes * tokens
        used = min(layers, -(-BEYOND_CACHE // nbytes))
        if used * nbytes >= BEYOND_CACHE:
            before = probe.measure()
            times = microseconds(calls[:used], arguments.seconds)
            line(f"{name}, from memory", times, nbytes, (before + probe.measure()) / 2)
        line(f"{name}, from cache", microseconds(calls[:1], arguments.seconds), nbytes)

    empty = KVCache(layout, max_num_sequence=1, max_total_sequence_length=16, max_new_tokens=16)
    state = list(empty.begin_forward([], []))
    qkv, out = (floats(1, 1, 64) for _ in range(2))
    row = (0, 1, (arguments.heads + 2 * arguments.kv_heads) * arguments.head_dim)
    nothing = [qkv.view(row), 0, *state, out.view((0, 1, arguments.heads * arguments.head_dim))]
    line("a call without sequences", microseconds([lambda: library["decode_attention"](*nothing)], 0.2))
    for depth in DEPTHS:
        measure(f"decode at depth {depth}", depth - 1, 1, 1)
    for sequences, depth in BATCHES:
        measure(f"decode of {sequences} at depth {depth}", depth - 1, 1, sequences)
    for new, past in PROMPTS:
        measure(f"prefill of {new} tokens after {past}", past, new, 1)


if __name__ == "__main__":
    main()
