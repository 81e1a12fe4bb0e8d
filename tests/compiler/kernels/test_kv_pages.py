"""Kernels that move keys and values in and out of pages move exactly what they should."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm

from mlc_llm.compiler.kernels.cpu.kv_pages import compact_kv_copy, copy_single_page, debug_get_kv, transpose_append

KV_HEADS = 3
geometries = pytest.mark.parametrize(("dim", "dtype"), [(64, "float16"), (80, "float32"), (6, "float32")])


def filled(*shape: int, dtype: str) -> Any:
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


def integers(values: Any) -> Any:
    return tvm.runtime.tensor(np.array(values, np.int32))


@geometries
@pytest.mark.parametrize("tokens", [3, 100])
def test_new_tokens_go_to_their_slots(compiled: Callable[..., Any], dim: int, dtype: str, tokens: int) -> None:
    before = filled(9, 2, KV_HEADS, 16, dim, dtype=dtype)
    k, v = filled(tokens, KV_HEADS, dim, dtype=dtype), filled(tokens + 1, KV_HEADS, dim, dtype=dtype)[1:]
    slots = np.random.default_rng(1).permutation(9 * 16)[:tokens]
    slots[1] = -1  # not stored
    pages = tvm.runtime.tensor(before)
    compiled(transpose_append, KV_HEADS, dim, dtype)(
        pages, tvm.runtime.tensor(k), tvm.runtime.tensor(v.copy()), integers(slots)
    )
    expected = before.copy()
    for token, slot in enumerate(slots):
        if slot >= 0:
            expected[slot // 16, 0, :, slot % 16], expected[slot // 16, 1, :, slot % 16] = k[token], v[token]
    np.testing.assert_array_equal(pages.numpy(), expected)


@geometries
def test_the_first_slots_of_a_page_are_copied(compiled: Callable[..., Any], dim: int, dtype: str) -> None:
    before = filled(4, 2, KV_HEADS, 16, dim, dtype=dtype)
    pages = tvm.runtime.tensor(before)
    compiled(copy_single_page, KV_HEADS, dim, dtype)(pages, 2, 0, 7)
    expected = before.copy()
    expected[0, :, :, :7] = before[2, :, :, :7]
    np.testing.assert_array_equal(pages.numpy(), expected)


@geometries
def test_accepted_slots_are_moved_in_order(compiled: Callable[..., Any], dim: int, dtype: str) -> None:
    before = filled(4, 2, KV_HEADS, 16, dim, dtype=dtype)
    moves = [(5, 3), (9, 5), (40, 17), (17, 60)]  # the second target was the first source, the third is the last source
    pages = tvm.runtime.tensor(before)
    compiled(compact_kv_copy, KV_HEADS, dim, dtype)(pages, integers([0, 2, 4]), integers(np.transpose(moves).copy()), 2)
    expected = before.copy()
    for source, target in moves:
        expected[target // 16, :, :, target % 16] = expected[source // 16, :, :, source % 16]
    np.testing.assert_array_equal(pages.numpy(), expected)


@geometries
def test_tokens_are_read_back(compiled: Callable[..., Any], dim: int, dtype: str) -> None:
    stored = filled(4, 2, KV_HEADS, 16, dim, dtype=dtype)
    slots = [3, 63, 16, 0]
    k, v = (tvm.runtime.tensor(np.zeros((2, 4, KV_HEADS, dim), dtype)) for _ in range(2))
    compiled(debug_get_kv, 2, KV_HEADS, dim, dtype)(tvm.runtime.tensor(stored), integers(slots), k, v, 1)
    for which, found in enumerate((k.numpy(), v.numpy())):
        np.testing.assert_array_equal(found[1], np.stack([stored[slot // 16, which, :, slot % 16] for slot in slots]))
        assert not found[0].any()
