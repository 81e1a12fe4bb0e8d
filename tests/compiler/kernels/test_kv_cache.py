"""TVM's paged KV cache with our kernels, driven as the runtime drives it, against attention over plain lists."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import tvm
from tvm import relax, tirx
from tvm.relax.frontend import nn
from tvm.runtime import ShapeTuple

from mlc_llm.compiler.kernels.kv_cache import PagedKVCache, create_paged_kv_cache
from mlc_llm.compiler.model.rope import inverse_frequencies, parse_rope
from mlc_llm.compiler.target import CompileTarget, resolve_target
from mlc_llm.runtime.errors import UsageError

Array = np.ndarray[Any, Any]
LAYERS, HEADS, KV_HEADS, DIM = 2, 6, 2, 32
FUSED = HEADS + 2 * KV_HEADS
ROPE = parse_rope({"rope_theta": 1e5, "head_dim": DIM, "max_position_embeddings": 8192})


class Attention(nn.Module):
    """`LAYERS` attention layers that each get q, k, v of their own: all that a cache sees of a model."""

    def __init__(self, dtype: str, target: CompileTarget, kinds: Sequence[Any] | None, window: int):
        self.settings = {"dtype": dtype, "target": target, "layer_kinds": kinds}
        self.window = window

    def attend(self, qkv: nn.Tensor, cache: PagedKVCache) -> Any:
        _, batch, tokens, _, _ = qkv.shape
        layers = nn.op.split(qkv, LAYERS, axis=0)
        return [
            cache.attention_with_fused_qkv(
                i, nn.op.reshape(layer, (batch, tokens, FUSED, DIM)), HEADS, sm_scale=DIM**-0.5
            )
            for i, layer in enumerate(layers)
        ], cache

    def create(self, a: tirx.Var, b: tirx.Var, c: tirx.Var, d: tirx.Var, e: tirx.Var) -> PagedKVCache:
        return create_paged_kv_cache(
            a,
            b,
            c,
            d,
            e,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            head_dim=DIM,
            rope=ROPE,
            layer_sliding_window_size=self.window,
            **self.settings,
        )


@cache
def build(processor: str, dtype: str, kinds: tuple[Any, ...] | None = None, window: int = 1024) -> Any:
    target = resolve_target(f"cpu:{processor}")
    qkv = nn.spec.Tensor([LAYERS, "batch", "tokens", FUSED, DIM], dtype)
    plain = {"param_mode": "none", "effect_mode": "none"}
    spec = {
        "attend": {"qkv": qkv, "cache": nn.spec.Object(object_type=PagedKVCache), "$": plain},
        "create": {**dict.fromkeys("abcde", int), "$": plain},
    }
    module, _ = Attention(dtype, target, kinds, window).export_tvm(spec=spec)
    return relax.build(module, target.tvm_target())


class Driver:
    """A cache beside what it should hold: for each sequence the q, k, v `[layers, fused heads, dim]` of its tokens."""

    def __init__(self, executable: Any, dtype: str, window: int | None = None, sliding: bool = False) -> None:
        self.vm = relax.VirtualMachine(executable, tvm.cpu())
        self.state = self.vm["create"](*(ShapeTuple([n]) for n in (4, 1024, 256, 16, int(sliding))))
        self.dtype, self.window = dtype, window
        self.random = np.random.default_rng(0)
        self.tokens: dict[int, list[Array]] = {}

    def call(self, name: str, *arguments: Any) -> Any:
        return tvm.get_global_func(f"vm.builtin.{name}")(self.state, *arguments)

    def add(self, sequence: int) -> None:
        self.call("kv_state_add_sequence", sequence)
        self.tokens[sequence] = []

    def fork(self, parent: int, child: int, position: int) -> None:
        self.call("kv_state_fork_sequence", parent, child, position)
        self.tokens[child] = self.tokens[parent][:position]

    def pop(self, sequence: int, count: int) -> None:
        self.call("kv_state_popn", sequence, count)
        del self.tokens[sequence][-count:]

    def remove(self, sequence: int) -> None:
        self.call("kv_state_remove_sequence", sequence)
        del self.tokens[sequence]

    def forward(self, *steps: tuple[int, int]) -> float:
        """Append (sequence, count) new tokens each; the largest difference between the cache and the definition."""
        total = sum(count for _, count in steps)
        decode = all(count == 1 for _, count in steps)
        batch = (len(steps), 1) if decode else (1, total)
        qkv = self.random.standard_normal((LAYERS, *batch, FUSED, DIM)).astype(self.dtype)
        sequences, counts = zip(*steps, strict=True)
        self.call("kv_state_begin_forward", ShapeTuple(sequences), ShapeTuple(counts))
        found, _ = self.vm["attend"](tvm.runtime.tensor(qkv), self.state)
        self.call("kv_state_end_forward")
        flat, expected = qkv.reshape(LAYERS, total, FUSED, DIM), []
        start = 0
        for sequence, count in steps:
            self.tokens[sequence] += [flat[:, start + i] for i in range(count)]
            expected.append(self.reference(sequence, count))
            start += count
        outputs = np.stack([layer.numpy().reshape(total, HEADS, DIM) for layer in found])
        return float(np.abs(outputs - np.concatenate(expected, 1)).max())

    def reference(self, sequence: int, count: int) -> Array:
        """Attention outputs `[layers, count, heads, dim]` of a sequence's last tokens, from the definition."""
        return definition(np.stack(self.tokens[sequence], 1), count, self.window)


def definition(qkv: Array, count: int, window: int | None) -> Array:
    """Causal attention of the last tokens of `[layers, n, fused heads, dim]`, in float64."""
    n = qkv.shape[1]
    angles = np.arange(n, dtype=np.float32)[:, None, None] * inverse_frequencies(ROPE)[0]
    cosine, sine = np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))
    a, b = np.split(qkv.astype(np.float64), 2, -1)
    turned = np.concatenate([a * cosine - b * sine, b * cosine + a * sine], -1)
    q, k = turned[:, :, :HEADS], turned[:, :, HEADS : HEADS + KV_HEADS]
    v = qkv[:, :, HEADS + KV_HEADS :].astype(np.float64)
    k, v = np.repeat(k, HEADS // KV_HEADS, 2), np.repeat(v, HEADS // KV_HEADS, 2)
    distance = np.arange(n - count, n)[:, None] - np.arange(n)
    visible = (distance >= 0) & (distance < (window or n + 1))
    scores = np.einsum("lqhd,lkhd->lhqk", q[:, n - count :], k) * DIM**-0.5
    weights = np.where(visible, np.exp(scores - scores.max(-1, keepdims=True)), 0)
    result: Array = np.einsum("lhqk,lkhd->lqhd", weights / weights.sum(-1, keepdims=True), v)
    return result


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 3e-6), pytest.param("float16", 4e-3, marks=pytest.mark.slow)]
)
def test_sequences_grow_fork_shrink_and_come_back(processor: str, dtype: str, tolerance: float) -> None:
    driver = Driver(build(processor, dtype), dtype)
    driver.add(0)
    errors = [driver.forward((0, 17)), driver.forward((0, 70))]  # a prompt in chunks that end inside a page
    errors += [driver.forward((0, 1)) for _ in range(3)]
    driver.fork(0, 1, 37)  # inside a page
    driver.add(2)
    errors += [driver.forward((1, 1), (0, 1)), driver.forward((0, 5), (2, 33), (1, 2))]
    errors += [driver.forward((0, 1), (1, 1), (2, 1)) for _ in range(2)]
    driver.pop(0, 20)
    errors += [driver.forward((0, 4)), driver.forward((0, 1), (1, 1))]
    driver.remove(1)
    driver.add(1)
    errors += [driver.forward((1, 40), (0, 1)), driver.forward((1, 1), (0, 1), (2, 1))]
    assert max(errors) < tolerance


def test_a_fork_of_a_fork_is_attention_in_three_parts(widest: str) -> None:
    driver = Driver(build(widest, "float32"), "float32")
    driver.add(0)
    errors = [driver.forward((0, 40))]
    driver.fork(0, 1, 32)
    errors += [driver.forward((1, 20)), driver.forward((0, 1), (1, 1))]
    driver.fork(1, 2, 45)
    errors += [driver.forward((2, 9)), driver.forward((2, 1), (1, 1), (0, 1))]
    assert max(errors) < 3e-6


def test_layers_with_a_window_see_no_further_than_it(widest: str) -> None:
    window = 24
    driver = Driver(build(widest, "float32", ("mha_sliding",) * LAYERS, window), "float32", window)
    driver.add(0)
    driver.add(1)
    errors = [driver.forward((0, 60)), driver.forward((0, 13), (1, 20))]  # the first chunk is longer than the window
    errors += [driver.forward((0, 1), (1, 1)) for _ in range(8)]
    driver.pop(0, 30)
    errors += [driver.forward((0, 1)), driver.forward((0, 40))]
    assert max(errors) < 3e-6


@pytest.mark.slow
def test_layers_of_both_kinds_mix(widest: str) -> None:
    window = 24
    driver = Driver(build(widest, "float32", ("mha", "mha_sliding"), window), "float32")
    driver.add(0)
    for count in (20, 24, 1, 1, 7):  # chunks no longer than the window
        outputs = driver_outputs(driver, count)
        n = np.stack(driver.tokens[0], 1)
        expected = [definition(n, count, None)[0], definition(n, count, window)[1]]
        np.testing.assert_allclose(outputs, expected, atol=3e-6)


def driver_outputs(driver: Driver, count: int) -> Array:
    """Outputs `[layers, count, heads, dim]` of new tokens of sequence 0."""
    qkv = driver.random.standard_normal((LAYERS, 1, count, FUSED, DIM)).astype(np.float32)
    driver.call("kv_state_begin_forward", ShapeTuple([0]), ShapeTuple([count]))
    found, _ = driver.vm["attend"](tvm.runtime.tensor(qkv), driver.state)
    driver.call("kv_state_end_forward")
    driver.tokens[0] += list(qkv[:, 0].transpose(1, 0, 2, 3))
    return np.stack([layer.numpy()[0] for layer in found])


def test_a_cache_that_forgets_keeps_a_sink_and_counts_positions_from_its_start(widest: str) -> None:
    window, sink = 48, 4
    driver = Driver(build(widest, "float32"), "float32", sliding=True)
    driver.add(0)
    driver.call("attention_kv_cache_enable_sliding_window_for_seq", 0, window, sink)
    for count in (30, 1, 10, 30, 1, 1, 1, 20, 1):
        outputs = driver_outputs(driver, count)
        kept = driver.tokens[0]
        np.testing.assert_allclose(outputs, definition(np.stack(kept, 1), count, None), atol=3e-6)
        del kept[sink : sink + max(len(kept) - window, 0)]


def test_keys_are_stored_rotated_and_can_be_read_back(widest: str) -> None:
    driver = Driver(build(widest, "float32"), "float32")
    driver.add(0)
    driver.forward((0, 20))
    k, v = (tvm.runtime.tensor(np.zeros((LAYERS, 20, KV_HEADS, DIM), np.float32)) for _ in range(2))
    driver.call("attention_kv_cache_debug_get_kv", 0, 0, 20, k, v)
    stored = np.stack(driver.tokens[0], 1)
    np.testing.assert_array_equal(v.numpy(), stored[:, :, HEADS + KV_HEADS :])
    np.testing.assert_array_equal(k.numpy()[:, 0], stored[:, 0, HEADS : HEADS + KV_HEADS])  # position 0 is not turned
    assert not np.allclose(k.numpy()[:, 1], stored[:, 1, HEADS : HEADS + KV_HEADS])


def test_a_target_without_kernels_is_named() -> None:
    target = replace(resolve_target("cpu"), attributes={"kind": "c"})
    with pytest.raises(UsageError, match="no attention kernels for target 'c': expected one of llvm"):
        Attention("float32", target, None, 1024).create(*(tirx.Var(name, "int64") for name in "abcde"))
