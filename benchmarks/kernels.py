"""Multiplications by packed weights, for each instruction set that the kernels know and this machine runs.

    python benchmarks/kernels.py [--devices cpu:x86-64-v3,cpu] [--threads N] [--schemes q4,q8] [--rounds N]

One row of x streams the weights from memory ("GB/s" of weights: copies beyond the caches are used in turn) or from the
cache. 8 rows and 512 rows count operations (2 for each weight and row). The end names the instructions, for one row and
for many: float32, with activation_bits=32, is what the others have to beat. "vnni-256" stands for AVX-VNNI
(cpu:alderlake) on processors that have those instructions in AVX-512's encoding. Medians; the best is in brackets.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlc_llm.compiler.target import CompileTarget

DEVICES = ("cpu", "cpu:cascadelake", "cpu:skylake-avx512", "vnni-256", "cpu:x86-64-v3", "cpu:x86-64-v2", "cpu:x86-64")
NEEDS = {
    "cpu:cascadelake": "avx512_vnni",
    "cpu:skylake-avx512": "avx512bw",
    "vnni-256": "avx512_vnni",
    "cpu:x86-64-v3": "avx2",
    "cpu:x86-64-v2": "ssse3",
    "cpu:x86-64": "sse2",
}
SHAPES = ((576, 1536), (3072, 576))  # SmolLM2-135M's down projection, and gate and up
ROWS = (8, 512)
BITS = {"q4": (4, 7), "q8": (8, 128)}  # bits of a code, zero point
GROUP = 32
BEYOND_CACHE = 128 << 20  # bytes


def resolve(device: str) -> "CompileTarget":
    from mlc_llm.compiler.target import resolve_target

    if device != "vnni-256":
        return resolve_target(device)
    target = resolve_target("cpu:x86-64-v3")
    return replace(
        target, attributes=target.attributes | {"mattr": ["+avx512vl", "+avx512vnni"]}, cpu_features=("avx_vnni",)
    )


def seconds(calls: list[Callable[[], Any]], rounds: int) -> list[float]:
    """The mean time of a call in each round of all of them."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        for call in calls:
            call()
        times.append((time.perf_counter() - start) / len(calls))
    return times[1:]


def rate(amount: float, times: list[float]) -> str:
    return f"{amount / statistics.median(times) / 1e9:5.0f} ({amount / min(times) / 1e9:3.0f})"


def measure(device: str, scheme: str, n: int, k: int, activation_bits: int, rounds: int) -> str:
    """One line: a matrix [n, k] of a scheme, multiplied with activations of 32, 16 or 8 bits."""
    import numpy as np
    import tvm

    from mlc_llm.compiler.kernels.cpu.dot import integer_dot
    from mlc_llm.compiler.kernels.cpu.table import CpuKernels
    from mlc_llm.compiler.kernels.operations import Matmul
    from mlc_llm.compiler.kernels.storage import GroupStorage, packed_dtype
    from mlc_llm.runtime.tvm_runtime import Arena

    target = resolve(device)
    bits, zero_point = BITS[scheme]
    storage = GroupStorage(bits, GROUP, packed_dtype("float16", converts_float16=target.converts_float16), zero_point)
    table, operation = CpuKernels(target, activation_bits), Matmul(n, k, storage)
    kernels = {name: table.function(operation, single=name == "gemv") for name in ("gemv", "gemm")}
    module = tvm.IRModule({name: kernel.with_attr("global_symbol", name) for name, kernel in kernels.items()})
    library = tvm.compile(module, target=target.tvm_target())
    parts = storage.parts(n, k).values()
    nbytes = sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in parts)
    arena = Arena(BEYOND_CACHE + (8 << 20))
    random = np.random.default_rng(0)

    def tensor(array: Any) -> Any:
        copy = arena.array(array.shape, array.dtype)
        copy[...] = array
        return tvm.runtime.from_dlpack(copy)

    def weights() -> list[Any]:
        return [
            tensor(random.integers(0, 2**31, shape, np.int32) if dtype == "int32" else np.full(shape, 0.01, dtype))
            for shape, dtype in parts
        ]

    copies = [weights() for _ in range(BEYOND_CACHE // nbytes)]

    def calls(rows: int, copies: list[list[Any]]) -> list[Callable[[], Any]]:
        x, y = (tvm.runtime.tensor(np.ones((1, rows, width), np.float32)) for width in (k, n))
        kernel = library["gemv" if rows == 1 else "gemm"]
        return [lambda copy=copy: kernel(x, *copy, y) for copy in copies]

    memory, cache = seconds(calls(1, copies), rounds), seconds(calls(1, copies[:1]) * 50, rounds)
    many = [(rows, seconds(calls(rows, copies[:1]), 3 * rounds)) for rows in ROWS]
    dots = [integer_dot(target, bits, activation_bits, single=single) for single in (True, False)]
    names = [f"{dot.name} x {dot.lanes}" if dot and activation_bits <= 16 else "float32" for dot in dots]
    return " | ".join(
        [
            f"{device:18} {scheme} {n:4}x{k:<4} {activation_bits:2} bits",
            f"{rate(nbytes, memory)} GB/s, cache {rate(nbytes, cache)}",
            *(f"{rows} rows {rate(2 * n * k * rows, times)} GOP/s" for rows, times in many),
            " and ".join(dict.fromkeys(names)),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", default=",".join(DEVICES[1:]))
    parser.add_argument("--schemes", default="q4,q8")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    os.environ["TVM_NUM_THREADS"] = str(arguments.threads)  # read once, when tvm loads

    from mlc_llm.runtime.processor import cpu_features, processor_name

    print(f"{processor_name()}, {arguments.threads} threads")
    for device in arguments.devices.split(","):
        if device in NEEDS and NEEDS[device] not in cpu_features():
            print(f"{device:18} does not run on this machine")
            continue
        for scheme in arguments.schemes.split(","):
            for n, k in SHAPES:
                for activation_bits in (16, 8, 32):
                    print(measure(device, scheme, n, k, activation_bits, arguments.rounds), flush=True)


if __name__ == "__main__":
    main()
