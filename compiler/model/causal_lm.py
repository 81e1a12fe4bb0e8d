"""The functions that a library of a decoder-only language model exports, for any architecture."""
# mypy: disable-error-code="misc,no-any-return"

from __future__ import annotations

from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from ..kernels.cpu.layers import last_row, select_rows
from ..kernels.kv_cache import PagedKVCache
from .modules import Layers


class CausalLM(nn.Module):
    """Base of every decoder-only model. A subclass brings `embed`, `hidden_states`, `logits` and the cache."""

    def __init__(self, config: Any, layers: Layers) -> None:
        self.config, self.layers = config, layers

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids int32 [seq] -> embeddings [seq, hidden]."""
        raise NotImplementedError

    def hidden_states(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> Tensor:
        """Embeddings [batch, seq, hidden] -> the last hidden states [batch, seq, hidden], before the final norm."""
        raise NotImplementedError

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [batch, seq, hidden] -> float32 logits [batch, seq, vocab]."""
        raise NotImplementedError

    def create_tir_paged_kv_cache(self, max_batch_size: tirx.Var, max_total_seq_len: tirx.Var,
                                  prefill_chunk_size: tirx.Var, page_size: tirx.Var,
                                  support_sliding_window: tirx.Var) -> PagedKVCache:  # fmt: skip
        """The paged KV cache that all forward functions take."""
        raise NotImplementedError

    def prefill(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """One sequence: [1, seq, hidden] -> logits of the last position [1, 1, vocab]."""
        hidden = self.hidden_states(input_embeds, kv_cache)
        features = hidden.shape[2]
        kernel = self.layers.kernel(("last_row", features), last_row, features)
        last = op.tensor_ir_op(kernel, "last_row", [hidden], Tensor.placeholder((1, 1, features), "float32"))
        return self.logits(last), kv_cache

    def decode(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """One sequence, one token: [1, 1, hidden] -> logits [1, 1, vocab]."""
        return self.logits(self.hidden_states(input_embeds, kv_cache)), kv_cache

    def batch_prefill(
        self, input_embeds: Tensor, logit_positions: Tensor, kv_cache: PagedKVCache
    ) -> tuple[Tensor, PagedKVCache]:
        """Several sequences end to end [1, total, hidden], int32 [count] -> logits [1, count, vocab]."""
        hidden = self.hidden_states(input_embeds, kv_cache)
        features = hidden.shape[2]
        kernel = self.layers.kernel(("select_rows", features), select_rows, features)
        out = Tensor.placeholder((1, logit_positions.shape[0], features), "float32")
        selected = op.tensor_ir_op(kernel, "select_rows", [hidden, logit_positions], out)
        return self.logits(selected), kv_cache

    def batch_decode(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """One token of each sequence: [batch, 1, hidden] -> logits [batch, 1, vocab]."""
        return self.decode(input_embeds, kv_cache)

    def batch_verify(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> tuple[Tensor, PagedKVCache]:
        """Logits of every position: [1, total, hidden] -> [1, total, vocab]."""
        return self.decode(input_embeds, kv_cache)

    def specification(self) -> dict[str, Any]:
        """Argument shapes of the exported functions, for `export_tvm`."""
        hidden, dtype = self.config.hidden_size, self.layers.target.activation_dtype
        packed = {"param_mode": "packed", "effect_mode": "none"}
        cache = nn.spec.Object(object_type=PagedKVCache)

        def embeds(batch: int | str, seq: int | str) -> Any:
            return nn.spec.Tensor([batch, seq, hidden], dtype)

        positions = nn.spec.Tensor(["count"], "int32")
        return {
            "embed": {"input_ids": nn.spec.Tensor(["seq_len"], "int32"), "$": packed},
            "prefill": {"input_embeds": embeds(1, "seq_len"), "kv_cache": cache, "$": packed},
            "decode": {"input_embeds": embeds(1, 1), "kv_cache": cache, "$": packed},
            "batch_prefill": {
                "input_embeds": embeds(1, "seq_len"),
                "logit_positions": positions,
                "kv_cache": cache,
                "$": packed,
            },
            "batch_decode": {"input_embeds": embeds("batch_size", 1), "kv_cache": cache, "$": packed},
            "batch_verify": {"input_embeds": embeds(1, "seq_len"), "kv_cache": cache, "$": packed},
            "create_tir_paged_kv_cache": {
                "max_batch_size": int,
                "max_total_seq_len": int,
                "prefill_chunk_size": int,
                "page_size": int,
                "support_sliding_window": int,
                "$": {"param_mode": "none", "effect_mode": "none"},
            },
        }
