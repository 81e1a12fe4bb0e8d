"""Attention kernels against numpy in float64: head sizes, groups, several sequences, pages, windows, rotation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import tvm

from mlc_llm.compiler.kernels.cpu.decode import decode_paged, merge_state_inplace
from mlc_llm.compiler.kernels.cpu.flash import HeadShape
from mlc_llm.compiler.kernels.cpu.prefill import prefill_paged, prefill_ragged
from mlc_llm.compiler.kernels.cpu.rope import Rotation, split_rotary
from mlc_llm.compiler.kernels.cpu.vector import VectorUnit

Array = np.ndarray[Any, Any]
PAGE_SIZE = 16


@dataclass(frozen=True)
class Heads:
    q: int
    kv: int
    dim: int
    dtype: str

    @property
    def tolerance(self) -> float:
        return 2e-3 if self.dtype == "float16" else 3e-6

    @property
    def scale(self) -> float:
        return float(self.dim**-0.5)


HEADS = [Heads(9, 3, 64, "float32"), Heads(2, 2, 80, "float16")]
MORE_HEADS = [Heads(9, 3, 64, "float16"), Heads(8, 1, 80, "float32"), Heads(8, 1, 128, "float16")]
MORE_HEADS += [Heads(3, 1, 128, "float32"), Heads(2, 2, 80, "float32")]
MORE_HEADS += [Heads(4, 4, 64, "float16"), Heads(3, 1, 72, "float16"), Heads(4, 2, 100, "float32")]
every_heads = pytest.mark.parametrize(
    "heads", [*HEADS, *(pytest.param(h, marks=pytest.mark.slow) for h in MORE_HEADS)], ids=str
)


def shape(heads: Heads, unit: VectorUnit) -> HeadShape:
    return HeadShape(heads.q, heads.kv, heads.dim, heads.dtype, unit)


def rotation(dim: int, rotary_dim: int | None = None, factor: float = 1.0) -> Rotation:
    rotary_dim = rotary_dim or dim
    frequencies = (1e4 ** -(np.arange(0, rotary_dim, 2) / rotary_dim)).astype(np.float32)
    return Rotation(tuple(float(f) for f in frequencies), factor, dim)


def build_ragged(heads: Heads, window: int | None, unit: VectorUnit) -> Any:
    return prefill_ragged(shape(heads, unit), rotation(heads.dim), window)


def build_paged(heads: Heads, window: int | None, unit: VectorUnit) -> Any:
    return prefill_paged(shape(heads, unit), rotation(heads.dim) if window else None, window)


def build_decode(heads: Heads, sliding: bool, unit: VectorUnit) -> Any:
    return decode_paged(shape(heads, unit), rotation(heads.dim) if sliding else None, sliding)


def build_merge(heads: Heads, unit: VectorUnit) -> Any:
    return merge_state_inplace(shape(heads, unit))


def build_split(heads: Heads, turns: Rotation, unit: VectorUnit) -> Any:
    return split_rotary(heads.q, heads.kv, turns, heads.dtype, unit)


def rotated(x: Array, positions: Array, turns: Rotation) -> Array:
    """Rotate `[n, heads, dim]` as transformers' apply_rotary_pos_emb does."""
    half = len(turns.frequencies)
    angles = (positions[:, None].astype(np.float32) * np.array(turns.frequencies, np.float32)).astype(np.float64)
    cosine, sine = (f(angles)[:, None] * turns.attention_factor for f in (np.cos, np.sin))
    a, b, rest = x[..., :half].astype(np.float64), x[..., half : 2 * half].astype(np.float64), x[..., 2 * half :]
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, rest.astype(np.float64)], -1)


def attention(q: Array, k: Array, v: Array, visible: Array, scale: float) -> tuple[Array, Array]:
    """Output and base-2 log-sum-exp of q `[n, hq, d]` over k, v `[m, hkv, d]` where visible `[n, m]`."""
    group = q.shape[1] // k.shape[1]
    k, v = (np.repeat(x.astype(np.float64), group, 1) for x in (k, v))
    scores = np.einsum("qhd,khd->hqk", q.astype(np.float64), k) * scale
    scores = np.where(visible, scores, -5e4 * np.log(2))
    peak = scores.max(-1, keepdims=True, initial=-5e4 * np.log(2))
    weights = np.where(visible, np.exp(scores - peak), 0)
    total = weights.sum(-1, keepdims=True)
    total = np.where(total == 0, 1, total)
    output = np.einsum("hqk,khd->qhd", weights / total, v)
    return output, ((peak + np.log(total))[..., 0] / np.log(2)).T


def integers(values: Any) -> Any:
    return tvm.runtime.tensor(np.array(values, np.int32))


def indptr(lengths: list[int]) -> Any:
    return integers([0, *np.cumsum(lengths)])


class Batch:
    """Random queries, and output buffers filled with what a kernel must overwrite."""

    def __init__(self, heads: Heads, lengths: list[int], seed: int = 0) -> None:
        self.heads, self.lengths = heads, lengths
        self.random = np.random.default_rng(seed)
        self.q = self.normal(sum(lengths), heads.q, heads.dim)
        self.output = tvm.runtime.tensor(np.full(self.q.shape, np.nan, heads.dtype))
        self.lse = tvm.runtime.tensor(np.full(self.q.shape[:2], np.nan, np.float32))

    def normal(self, *size: int) -> Array:
        return self.random.standard_normal(size).astype(self.heads.dtype)

    def expect(self, output: Array, lse: Array) -> None:
        np.testing.assert_allclose(self.output.numpy(), output, atol=self.heads.tolerance, rtol=self.heads.tolerance)
        np.testing.assert_allclose(self.lse.numpy(), lse, atol=5e-6, rtol=2e-6)


class Pages:
    """Sequences in shuffled pages whose unused slots are NaN. A sequence holds `sink` keys, then, `offset` slots into
    its pages, the rest of its keys."""

    def __init__(self, batch: Batch, lengths: list[int], sink: int = 0, offset: int = 0) -> None:
        heads = batch.heads
        self.k, self.v, table, self.last = [], [], [], []
        counts = [-(-(n - sink + offset) // PAGE_SIZE) if n else 0 for n in lengths]
        ids = batch.random.permutation(sum(counts) + 3)
        self.pages = np.full((len(ids), 2, heads.kv, PAGE_SIZE, heads.dim), np.nan, heads.dtype)
        for n, count in zip(lengths, counts, strict=True):
            own, ids = ids[:count], ids[count:]
            k, v = batch.normal(n, heads.kv, heads.dim), batch.normal(n, heads.kv, heads.dim)
            for j in range(n):
                slot = j if j < sink else j - sink + offset
                self.pages[own[slot // PAGE_SIZE], 0, :, slot % PAGE_SIZE] = k[j]
                self.pages[own[slot // PAGE_SIZE], 1, :, slot % PAGE_SIZE] = v[j]
            table.extend(own)
            self.k.append(k)
            self.v.append(v)
            self.last.append((n - sink + offset - 1) % PAGE_SIZE + 1 if n else 0)
        many = len(lengths)
        self.indptr, self.table = indptr(counts), integers(table)
        self.length_info = integers(self.last)
        self.sliding_info = integers([self.last, [offset] * many, [sink] * many])


def causal(n: int, m: int, window: int | None = None) -> Array:
    """The last n of m tokens see themselves and what is before them."""
    distance = np.arange(m - n, m)[:, None] - np.arange(m)
    seen: Array = (distance >= 0) & (distance < (window or m + 1))
    return seen


def join(parts: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    outputs, lse = zip(*parts, strict=True)
    return np.concatenate(outputs), np.concatenate(lse)


@every_heads
@pytest.mark.parametrize("lengths", [[1], [100], [7, 64, 0, 33]], ids=str)
def test_new_tokens_attend_to_each_other(compiled: Callable[..., Any], heads: Heads, lengths: list[int]) -> None:
    batch = Batch(heads, lengths)
    k, v = (batch.normal(sum(lengths), heads.kv, heads.dim) for _ in range(2))
    rows = indptr(lengths)
    nothing = integers(np.zeros(sum(lengths)))
    offsets = integers(np.zeros(len(lengths)))
    tensors = [tvm.runtime.tensor(x) for x in (batch.q, k, v)]
    for is_causal in (1, 0):
        compiled(build_ragged, heads, None)(
            tensors[0], rows, *tensors[1:], rows, nothing, offsets, batch.output, batch.lse, is_causal, 0, 1.0, 1e4,
            heads.scale,
        )  # fmt: skip
        parts, start = [], 0
        for n in lengths:
            own = slice(start, start + n)
            seen = causal(n, n) if is_causal else np.ones((n, n), bool)
            parts.append(attention(batch.q[own], k[own], v[own], seen, heads.scale))
            start += n
        batch.expect(*join(parts))


@pytest.mark.parametrize("window", [24, *(pytest.param(w, marks=pytest.mark.slow) for w in (1, 70))])
def test_a_window_hides_what_is_too_far_back(compiled: Callable[..., Any], window: int) -> None:
    heads, n = HEADS[0], 200
    batch = Batch(heads, [n])
    k, v = (batch.normal(n, heads.kv, heads.dim) for _ in range(2))
    rows, nothing = indptr([n]), integers(np.zeros(n))
    tensors = [tvm.runtime.tensor(x) for x in (batch.q, k, v)]
    compiled(build_ragged, heads, window)(
        tensors[0], rows, *tensors[1:], rows, nothing, integers([0]), batch.output, batch.lse, 1, 0, 1.0, 1e4,
        heads.scale,
    )  # fmt: skip
    batch.expect(*attention(batch.q, k, v, causal(n, n, window), heads.scale))


@every_heads
def test_prefill_attends_to_pages(compiled: Callable[..., Any], heads: Heads) -> None:
    lengths, history = [5, 40, 3], [100, 0, 16]
    batch = Batch(heads, lengths)
    pages = Pages(batch, history)
    for is_causal in (0, 1):
        if is_causal and min(history) < max(lengths):
            history, lengths = [100], [40]
            batch = Batch(heads, lengths)
            pages = Pages(batch, history)
        compiled(build_paged, heads, None)(
            tvm.runtime.tensor(batch.q), indptr(lengths), tvm.runtime.tensor(pages.pages), pages.indptr, pages.table,
            pages.length_info, integers([0] * len(lengths)), integers([0] * sum(lengths)), batch.output, batch.lse,
            is_causal, 0, 1.0, 1e4, heads.scale,
        )  # fmt: skip
        parts, start = [], 0
        for n, m, k, v in zip(lengths, history, pages.k, pages.v, strict=True):
            seen = causal(n, m) if is_causal else np.ones((n, m), bool)
            parts.append(attention(batch.q[start : start + n], k, v, seen, heads.scale))
            start += n
        batch.expect(*join(parts))


@pytest.mark.parametrize("is_causal", [0, 1], ids=["all", "windowed"])
def test_prefill_attends_to_a_window_of_pages(compiled: Callable[..., Any], is_causal: int) -> None:
    heads, window, lengths, history = HEADS[0], 70, [90, 9], [69, 30]
    batch = Batch(heads, lengths)
    pages = Pages(batch, history, sink=0 if is_causal else 4, offset=9)
    compiled(build_paged, heads, window)(
        tvm.runtime.tensor(batch.q), indptr(lengths), tvm.runtime.tensor(pages.pages), pages.indptr, pages.table,
        pages.sliding_info, integers([0, 0]), integers([0] * sum(lengths)), batch.output, batch.lse, is_causal, 0, 1.0,
        1e4, heads.scale,
    )  # fmt: skip
    parts, start = [], 0
    for n, m, k, v in zip(lengths, history, pages.k, pages.v, strict=True):
        # token t stands at m + t and sees keys from m + t - window + 1 on
        seen = causal(n, m + n, window)[:, :m] if is_causal else np.ones((n, m), bool)
        parts.append(attention(batch.q[start : start + n], k, v, seen, heads.scale))
        start += n
    batch.expect(*join(parts))


@every_heads
@pytest.mark.parametrize("history", [[1], [16], [100], [700], [17, 0, 64, 3, 300]], ids=str)
def test_decode_attends_to_pages(compiled: Callable[..., Any], heads: Heads, history: list[int]) -> None:
    many = len(history)
    batch = Batch(heads, [1] * many)
    pages = Pages(batch, history)
    compiled(build_decode, heads, False)(
        tvm.runtime.tensor(batch.q), tvm.runtime.tensor(pages.pages), pages.indptr, pages.table, pages.length_info,
        integers([0] * many), integers(history), batch.output, batch.lse, 0, 1.0, 1e4, heads.scale,
    )  # fmt: skip
    parts = [
        attention(batch.q[i : i + 1], pages.k[i], pages.v[i], np.ones((1, m), bool), heads.scale)
        for i, m in enumerate(history)
    ]
    batch.expect(*join(parts))


@pytest.mark.parametrize("rotary_mode", [0, 1], ids=["rotated keys", "unrotated keys"])
def test_decode_attends_to_a_sink_and_a_window(compiled: Callable[..., Any], rotary_mode: int) -> None:
    heads, history, turns = HEADS[0], [90, 20, 33], rotation(64)
    batch = Batch(heads, [1] * 3)
    pages = Pages(batch, history, sink=4, offset=23)
    compiled(build_decode, heads, True)(
        tvm.runtime.tensor(batch.q), tvm.runtime.tensor(pages.pages), pages.indptr, pages.table, pages.sliding_info,
        integers([0, 5, 0]), integers([90, 25, 33]), batch.output, batch.lse, rotary_mode, 1.0, 1e4, heads.scale,
    )  # fmt: skip
    parts = []
    for i, (m, first) in enumerate(zip(history, [0, 5, 0], strict=True)):
        q, k = batch.q[i : i + 1], pages.k[i]
        if rotary_mode:
            q, k = rotated(q, np.array([first + m]), turns), rotated(k, first + np.arange(m), turns)
        parts.append(attention(q, k, pages.v[i], np.ones((1, m), bool), heads.scale))
    batch.expect(*join(parts))


def test_new_tokens_are_rotated_in_the_kernel_for_caches_of_unrotated_keys(compiled: Callable[..., Any]) -> None:
    heads, lengths, turns = HEADS[0], [70, 5], rotation(64)
    batch = Batch(heads, lengths)
    k, v = (batch.normal(75, heads.kv, heads.dim) for _ in range(2))
    positions = np.concatenate([10 + np.arange(70), np.arange(5)])
    rows = indptr(lengths)
    tensors = [tvm.runtime.tensor(x) for x in (batch.q, k, v)]
    compiled(build_ragged, heads, None)(
        tensors[0], rows, *tensors[1:], rows, integers(positions), integers([10, 0]), batch.output, batch.lse, 1, 1,
        1.0, 1e4, heads.scale,
    )  # fmt: skip
    q, k = rotated(batch.q, positions, turns), rotated(k, positions, turns)
    batch.expect(
        *join(
            [attention(q[s], k[s], v[s], causal(n, n), heads.scale) for s, n in ((slice(70), 70), (slice(70, 75), 5))]
        )
    )


@every_heads
@pytest.mark.parametrize("tokens", [1, 40])
def test_merged_states_are_attention_over_both_sets_of_keys(
    compiled: Callable[..., Any], heads: Heads, tokens: int
) -> None:
    batch = Batch(heads, [tokens])
    k, v = (batch.normal(50, heads.kv, heads.dim) for _ in range(2))
    one, two, both = np.arange(50) < 20, np.arange(50) >= 20, np.ones(50, bool)
    nothing = np.zeros(50, bool)
    for first, second, union in ((one, two, both), (one, nothing, one), (nothing, two, two)):
        states = []
        for seen in (first, second):
            output, lse = attention(batch.q, k, v, np.tile(seen, (tokens, 1)), heads.scale)
            states += [tvm.runtime.tensor(output.astype(heads.dtype)), tvm.runtime.tensor(lse.astype(np.float32))]
        compiled(build_merge, heads)(*states)
        batch.output, batch.lse = states[:2]
        batch.expect(*attention(batch.q, k, v, np.tile(union, (tokens, 1)), heads.scale))


@every_heads
@pytest.mark.parametrize("tokens", [1, 20])
def test_queries_and_keys_are_rotated_and_split(compiled: Callable[..., Any], heads: Heads, tokens: int) -> None:
    random = np.random.default_rng(0)
    qkv = random.standard_normal((tokens, heads.q + 2 * heads.kv, heads.dim)).astype(heads.dtype)
    positions = random.integers(0, 8192, tokens)
    partial = heads.dim // 2
    for turns in (rotation(heads.dim), rotation(heads.dim, partial, 1.25)):
        for apply in (1, 0):
            q, k, v = (
                tvm.runtime.tensor(np.zeros((tokens, h, heads.dim), heads.dtype)) for h in (heads.q, heads.kv, heads.kv)
            )
            compiled(build_split, heads, turns)(tvm.runtime.tensor(qkv), integers(positions), q, k, v, apply)
            expected = rotated(qkv, positions, turns) if apply else qkv
            for found, part in ((q, expected[:, : heads.q]), (k, expected[:, heads.q : -heads.kv])):
                np.testing.assert_allclose(found.numpy(), part, atol=heads.tolerance, rtol=heads.tolerance)
            np.testing.assert_array_equal(v.numpy(), qkv[:, -heads.kv :])
