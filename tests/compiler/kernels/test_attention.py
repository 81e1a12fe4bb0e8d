"""Attention kernels against numpy in float64, over pages that lie anywhere: head sizes, groups, windows, types."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from attention_pass import LAYERS, Geometry, Pass

from mlc_llm.compiler.kernels.cache_kernels import CacheShape
from mlc_llm.compiler.kernels.cpu.attention import cache_kernels
from mlc_llm.compiler.kernels.cpu.vector import VectorUnit
from mlc_llm.compiler.target.target import CompileTarget


def build(kernel: str, geometry: Geometry, unit: VectorUnit) -> Any:
    g = geometry
    cache = CacheShape(LAYERS, g.heads, g.kv_heads, g.dim, g.rope, g.dtype, g.window)
    target = CompileTarget("cpu", {}, "", unit.lanes, unit.registers, unit.converts_float16, ())
    return getattr(cache_kernels(cache, target, 32), kernel)


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
