"""The integer arithmetic of attention against numpy in float64; test_attention.py has that of float32, which caches of
float32 get."""

from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import pytest
import tvm
from compiled_kernels import AARCH64, aarch64_target, compile_kernel, needs_qemu
from kv_layout import PAGE, in_sheets, out_of_sheets, pages, stored
from numpy_attention import attention, rope, rotated

from mlc_llm.compiler.kernels.cache_kernels import CacheShape
from mlc_llm.compiler.kernels.cpu.attention import cache_kernels
from mlc_llm.compiler.kernels.cpu.attention_dot import attention_dot
from mlc_llm.compiler.target import CompileTarget, resolve_target
from mlc_llm.runtime.artifact import KVDtype
from mlc_llm.runtime.processor import cpu_features

Array = np.ndarray[Any, Any]
Bits = Literal[16, 8]
# processor -> what it needs of the machine that runs the test
_PROCESSORS = {
    "cascadelake": {"avx512_vnni", "avx512vl", "avx512bw", "avx512cd"},
    "skylake-avx512": {"avx512bw", "avx512vl", "avx512cd"},
    "alderlake": {"avx_vnni"},
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64": {"sse2"},
}
NATIVE = [name for name, needs in _PROCESSORS.items() if needs <= cpu_features()]
EMULATED = pytest.param("neoverse-v1", marks=needs_qemu)
WIDEST = NATIVE[0] if NATIVE else "native"
each_processor = pytest.mark.parametrize("processor", [*NATIVE, EMULATED])
# Relative error of the output for random numbers. Rounding keys and values to float16 gives 3e-4.
TOLERANCE = {"float32": 1e-6, "int16": 3e-4, "int8": 2e-2}


@dataclass(frozen=True)
class Geometry:
    heads: int
    kv_heads: int
    dim: int
    dtype: KVDtype
    window: int | None = None


SMALL = Geometry(9, 3, 64, "float16")


@cache
def target_of(processor: str) -> CompileTarget:
    return aarch64_target(processor) if processor in AARCH64 else resolve_target(f"cpu:{processor}")


@cache
def kernel(geometry: Geometry, bits: Bits, processor: str, name: str = "prefill_attention") -> Any:
    g, target = geometry, target_of(processor)
    shape = CacheShape(1, g.heads, g.kv_heads, g.dim, rope(g.dim), g.dtype, g.window)
    return compile_kernel(getattr(cache_kernels(shape, target, bits), name), target)


def tolerance(bits: Bits, processor: str) -> float:
    return TOLERANCE[attention_dot(target_of(processor), bits).format]


class Cache:
    """Sequences in shuffled pages, whose unused slots hold garbage."""

    def __init__(self, geometry: Geometry, lengths: list[int], seed: int = 0) -> None:
        self.geometry, self.lengths = geometry, [0] * len(lengths)
        self.random = np.random.default_rng(seed)
        counts = [-(-length // PAGE) for length in lengths]
        numbers = self.random.permutation(sum(counts) + 2).astype(np.int32)
        self.tables = np.split(numbers[: sum(counts)], np.cumsum(counts)[:-1])
        self.num_pages = len(numbers)
        layout = (self.num_pages, 1, 2, geometry.kv_heads, PAGE)
        garbage = 127 if geometry.dtype == "int8" else np.nan
        self.kv = tvm.runtime.tensor(stored(np.full((*layout, geometry.dim), garbage, geometry.dtype)))
        self.scales = tvm.runtime.tensor(in_sheets(np.full(layout, np.nan, np.float32)))

    def qkv(self, new: list[int]) -> Array:
        g = self.geometry
        shape = (sum(new), (g.heads + 2 * g.kv_heads) * g.dim)
        return self.random.standard_normal(shape).astype(np.float32)

    def forward(self, function: Any, qkv: Array, new: list[int], decode: bool = False) -> tuple[Array, Array]:
        """What the kernel gives for `new` tokens of each sequence, and what it should; `[n, heads, dim]` both."""
        g, past = self.geometry, self.lengths
        self.lengths = [p + n for p, n in zip(past, new, strict=True)]
        owners = np.repeat(np.arange(len(new)), new)
        positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, new, strict=True)]).astype(np.int32)
        slots = [self.tables[i][p // PAGE] * PAGE + p % PAGE for i, p in zip(owners, positions, strict=True)]
        starts = [0, *np.cumsum([len(table) for table in self.tables])]
        tables = [positions, slots, [0, *np.cumsum(new)], starts, np.concatenate(self.tables), self.lengths]
        integers = [tvm.runtime.tensor(np.array(table, np.int32)) for table in tables]
        rows = (len(qkv), 1) if decode else (len(qkv),)
        out = tvm.runtime.tensor(np.full((*rows, g.heads * g.dim), np.nan, np.float32))
        scales = [self.scales] if g.dtype == "int8" else []
        function(tvm.runtime.tensor(qkv.reshape(*rows, -1)), 0, *integers, self.kv, *scales, out)
        q = rotated(qkv[:, : g.heads * g.dim].reshape(len(qkv), g.heads, g.dim), positions)
        expected = [attention(q[owners == i], *self._stored(i), g.window) for i in range(len(new))]
        return out.numpy().reshape(len(qkv), g.heads, g.dim), np.concatenate(expected)

    def _stored(self, sequence: int) -> tuple[Array, Array]:
        """The keys and values of a sequence, `[length, kv_heads, dim]`."""
        g = self.geometry
        rows = pages(self.kv.numpy(), self.num_pages)[:, 0].astype(np.float64)
        if g.dtype == "int8":
            rows = rows * out_of_sheets(self.scales.numpy(), self.num_pages)[:, 0, ..., None]
        rows = rows[self.tables[sequence]].transpose(0, 3, 1, 2, 4).reshape(-1, 2, g.kv_heads, g.dim)
        return rows[: self.lengths[sequence], 0], rows[: self.lengths[sequence], 1]


def expect(found: Array, expected: Array, tolerance: float) -> None:
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected)


GEOMETRIES = [SMALL, Geometry(8, 1, 80, "int8")]
RARE = [Geometry(2, 2, 72, "float16"), Geometry(4, 2, 100, "float16"), Geometry(3, 1, 128, "int8")]
RARE += [Geometry(5, 5, 40, "float16"), Geometry(2, 1, 256, "float16"), Geometry(4, 2, 12, "int8")]


@each_processor
@pytest.mark.parametrize("bits", [16, 8])
@pytest.mark.parametrize("geometry", [*GEOMETRIES, *(pytest.param(g, marks=pytest.mark.slow) for g in RARE)], ids=str)
def test_sequences_grow_by_any_number_of_tokens(processor: str, bits: Bits, geometry: Geometry) -> None:
    function, steps = kernel(geometry, bits, processor), ([1, 70, 130], [16, 0, 1], [63, 3, 33], [1, 1, 1])
    cache = Cache(geometry, [sum(column) for column in zip(*steps, strict=True)])
    for new in steps:
        expect(*cache.forward(function, cache.qkv(new), new), tolerance(bits, processor))


@pytest.mark.parametrize("window", [24, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, 64, 70))])
def test_a_window_hides_what_is_too_far_back(window: int) -> None:
    geometry = Geometry(9, 3, 64, "float16", window)
    cache = Cache(geometry, [200, 90, 300])
    for new in ([130, 3, 200], [70, 87, 100]):
        expect(*cache.forward(kernel(geometry, 16, WIDEST), cache.qkv(new), new), tolerance(16, WIDEST))


@each_processor
@pytest.mark.parametrize("bits", [16, 8])
def test_the_largest_sums_fit(processor: str, bits: Bits) -> None:
    """Products of equal vectors are the largest: every query is every key, and all values are one number."""
    geometry = Geometry(3, 1, 64, "float16")
    cache, new = Cache(geometry, [200]), [200]
    qkv = np.full((200, 5 * 64), 1e-3, np.float32)
    qkv[:, : 3 * 64] = 1e3  # whatever the size of queries, keys and values
    qkv[:, -64:] = -7
    found, expected = cache.forward(kernel(geometry, bits, processor), qkv, new)
    np.testing.assert_allclose(found, expected, rtol=2e-4 if bits == 16 else 1e-2)


@pytest.mark.parametrize("bits", [16, 8])
def test_one_key_takes_all_the_weight(bits: Bits) -> None:
    cache, new = Cache(SMALL, [150]), [150]
    qkv = cache.qkv(new)
    qkv[:, : SMALL.heads * SMALL.dim] *= 1e4
    found, expected = cache.forward(kernel(SMALL, bits, WIDEST), qkv, new)
    # where two keys are nearly equal the rounding of their scores decides
    wrong = np.abs(found - expected).max(-1) > {16: 2e-3, 8: 3e-2}[bits] * np.abs(expected).max()
    assert wrong.mean() < {16: 1e-2, 8: 0.1}[bits]


@each_processor
@pytest.mark.parametrize("geometry", [Geometry(9, 3, 64, "int8"), Geometry(8, 1, 80, "int8", window=100)], ids=str)
def test_new_tokens_are_multiplied_with_bytes(processor: str, geometry: Geometry) -> None:
    prompts, steps = [1, 62, 130, 700], 4
    cache = Cache(geometry, [prompt + steps for prompt in prompts])
    cache.forward(kernel(geometry, 16, processor), cache.qkv(prompts), prompts)
    decode, new = kernel(geometry, 16, processor, "decode_attention"), [1] * len(prompts)
    for _ in range(steps):
        found, expected = cache.forward(decode, cache.qkv(new), new, decode=True)
        expect(found, expected, 1e-4)


def test_zeros() -> None:
    cache, new = Cache(SMALL, [100]), [100]
    found, _ = cache.forward(kernel(SMALL, 16, WIDEST), np.zeros_like(cache.qkv(new)), new)
    np.testing.assert_array_equal(found, 0)
