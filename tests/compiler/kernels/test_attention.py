"""Attention kernels against numpy in float64, over pages that lie anywhere: head sizes, groups, windows, types."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import tvm
from kv_layout import PAGE, in_sheets, out_of_sheets, pages, stored
from numpy_attention import attention, rope, rotated

from mlc_llm.compiler.kernels.cache_kernels import CacheShape
from mlc_llm.compiler.kernels.cpu.attention import cache_kernels
from mlc_llm.compiler.kernels.cpu.vector import VectorUnit
from mlc_llm.compiler.target.target import CompileTarget
from mlc_llm.runtime.artifact import KVDtype

Array = np.ndarray[Any, Any]
LAYERS, LAYER = 2, 1
GARBAGE = {"float32": np.nan, "float16": np.nan, "int8": 127}


@dataclass(frozen=True)
class Geometry:
    """What a kernel is built for."""

    heads: int
    kv_heads: int
    dim: int
    dtype: KVDtype
    window: int | None = None


def build(kernel: str, geometry: Geometry, unit: VectorUnit) -> Any:
    g = geometry
    cache = CacheShape(LAYERS, g.heads, g.kv_heads, g.dim, rope(g.dim), g.dtype, g.window)
    target = CompileTarget("cpu", {}, "", unit.lanes, unit.registers, unit.converts_float16, ())
    return getattr(cache_kernels(cache, target, 32), kernel)


class Pass:
    """One forward pass: sequences with a past in the pages, and new tokens. `run` checks all that it changes."""

    def __init__(self, geometry: Geometry, past: list[int], new: list[int], shared: int = 0, seed: int = 0) -> None:
        """The first `shared` pages of all sequences are the same."""
        self.geometry, self.past, self.new = geometry, past, new
        self.random = np.random.default_rng(seed)
        lengths = [p + n for p, n in zip(past, new, strict=True)]
        counts = [-(-length // PAGE) for length in lengths]
        numbers = iter(self.random.permutation(sum(counts) + 3).astype(np.int32))
        common = [next(numbers) for _ in range(shared)]
        self.tables = [np.array(common + [next(numbers) for _ in range(count - shared)]) for count in counts]
        layout = (sum(counts) + 3, LAYERS, 2, geometry.kv_heads, PAGE)
        self.kv = np.full((*layout, geometry.dim), GARBAGE[geometry.dtype], geometry.dtype)
        self.scales = np.full(layout, np.nan, np.float32)
        for table, length in zip(self.tables, past, strict=True):
            for position in range(length):
                place = (table[position // PAGE], LAYER, slice(None), slice(None), position % PAGE)
                self.put(place, self.random.standard_normal((2, geometry.kv_heads, geometry.dim)))
        fused = geometry.heads + 2 * geometry.kv_heads
        self.qkv = self.random.standard_normal((sum(new), fused * geometry.dim)).astype(np.float32)
        self.positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, new, strict=True)])
        owners = np.repeat(np.arange(len(new)), new)
        self.slots = np.array(
            [self.tables[i][p // PAGE] * PAGE + p % PAGE for i, p in zip(owners, self.positions, strict=True)]
        )

    def put(self, place: Any, rows: Array) -> None:
        if self.geometry.dtype == "int8":
            self.scales[place] = np.abs(rows).max(-1) / 127
            rows = np.rint(rows / self.scales[place][..., None])
        self.kv[place] = rows

    def values(self, kv: Array, scales: Array) -> Array:
        """What stored numbers stand for."""
        return kv.astype(np.float64) * (scales[..., None] if kv.dtype == np.int8 else 1)

    def run(self, function: Any, batched: bool, tolerance: float = 4e-6) -> None:
        g = self.geometry
        out = tvm.runtime.tensor(np.full((len(self.qkv), g.heads * g.dim), np.nan, np.float32))
        qkv = tvm.runtime.tensor(self.qkv)
        if batched:
            out, qkv = (tvm.runtime.tensor(x.numpy()[:, None]) for x in (out, qkv))
        tables: list[Any] = [self.positions, self.slots, [0, *np.cumsum(self.new)]]
        tables += [[0, *np.cumsum([len(table) for table in self.tables])], np.concatenate(self.tables)]
        tables += [[p + n for p, n in zip(self.past, self.new, strict=True)]]
        integers = [tvm.runtime.tensor(np.array(table, np.int32)) for table in tables]
        kv, scales = tvm.runtime.tensor(stored(self.kv)), tvm.runtime.tensor(in_sheets(self.scales))
        function(qkv, LAYER, *integers, kv, *([scales] if g.dtype == "int8" else []), out)
        count = len(self.kv)
        self.expect(
            pages(kv.numpy(), count),
            out_of_sheets(scales.numpy(), count),
            out.numpy().reshape(len(self.qkv), g.heads, g.dim),
            tolerance,
        )

    def expect(self, kv: Array, scales: Array, out: Array, tolerance: float) -> None:
        g = self.geometry
        q, k, v = np.split(self.qkv.reshape(len(self.qkv), -1, g.dim), [g.heads, g.heads + g.kv_heads], axis=1)
        self.expect_stored(kv, scales, np.stack([rotated(k, self.positions), v], 1))
        stored, start = self.values(kv, scales)[:, LAYER], 0
        for table, past, new in zip(self.tables, self.past, self.new, strict=True):
            own = slice(start, start + new)
            rows = stored[table].transpose(0, 3, 1, 2, 4).reshape(-1, 2, g.kv_heads, g.dim)[: past + new]
            expected = attention(rotated(q[own], self.positions[own]), rows[:, 0], rows[:, 1], g.window)
            np.testing.assert_allclose(out[own], expected, atol=tolerance, rtol=tolerance)
            start += new

    def expect_stored(self, kv: Array, scales: Array, rows: Array) -> None:
        """New keys and values `[n, 2, kv_heads, dim]` are at their slots, and nothing else has changed."""
        pages, offsets = self.slots // PAGE, self.slots % PAGE
        found = self.values(kv, scales)[pages, LAYER, :, :, offsets]
        largest = np.abs(rows).max(-1, keepdims=True)
        rounding = {"float32": 0, "float16": np.abs(rows) * 2**-11, "int8": largest / 254}[self.geometry.dtype]
        assert (np.abs(found - rows) <= 2e-6 + 1.01 * rounding).all()
        for after, before in ((kv, self.kv.copy()), (scales, self.scales.copy())):
            if after is kv or self.geometry.dtype == "int8":
                before[pages, LAYER, :, :, offsets] = after[pages, LAYER, :, :, offsets]
            np.testing.assert_array_equal(after, before)


COMMON = [Geometry(9, 3, 64, "float16"), Geometry(9, 3, 64, "int8"), Geometry(2, 2, 80, "float32")]
RARE = [Geometry(8, 1, 128, "float16"), Geometry(4, 4, 64, "int8"), Geometry(3, 1, 72, "float16")]
RARE += [Geometry(4, 2, 100, "float32"), Geometry(14, 2, 64, "int8"), Geometry(3, 1, 128, "float32")]
RARE += [Geometry(4, 2, 12, "float32"), Geometry(2, 1, 136, "int8")]
geometries = pytest.mark.parametrize(
    "geometry", [*COMMON, *(pytest.param(g, marks=pytest.mark.slow) for g in RARE)], ids=str
)


@geometries
@pytest.mark.parametrize(
    "past", [[0], [15], [16], [100], [127], [128], [700], [17, 0, 64, 3, 300], [5, 1000, 30, 2, 63, 64]], ids=str
)
def test_a_new_token_of_each_sequence(compiled: Callable[..., Any], geometry: Geometry, past: list[int]) -> None:
    Pass(geometry, past, [1] * len(past)).run(compiled(build, "decode_attention", geometry), batched=True)


@geometries
@pytest.mark.parametrize(
    ("past", "new"),
    [([0], [1]), ([0], [100]), ([40], [33]), ([7, 0, 64, 33], [64, 3, 1, 100]), ([300, 0], [1, 90])],
    ids=str,
)
def test_many_new_tokens(compiled: Callable[..., Any], geometry: Geometry, past: list[int], new: list[int]) -> None:
    Pass(geometry, past, new).run(compiled(build, "prefill_attention", geometry), batched=False)


@pytest.mark.parametrize("window", [24, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, 64, 70))])
def test_a_window_hides_what_is_too_far_back(compiled: Callable[..., Any], window: int) -> None:
    geometry = replace(COMMON[0], window=window)
    decode, prefill = (compiled(build, f"{name}_attention", geometry) for name in ("decode", "prefill"))
    for past in ([10], [22, 23, 24, 25], [150, 3, 700]):
        Pass(geometry, past, [1] * len(past)).run(decode, batched=True)
    for past, new in (([0], [200]), ([150, 3], [40, 90])):
        Pass(geometry, past, new).run(prefill, batched=False)


@pytest.mark.parametrize("geometry", COMMON[:2], ids=str)
def test_sequences_share_pages(compiled: Callable[..., Any], geometry: Geometry) -> None:
    decode, prefill = (compiled(build, f"{name}_attention", geometry) for name in ("decode", "prefill"))
    Pass(geometry, [40, 32, 70], [1, 1, 1], shared=2).run(decode, batched=True)
    Pass(geometry, [40, 32, 70], [5, 1, 20], shared=2).run(prefill, batched=False)


def test_large_scores_and_zeros(compiled: Callable[..., Any]) -> None:
    for geometry in COMMON[:2]:
        one = Pass(geometry, [90], [1])
        one.qkv[:, : geometry.heads * geometry.dim] *= 30  # one key takes all the weight
        one.qkv[:, -geometry.dim :] = 0  # a row without a largest number
        # scores of some hundreds, in float32
        one.run(compiled(build, "decode_attention", geometry), batched=True, tolerance=2e-5)
