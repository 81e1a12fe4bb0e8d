"""The Llama family: Llama 2 and 3, TinyLlama, SmolLM, CodeLlama and what else says `"model_type": "llama"`.

Source: transformers, models/llama/modeling_llama.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from reprlib import repr as short_repr
from typing import Any

from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ...runtime.errors import ModelFileError
from ..kernels.kv_cache import PagedKVCache
from ..target.target import KV_CACHE_DTYPES
from .architecture import (
    DEFAULT_MAX_BATCH_SIZE,
    DEFAULT_PREFILL_CHUNK_SIZE,
    Architecture,
    Weight,
    choice,
    positive_int,
    positive_number,
    require,
    size_or_off,
    switch,
)
from .causal_lm import CausalLM
from .modules import Layers
from .rope import RopeParameters, parse_rope


@dataclass(frozen=True)
class LlamaConfig:
    """Field names are MLC's `model_config` (`position_embedding_base` is Hugging Face's `rope_theta`), `kv_cache_dtype`
    is ours."""

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_hidden_layers: int
    rms_norm_eps: float
    vocab_size: int
    tie_word_embeddings: bool
    position_embedding_base: float
    rope_scaling: dict[str, Any] | None
    max_position_embeddings: int
    context_window_size: int
    sliding_window_size: int
    attention_sink_size: int
    prefill_chunk_size: int
    num_key_value_heads: int
    head_dim: int
    attention_bias: bool
    mlp_bias: bool
    max_batch_size: int
    kv_cache_dtype: str = "auto"
    tensor_parallel_shards: int = 1
    pipeline_parallel_stages: int = 1
    disaggregation: bool = False

    @staticmethod
    def from_dict(config: Mapping[str, Any]) -> LlamaConfig:
        """Read Hugging Face's config.json or MLC's `model_config`. Raises ModelFileError naming the field."""
        heads = positive_int(config, "num_attention_heads")
        hidden_size = positive_int(config, "hidden_size")
        key_value_heads = positive_int(config, "num_key_value_heads", heads)
        if heads % key_value_heads:
            raise ModelFileError(
                f"num_attention_heads = {heads}: expected a multiple of num_key_value_heads, {key_value_heads}"
            )
        if config.get("hidden_act", "silu") not in ("silu", "swish"):
            seen = short_repr(config["hidden_act"])
            raise ModelFileError(f"hidden_act = {seen} is not supported for llama: expected 'silu'")
        positions = positive_int(config, "max_position_embeddings", config.get("context_window_size"))
        window = size_or_off(config, "sliding_window_size", "sliding_window")
        if config.get("use_sliding_window") is False:
            window = -1
        context = positive_int(config, "context_window_size", positions)
        head_dim = positive_int(config, "head_dim", hidden_size // heads)
        rope = parse_rope({**config, "head_dim": head_dim})
        return LlamaConfig(
            hidden_size=hidden_size,
            intermediate_size=positive_int(config, "intermediate_size"),
            num_attention_heads=heads,
            num_hidden_layers=positive_int(config, "num_hidden_layers", limit=10_000),
            rms_norm_eps=float(positive_number("rms_norm_eps", require(config, "rms_norm_eps"))),
            vocab_size=positive_int(config, "vocab_size"),
            tie_word_embeddings=switch(config, "tie_word_embeddings"),
            position_embedding_base=rope.theta,
            rope_scaling=rope.scaling,
            max_position_embeddings=positions,
            context_window_size=context,
            sliding_window_size=window,
            attention_sink_size=size_or_off(config, "attention_sink_size"),
            prefill_chunk_size=min(positive_int(config, "prefill_chunk_size", DEFAULT_PREFILL_CHUNK_SIZE), context),
            num_key_value_heads=key_value_heads,
            head_dim=head_dim,
            attention_bias=switch(config, "attention_bias"),
            mlp_bias=switch(config, "mlp_bias"),
            max_batch_size=positive_int(config, "max_batch_size", DEFAULT_MAX_BATCH_SIZE),
            kv_cache_dtype=choice(config, "kv_cache_dtype", KV_CACHE_DTYPES),
        )

    def to_dict(self) -> dict[str, Any]:
        """The `model_config` object of mlc-chat-config.json."""
        return asdict(self)

    @property
    def rope(self) -> RopeParameters:
        """Rotary embedding parameters of every layer."""
        return parse_rope(self.to_dict())


def weights(config: LlamaConfig) -> list[Weight]:
    """The stored parameters: q, k, v and gate, up are fused on axis 0 as MLC stores them."""
    hidden, head_dim = config.hidden_size, config.head_dim
    q, kv = config.num_attention_heads * head_dim, config.num_key_value_heads * head_dim
    intermediate = config.intermediate_size
    table = [
        Weight(
            "model.embed_tokens.weight", ("model.embed_tokens.weight",), (config.vocab_size, hidden), kind="embedding"
        )
    ]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        # name, fused source names, output features, input features, has a bias
        linears = [
            ("self_attn.qkv_proj", ("q_proj", "k_proj", "v_proj"), q + 2 * kv, hidden, config.attention_bias),
            ("self_attn.o_proj", ("o_proj",), hidden, q, config.attention_bias),
            ("mlp.gate_up_proj", ("gate_proj", "up_proj"), 2 * intermediate, hidden, config.mlp_bias),
            ("mlp.down_proj", ("down_proj",), hidden, intermediate, config.mlp_bias),
        ]
        for name, parts, rows, columns, bias in linears:
            block = name.split(".", maxsplit=1)[0]
            sources = [f"{layer}.{block}.{part}" for part in parts]
            weight_sources = tuple(f"{s}.weight" for s in sources)
            table.append(Weight(f"{layer}.{name}.weight", weight_sources, (rows, columns), kind="linear"))
            if bias:
                table.append(Weight(f"{layer}.{name}.bias", tuple(f"{s}.bias" for s in sources), (rows,)))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            table.append(Weight(f"{layer}.{norm}.weight", (f"{layer}.{norm}.weight",), (hidden,)))
    table.append(Weight("model.norm.weight", ("model.norm.weight",), (hidden,)))
    if not config.tie_word_embeddings:
        table.append(Weight("lm_head.weight", ("lm_head.weight",), (config.vocab_size, hidden), kind="head"))
    return table


class LlamaMLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        self.gate_up_proj = layers.linear(config.hidden_size, 2 * config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = layers.linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.silu_mul = layers.silu_mul(config.intermediate_size)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """[batch, seq, hidden] -> the same, added to `residual`."""
        return self.down_proj(self.silu_mul(self.gate_up_proj(x)), residual=residual)


class LlamaAttention(nn.Module):
    """Grouped-query attention over the paged KV cache; RoPE is applied by the cache."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        self.window = config.sliding_window_size if config.sliding_window_size > 0 else None
        queries = config.num_attention_heads * config.head_dim
        fused = queries + 2 * config.num_key_value_heads * config.head_dim
        self.qkv_proj = layers.linear(config.hidden_size, fused, bias=config.attention_bias)
        self.o_proj = layers.linear(queries, config.hidden_size, bias=config.attention_bias)

    def forward(self, x: Tensor, residual: Tensor, kv_cache: PagedKVCache, layer: int) -> Tensor:
        """[batch, seq, hidden] -> the same, added to `residual`."""
        output = kv_cache.attention(layer, self.qkv_proj(x), self.window)
        return self.o_proj(output, residual=residual)


class LlamaDecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each with a residual connection."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        self.self_attn = LlamaAttention(config, layers)
        self.mlp = LlamaMLP(config, layers)
        self.input_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, kv_cache: PagedKVCache, layer: int) -> Tensor:
        """[batch, seq, hidden] -> the same."""
        x = self.self_attn(self.input_layernorm(x), x, kv_cache, layer)
        return self.mlp(self.post_attention_layernorm(x), x)


class LlamaModel(nn.Module):
    """The decoder stack."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        self.embed_tokens = layers.embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, layers) for _ in range(config.num_hidden_layers)])
        self.norm = layers.rms_norm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, kv_cache: PagedKVCache) -> Tensor:
        """Embeddings [batch, seq, hidden] -> last hidden states, before the final norm."""
        for i, layer in enumerate(self.layers):
            x = layer(x, kv_cache, i)
        return x


class LlamaForCausalLM(CausalLM):
    """The decoder stack between the token embeddings and the logits."""

    def __init__(self, config: LlamaConfig, layers: Layers) -> None:
        super().__init__(config, layers)
        self.model = LlamaModel(config, layers)
        self.lm_head = None if config.tie_word_embeddings else layers.head(config.hidden_size, config.vocab_size)

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def hidden_states(self, input_embeds: Tensor, kv_cache: PagedKVCache) -> Tensor:
        return self.model(input_embeds, kv_cache)

    def final_norm(self, hidden_states: Tensor) -> Tensor:
        return self.model.norm(hidden_states)

    def logits(self, hidden_states: Tensor) -> Tensor:
        normed = self.final_norm(hidden_states)
        return self.model.embed_tokens.lm_head(normed) if self.lm_head is None else self.lm_head(normed)


ARCHITECTURE = Architecture("llama", LlamaConfig.from_dict, weights, LlamaForCausalLM)
