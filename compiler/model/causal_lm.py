"""The functions that a library of a decoder-only language model exports, for any architecture."""
# mypy: disable-error-code="misc,no-any-return"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from ..kernels.cache_kernels import CacheShape
from ..kernels.call import call_kernel
from ..kernels.kv_cache import CacheSpec, PagedKVCache
from ..kernels.operations import SETTINGS
from .modules import Layers


class CausalLM(nn.Module):
    """Base of every decoder-only model. A subclass brings `embed`, `hidden_states`, `final_norm` and `logits`.

    The exported functions take token ids, int32; their `kv_cache` is the tuple of tensors that kernels/kv_cache.py
    describes.
    """

    def __init__(self, config: Any, layers: Layers) -> None:
        self.config, self.layers = config, layers
        cache = CacheShape(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.rope,
            layers.target.kv_dtype(layers.scheme.model_dtype, config.kv_cache_dtype),
        )
        self.cache = CacheSpec(layers.family.cache_kernels, cache, layers.target, layers.table.activation_bits)

    def embed(self, input_ids: Tensor) -> Tensor:
        """Token ids int32 [seq] -> embeddings [seq, hidden]."""
        raise NotImplementedError

    def hidden_states(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> Tensor:
        """Embeddings [batch, seq, hidden] -> the last hidden states [batch, seq, hidden], before the final norm."""
        raise NotImplementedError

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        """Hidden states [batch, seq, hidden] -> those that logits and embeddings are made of."""
        raise NotImplementedError

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Hidden states, not normed yet, [batch, seq, hidden] -> float32 logits [batch, seq, vocab]."""
        raise NotImplementedError

    def prefill(self, input_ids: Tensor, kv_cache: Sequence[Tensor]) -> Tensor:
        """The new tokens of one sequence [seq] -> logits after the last one [1, 1, vocab]."""
        hidden = self._hidden_states(input_ids, kv_cache)
        features = hidden.shape[2]
        kernel = self.layers.table.last_row(features)
        last = call_kernel(kernel, "last_row", [hidden], Tensor.placeholder((1, 1, features), "float32"))
        return self.logits(last)

    def decode(self, input_ids: Tensor, settings: Tensor, uniforms: Tensor, tokens: Tensor,
               kv_cache: Sequence[Tensor]) -> Tensor:  # fmt: skip
        """One token of one sequence [1] -> logits [1, vocab], and the next token: see `families.Family`."""
        return self.batch_decode(input_ids, settings, uniforms, tokens, kv_cache)

    def batch_decode(self, input_ids: Tensor, settings: Tensor, uniforms: Tensor, tokens: Tensor,
                     kv_cache: Sequence[Tensor]) -> Tensor:  # fmt: skip
        """One token of each sequence [batch] -> logits [batch, vocab], and the next tokens: see `families.Family`."""
        logits = self.logits(self._hidden_states(input_ids, kv_cache, decodes=True))
        return self.layers.family.sample(self.layers.target, logits, settings, uniforms, tokens)

    def adjust_and_sample(self, logits: Tensor, words: Tensor, settings: Tensor, uniforms: Tensor,
                          tokens: Tensor) -> Tensor:  # fmt: skip
        """The tokens after logits [batch, vocab] that a pass has left on the device, when these have been changed as
        requests ask for. Returns the changed logits: see `families.Family`."""
        family = self.layers.family
        assert family.adjust is not None
        return family.sample(self.layers.target, family.adjust(logits, words), settings, uniforms, tokens)

    def batch_verify(self, input_ids: Tensor, kv_cache: Sequence[Tensor]) -> Tensor:
        """Logits after every token: [total] -> [1, total, vocab]."""
        return self.logits(self._hidden_states(input_ids, kv_cache))

    def batch_hidden_states(self, input_ids: Tensor, kv_cache: Sequence[Tensor]) -> Tensor:
        """What embeddings of texts are made of: [total] -> normed hidden states [1, total, hidden]."""
        return self.final_norm(self._hidden_states(input_ids, kv_cache))

    def _hidden_states(self, input_ids: Tensor, kv_cache: Sequence[Tensor], decodes: bool = False) -> Tensor:
        embeds = self.embed(input_ids)
        tokens, hidden = embeds.shape
        embeds = op.reshape(embeds, (tokens, 1, hidden) if decodes else (1, tokens, hidden))
        return self.hidden_states(embeds, PagedKVCache(self.cache, kv_cache, decodes))

    def specification(self) -> dict[str, Any]:
        """Argument shapes of the exported functions, for `export_tvm`."""
        packed = {"param_mode": "packed", "effect_mode": "none"}

        def forward(count: int | str, sequences: int | str, **others: Any) -> dict[str, Any]:
            kv_cache = self.cache.specification(count, sequences)
            return {"input_ids": nn.spec.Tensor([count], "int32"), **others, "kv_cache": kv_cache, "$": packed}

        def sampling(rows: int | str) -> dict[str, Any]:
            dtype = self.layers.family.sampling_dtype
            return {"settings": nn.spec.Tensor([rows, len(SETTINGS)], dtype), "uniforms": nn.spec.Tensor([rows], dtype),
                    "tokens": nn.spec.Tensor([rows], "int32")}  # fmt: skip

        def decode(rows: int | str) -> dict[str, Any]:
            return forward(rows, rows, **sampling(rows))

        after_pass = {
            "logits": nn.spec.Tensor(["batch_size", self.config.vocab_size], "float32"),
            "words": nn.spec.Tensor(["words"], "int32"),
            **sampling("batch_size"),
            "$": {"param_mode": "none", "effect_mode": "none"},
        }
        others = {} if self.layers.family.adjust is None else {"adjust_and_sample": after_pass}
        return {
            "prefill": forward("seq_len", 1),
            "decode": decode(1),
            "batch_decode": decode("batch_size"),
            "batch_verify": forward("seq_len", "batch_size"),
            "batch_hidden_states": forward("seq_len", "batch_size"),
            **others,
        }
