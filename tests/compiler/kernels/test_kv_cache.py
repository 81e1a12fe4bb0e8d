"""Layers over the runtime's KV cache, traced by Relax: all share one kernel of a kind, and each keeps its own keys."""

from functools import cache
from typing import Any

import numpy as np
import tvm
import tvm_ffi
from numpy_attention import attention, rotated
from tvm import relax
from tvm.relax.frontend import nn

from mlc_llm.compiler.kernels.cache_kernels import CacheShape
from mlc_llm.compiler.kernels.cpu.attention import cache_kernels
from mlc_llm.compiler.kernels.kv_cache import PAGE_SIZE, SHEET_PAGES, CacheSpec, PagedKVCache
from mlc_llm.compiler.model.rope import parse_rope
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.artifact import KVCacheMetadata
from mlc_llm.runtime.kv_cache import KVCache

Array = np.ndarray[Any, Any]
LAYERS, HEADS, KV_HEADS, DIM, WINDOW = 3, 6, 2, 32, 24
WINDOWS = (None, WINDOW, None)  # of each layer
WIDTH = (HEADS + 2 * KV_HEADS) * DIM
ROPE = parse_rope({"rope_theta": 1e5, "head_dim": DIM, "max_position_embeddings": 8192})
SHAPE = CacheShape(LAYERS, HEADS, KV_HEADS, DIM, ROPE, "float32")


class Attention(nn.Module):
    """Attention layers that each get q, k, v of their own: all that a cache sees of a model."""

    def __init__(self, spec: CacheSpec) -> None:
        self.spec = spec

    def _attend(self, qkv: Any, tensors: Any, decodes: bool) -> Any:
        _, batch, tokens, _ = qkv.shape
        kv_cache = PagedKVCache(self.spec, tensors, decodes)
        layers = [nn.op.reshape(layer, (batch, tokens, WIDTH)) for layer in nn.op.split(qkv, LAYERS, axis=0)]
        return [kv_cache.attention(i, layer, WINDOWS[i]) for i, layer in enumerate(layers)]

    def prefill(self, qkv: Any, kv_cache: Any) -> Any:
        return self._attend(qkv, kv_cache, decodes=False)

    def decode(self, qkv: Any, kv_cache: Any) -> Any:
        return self._attend(qkv, kv_cache, decodes=True)


@cache
def module() -> tvm.IRModule:
    spec = CacheSpec(cache_kernels, SHAPE, resolve_target("cpu"), activation_bits=32)

    def forward(batch: int | str, tokens: int | str) -> dict[str, Any]:
        qkv = nn.spec.Tensor([LAYERS, batch, tokens, WIDTH], "float32")
        kv_cache = spec.specification(tokens if batch == 1 else batch, "sequences" if batch == 1 else batch)
        return {"qkv": qkv, "kv_cache": kv_cache, "$": {"param_mode": "none", "effect_mode": "none"}}

    exported, _ = Attention(spec).export_tvm(spec={"prefill": forward(1, "tokens"), "decode": forward("batch", 1)})
    return exported


def definition(qkv: Array, count: int, window: int | None) -> Array:
    """Causal attention of the last tokens of `[n, fused heads, dim]`: [count, heads * dim]."""
    turned = rotated(qkv[:, : HEADS + KV_HEADS], np.arange(len(qkv)), ROPE)
    q, k, v = turned[len(qkv) - count :, :HEADS], turned[:, HEADS:], qkv[:, HEADS + KV_HEADS :].astype(np.float64)
    return attention(q, k, v, window).reshape(count, -1)


def test_full_and_sliding_layers_over_a_cache_that_grows_forks_and_shrinks() -> None:
    machine = relax.VirtualMachine(relax.build(module(), resolve_target("cpu").tvm_target()), tvm.cpu())
    layout = KVCacheMetadata(
        num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=DIM,
        dtype="float32", page_size=PAGE_SIZE, sheet_pages=SHEET_PAGES,
    )  # fmt: skip
    pages = KVCache(layout, max_num_sequence=4, max_total_sequence_length=1024, max_new_tokens=256)
    random = np.random.default_rng(0)
    texts: dict[int, Array] = {}

    def forward(*steps: tuple[int, int]) -> None:
        sequences, counts = (list(x) for x in zip(*steps, strict=True))
        total, decodes = sum(counts), max(counts) == 1
        qkv = random.standard_normal((LAYERS, total, HEADS + 2 * KV_HEADS, DIM)).astype(np.float32)
        shape = (LAYERS, total, 1, WIDTH) if decodes else (LAYERS, 1, total, WIDTH)
        state = [tvm_ffi.from_dlpack(np.from_dlpack(tensor)) for tensor in pages.begin_forward(sequences, counts)]
        outputs = machine["decode" if decodes else "prefill"](tvm.runtime.tensor(qkv.reshape(shape)), state)
        found = np.stack([output.numpy().reshape(total, -1) for output in outputs])
        start = 0
        for sequence, count in steps:
            texts[sequence] = np.concatenate([texts[sequence], qkv[:, start : start + count]], 1)
            for layer, window in enumerate(WINDOWS):
                expected = definition(texts[sequence][layer], count, window)
                np.testing.assert_allclose(found[layer, start : start + count], expected, atol=4e-6)
            start += count

    def start() -> int:
        sequence = pages.add()
        texts[sequence] = np.zeros((LAYERS, 0, HEADS + 2 * KV_HEADS, DIM), np.float32)
        return sequence

    def fork(parent: int, position: int) -> int:
        child = pages.fork(parent, position)
        texts[child] = texts[parent][:, :position]
        return child

    one = start()
    forward((one, 17))
    forward((one, 70))  # a prompt in chunks that end inside a page
    forward((one, 1))
    two = fork(one, 37)  # inside a page
    three = start()
    forward((two, 1), (one, 1))
    forward((one, 5), (three, 33), (two, 2))
    four = fork(two, 39)
    forward((four, 1), (one, 1), (two, 1), (three, 1))
    pages.pop(one, 20)
    texts[one] = texts[one][:, :-20]
    forward((one, 4))
    pages.remove(two)
    forward((one, 1), (four, 1), (three, 1))


def test_layers_of_a_kind_share_one_kernel() -> None:
    names = [variable.name_hint for variable, f in module().functions_items() if isinstance(f, tvm.tirx.PrimFunc)]
    assert len([name for name in names if name.startswith("decode_attention")]) == 2
    assert len([name for name in names if name.startswith("prefill_attention")]) == 2
