"""Attention kernels of devices against numpy in float64, over pages that lie anywhere: head sizes, groups, windows,
types. Each runs several times: threads that race give other bits now and then."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
from attention_pass import LAYERS, Geometry, Pass
from device_kernels import Kernel, compile_kernel, compile_kernels, device_kind, device_target
from kv_layout import DEVICE

from mlc_llm.compiler.kernels.cache_kernels import CacheShape
from mlc_llm.compiler.kernels.gpu.attention import cache_kernels
from mlc_llm.compiler.kernels.gpu.attention_decode import WORKGROUPS
from mlc_llm.compiler.kernels.gpu.kv_pages import copy_page
from mlc_llm.runtime.artifact import KVDtype
from mlc_llm.runtime.errors import UsageError

__all__ = ["device_kind"]

WHOLE = Geometry(9, 3, 64, "float32")
WINDOW = Geometry(5, 1, 96, "int8", window=70, partly_rotated=True)
COMMON = {"opencl": WINDOW, "vulkan": WHOLE}  # to compile kernels and to build them in the driver takes seconds
RARE = [WHOLE, WINDOW, Geometry(2, 2, 80, "float32"), Geometry(8, 1, 128, "float32"), Geometry(34, 1, 64, "float32")]
RARE += [Geometry(18, 1, 64, "int8", window=64), Geometry(6, 2, 256, "float32"), Geometry(2, 1, 256, "int8", window=1)]
RARE += [Geometry(4, 2, 100, "float32", window=24), Geometry(7, 7, 40, "float32"), Geometry(3, 1, 12, "float32")]
geometries = pytest.mark.parametrize(
    "geometry", [None, *(pytest.param(g, marks=pytest.mark.slow) for g in RARE)], ids=lambda g: str(g or "common")
)


def shape_of(geometry: Geometry) -> CacheShape:
    g = geometry
    return CacheShape(LAYERS, g.heads, g.kv_heads, g.dim, g.rope, g.dtype, g.window)


@cache
def kernels(geometry: Geometry, kind: str) -> dict[str, Kernel]:
    shape, target = shape_of(geometry), device_target(kind)
    attention = cache_kernels(shape, target, 16)
    functions = {"decode": attention.decode_attention, "prefill": attention.prefill_attention}
    return compile_kernels(functions, kind)


def on(kind: str, geometry: Geometry) -> Geometry:
    """The geometry with float16 where a device has it."""
    half = geometry.dtype == "float32" and device_target(kind).converts_float16
    return replace(geometry, dtype="float16") if half else geometry


def check(kind: str, geometry: Geometry | None, past: list[int], new: list[int] | None = None, shared: int = 0) -> None:
    """Decode one token of each sequence, or prefill `new`, and again: the same bits."""
    geometry = on(kind, geometry or COMMON[kind])
    one = Pass(geometry, past, new or [1] * len(past), shared)
    function = kernels(geometry, kind)["prefill" if new else "decode"]
    first = one.forward(function, new is None, DEVICE)
    one.expect(*first, 4e-6)
    for _ in range(2):
        for found, expected in zip(one.forward(function, new is None, DEVICE), first, strict=True):
            np.testing.assert_array_equal(found, expected)


@geometries
def test_a_new_token_of_each_sequence(kind: str, geometry: Geometry | None) -> None:
    for past in ([0], [15], [63], [64], [127], [700], [17, 0, 64, 3, 300], [5, 1000, 30, 2, 63, 64]):
        check(kind, geometry, past)


@geometries
def test_many_new_tokens(kind: str, geometry: Geometry | None) -> None:
    for past, new in (([0], [1]), ([0], [100]), ([40], [33]), ([7, 0, 64, 33], [64, 3, 1, 100]), ([300, 0], [1, 90])):
        check(kind, geometry, past, new)


def test_many_short_sequences_and_a_long_one(kind: str) -> None:
    """As many workgroups for a sequence as there may be, some, and one."""
    many = WORKGROUPS // COMMON[kind].kv_heads // 2 + 1
    for past in ([5000], [9, 400] * 10, [3, 0] * many):
        check(kind, None, past)


def test_few_new_tokens_of_many_sequences(kind: str) -> None:
    check(kind, None, [30, 200, 0, 64, 100, 15], [4, 4, 4, 1, 3, 2])


def test_sequences_share_pages(kind: str) -> None:
    check(kind, None, [40, 32, 70], shared=2)
    check(kind, None, [40, 32, 70], [5, 1, 20], shared=2)


def test_large_scores_and_zeros(kind: str) -> None:
    geometry = on(kind, COMMON[kind])
    one = Pass(geometry, [90], [1])
    one.qkv[:, : geometry.heads * geometry.dim] *= 30  # one key takes all the weight
    one.qkv[:, -geometry.dim :] = 0  # a row without a largest number
    # scores of some hundreds, in float32
    for name in ("decode", "prefill"):
        one.run(kernels(geometry, kind)[name], batched=name == "decode", tolerance=3e-5, layout=DEVICE)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_page_is_copied(kind: str, dtype: KVDtype) -> None:
    geometry = on(kind, WHOLE if dtype == "float32" else WINDOW)
    random = np.random.default_rng(0)
    layout = (6, LAYERS, 2, geometry.kv_heads, 16)
    pages = (100 * random.standard_normal((*layout, geometry.dim))).astype(geometry.dtype)
    scales = random.random(layout, np.float32)
    kv, stored_scales = DEVICE.stored(pages), DEVICE.stored(scales)
    copy = compile_kernel(copy_page(shape_of(geometry), device_target(kind)), kind)
    copy(kv, *([stored_scales] if dtype == "int8" else []), 1, 4)
    pages[4], scales[4] = pages[1], scales[1]
    np.testing.assert_array_equal(DEVICE.pages(kv, 6), pages)
    if dtype == "int8":
        np.testing.assert_array_equal(DEVICE.pages(stored_scales, 6), scales)


@pytest.mark.parametrize("dim", [66, 512])
def test_other_heads_are_refused(dim: int) -> None:
    geometry: Any = Geometry(2, 1, dim, "float32")
    with pytest.raises(UsageError, match=f"heads of {dim} dimensions on opencl: expected a multiple of 4 up to 256"):
        cache_kernels(shape_of(geometry), device_target("opencl"), 16)
