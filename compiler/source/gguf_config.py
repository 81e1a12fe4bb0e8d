"""config.json, generation_config.json and parameter names, rebuilt from a GGUF file.

The inverse of llama.cpp's convert_hf_to_gguf.py. One row of `ARCHITECTURES` per `general.architecture`.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...runtime.errors import ModelFileError
from .gguf_file import GGUFFile, GGUFTensor, Metadata

_GLOBAL_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_BLOCK_NAME = re.compile(r"blk\.(?P<layer>\d{1,5})\.(?P<part>\w+)\.(?P<kind>weight|bias)")
ROPE_FACTORS_NAME = "rope_freqs.weight"
_ROUNDING = 1e-5  # relative error of stored float32 factors
# Keys that change the computation in ways that no field of config.json says.
_REFUSED_KEYS = {
    "expert_count": "mixture of experts",
    "attention.scale": "an attention scale of its own",
    "attention.clamp_kqv": "clamped queries, keys and values",
    "logit_scale": "a logit scale",
    "residual_scale": "a residual scale",
    "embedding_scale": "an embedding scale",
}


@dataclass(frozen=True)
class Architecture:
    """What `general.architecture` means in Hugging Face's terms."""

    class_name: str
    model_type: str
    block_names: dict[str, str]
    permuted: tuple[str, ...] = ()  # projections whose rows llama.cpp's converter reordered


ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "llama", _LLAMA_BLOCK, permuted=("attn_q", "attn_k")),
}


@dataclass(frozen=True)
class StoredWeight:
    """A tensor of the file; `permuted_heads` is the number of heads to restore the row order of, or 0."""

    tensor: GGUFTensor
    permuted_heads: int


def find_architecture(metadata: Metadata) -> tuple[str, Architecture]:
    """`general.architecture` and its row. Raises ModelFileError."""
    name = metadata.text("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelFileError(
            f"{metadata.path} has architecture {name!r:.100}; GGUF files of these are read: {', '.join(ARCHITECTURES)}"
        )
    return name, ARCHITECTURES[name]


def build_config(file: GGUFFile) -> dict[str, Any]:
    """config.json as Hugging Face's configuration class writes it. Raises ModelFileError."""
    metadata = file.metadata
    key, architecture = find_architecture(metadata)
    for suffix, meaning in _REFUSED_KEYS.items():
        if metadata.values.get(f"{key}.{suffix}"):
            raise ModelFileError(f"{metadata.path} has {key}.{suffix}: {meaning} is not supported for {key}")
    heads, key_value_heads = _heads(metadata, key)
    hidden_size = metadata.integer(f"{key}.embedding_length", low=1)
    head_dim = metadata.integer(f"{key}.attention.key_length", hidden_size // heads, low=2)
    for other in ("attention.value_length", "rope.dimension_count"):
        if (value := metadata.integer(f"{key}.{other}", head_dim)) != head_dim:
            raise ModelFileError(
                f"{metadata.path} has {key}.{other} {value}; only the head size {head_dim} is supported"
            )
    context = metadata.integer(f"{key}.context_length", low=1)
    rope_theta = metadata.number(f"{key}.rope.freq_base", 10000.0)
    return {
        "architectures": [architecture.class_name],
        "model_type": architecture.model_type,
        "hidden_size": hidden_size,
        "intermediate_size": metadata.integer(f"{key}.feed_forward_length", low=1),
        "num_hidden_layers": metadata.integer(f"{key}.block_count", low=1),
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "head_dim": head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": context,
        "rms_norm_eps": metadata.number(f"{key}.attention.layer_norm_rms_epsilon"),
        "rope_theta": rope_theta,
        "rope_scaling": _rope_scaling(file, key, head_dim, rope_theta),
        "attention_bias": "blk.0.attn_q.bias" in file.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in file.tensors,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "vocab_size": _vocabulary_size(file),
        **_token_ids(metadata),
        "torch_dtype": "float32",
    }


def build_generation_config(file: GGUFFile) -> dict[str, Any]:
    """generation_config.json: the special token ids, with every token that ends a turn as `eos_token_id`."""
    ids = _token_ids(file.metadata)
    keys = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
    ends = [ids["eos_token_id"], *(file.metadata.integer(key) for key in keys if key in file.metadata)]
    unique = [token for token in dict.fromkeys(ends) if token is not None]
    return {**ids, "eos_token_id": unique if len(unique) > 1 else ids["eos_token_id"]}


def hugging_face_names(file: GGUFFile) -> dict[str, StoredWeight]:
    """The file's tensors by Hugging Face parameter name, in file order. Raises ModelFileError for unknown ones."""
    key, architecture = find_architecture(file.metadata)
    heads, key_value_heads = _heads(file.metadata, key)
    layers = file.metadata.integer(f"{key}.block_count", low=1)
    result: dict[str, StoredWeight] = {}
    for name, tensor in file.tensors.items():
        if name == ROPE_FACTORS_NAME:
            continue  # became `rope_scaling` of the config
        if name in _GLOBAL_NAMES:
            result[_GLOBAL_NAMES[name]] = StoredWeight(tensor, 0)
            continue
        match = _BLOCK_NAME.fullmatch(name)
        if match is None or match["part"] not in architecture.block_names or int(match["layer"]) >= layers:
            raise ModelFileError(f"{file.path}: tensor {name:.100} does not belong to a {key} model of {layers} layers")
        part = match["part"]
        permuted = (heads if part == "attn_q" else key_value_heads) if part in architecture.permuted else 0
        if permuted and tensor.shape[0] % (2 * permuted):
            raise ModelFileError(
                f"{file.path}: tensor {name} has {tensor.shape[0]} rows, not a multiple of 2 x {permuted} heads"
            )
        target = f"model.layers.{int(match['layer'])}.{architecture.block_names[part]}.{match['kind']}"
        if target in result:
            raise ModelFileError(f"{file.path}: two tensors are called {target}")
        result[target] = StoredWeight(tensor, permuted)
    return result


def _heads(metadata: Metadata, key: str) -> tuple[int, int]:
    """Query heads and key/value heads. Files with one count per layer are refused by the type check."""
    heads = metadata.integer(f"{key}.attention.head_count", low=1, high=1 << 16)
    key_value_heads = metadata.integer(f"{key}.attention.head_count_kv", heads, low=1, high=1 << 16)
    if heads % key_value_heads:
        raise ModelFileError(
            f"{metadata.path} has {heads} attention heads, not a multiple of {key_value_heads} key/value heads"
        )
    return heads, key_value_heads


def _vocabulary_size(file: GGUFFile) -> int:
    """The embedding's rows, which decide; the metadata may count tokens without padding rows."""
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ModelFileError(f"{file.path} has no token_embd.weight matrix: expected a whole model")
    tokens = len(file.metadata.strings("tokenizer.ggml.tokens")) if "tokenizer.ggml.tokens" in file.metadata else 0
    if tokens > embedding.shape[0]:
        raise ModelFileError(f"{file.path} has {tokens} tokens but embeddings for {embedding.shape[0]}")
    return embedding.shape[0]


def _token_ids(metadata: Metadata) -> dict[str, int | None]:
    """Beginning, end and padding ids; SentencePiece files may leave out llama.cpp's defaults 1 and 2."""
    spm = metadata.values.get("tokenizer.ggml.model") == "llama"
    sources = (("bos_token_id", "bos", 1), ("eos_token_id", "eos", 2), ("pad_token_id", "padding", None))
    result: dict[str, int | None] = {}
    for name, key, default in sources:
        key = f"tokenizer.ggml.{key}_token_id"
        # -1 as uint32 is how some converters say "none".
        absent = key not in metadata or metadata.values[key] == 0xFFFFFFFF
        result[name] = (default if spm else None) if absent else metadata.integer(key)
    return result


def _rope_scaling(file: GGUFFile, key: str, head_dim: int, rope_theta: float) -> dict[str, Any] | None:
    metadata, prefix = file.metadata, f"{key}.rope.scaling."
    if (factors := file.tensors.get(ROPE_FACTORS_NAME)) is not None:
        return _llama3_scaling(file, factors, head_dim, rope_theta)
    kind = metadata.text(f"{prefix}type", "linear")  # as llama.cpp: a factor without a type is linear
    factor = metadata.number(f"{prefix}factor", metadata.number(f"{key}.rope.scale_linear", 1.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ModelFileError(f"{metadata.path} has {prefix}type {kind!r:.100}; none, linear and yarn are read")
    if metadata.number(f"{prefix}yarn_log_multiplier", 0.0) or metadata.number(f"{prefix}yarn_ext_factor", 1.0) not in (
        1.0,
        -1.0,
    ):
        raise ModelFileError(
            f"{metadata.path} has a YaRN variant (yarn_log_multiplier, yarn_ext_factor) that is not supported"
        )
    scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    if f"{prefix}original_context_length" in metadata:
        scaling["original_max_position_embeddings"] = metadata.integer(f"{prefix}original_context_length", low=1)
    for name in ("beta_fast", "beta_slow"):
        if f"{prefix}yarn_{name}" in metadata:
            scaling[name] = metadata.number(f"{prefix}yarn_{name}")
    attention = metadata.number(f"{prefix}yarn_attn_factor", metadata.number(f"{prefix}attn_factor", 1.0))
    if attention != 1.0:  # ggml multiplies it onto YaRN's own factor; Hugging Face's replaces that
        scaling["attention_factor"] = attention * (0.1 * math.log(max(factor, 1.0)) + 1.0)
    return scaling


def llama3_factors(
    head_dim: int, rope_theta: float, factor: float, low: float, high: float, original: float
) -> np.ndarray:
    """What llama.cpp's converter stores in `rope_freqs.weight`: the divisor of each rotary frequency, [head_dim / 2].

    Llama 3.1's rule (`_compute_llama3_parameters` in transformers' modeling_rope_utils.py): long wavelengths are
    divided by `factor`, short ones kept, those between blended.
    """
    wavelength = 2 * math.pi * rope_theta ** (np.arange(0, head_dim, 2, dtype=np.float64) / head_dim)
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    return 1.0 / ((1.0 - smooth) / factor + smooth)


def _llama3_scaling(file: GGUFFile, tensor: GGUFTensor, head_dim: int, rope_theta: float) -> dict[str, Any] | None:
    """`rope_scaling` that reproduces the stored factors, or a refusal.

    The rule depends on original/low and original/high alone, so low_freq_factor = 1 loses nothing.
    """
    if tensor.shape != (head_dim // 2,) or tensor.block_type.name != "F32":
        raise ModelFileError(
            f"{file.path}: {ROPE_FACTORS_NAME} is {tensor.block_type.name} {list(tensor.shape)},"
            f" expected F32 [{head_dim // 2}]"
        )
    stored = np.fromfile(file.path, "<f4", count=head_dim // 2, offset=tensor.offset).astype(np.float64)
    if not np.all(np.isfinite(stored)) or stored.min() < 1.0 - _ROUNDING or stored.max() > 1e4:
        raise ModelFileError(f"{file.path}: {ROPE_FACTORS_NAME} holds factors outside 1 to 10000")
    factor = float(np.round(stored.max(), 4))
    if factor == 1.0:
        return None
    candidates = [(4.0, 8192.0), *_fit_llama3(stored, factor, head_dim, rope_theta)]
    for high, original in candidates:
        if high > 1 and np.allclose(
            llama3_factors(head_dim, rope_theta, factor, 1.0, high, original), stored, rtol=_ROUNDING, atol=0
        ):
            return {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": high,
                    "original_max_position_embeddings": round(original)}  # fmt: skip
    raise ModelFileError(
        f"{file.path}: the factors of {ROPE_FACTORS_NAME} do not follow Llama 3's rule; other rules are not read"
    )


def _fit_llama3(stored: np.ndarray, factor: float, head_dim: int, rope_theta: float) -> list[tuple[float, float]]:
    """(high_freq_factor, original context) for low_freq_factor = 1, from the blended frequencies; they are linear."""
    blended = (stored > 1.0 + _ROUNDING) & (stored < factor * (1.0 - _ROUNDING))
    if blended.sum() < 2:
        return []
    inverse_wavelength = rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)[blended] / (2 * math.pi)
    smooth = (1.0 / stored[blended] - 1.0 / factor) / (1.0 - 1.0 / factor)
    slope, offset = np.polyfit(inverse_wavelength, smooth, 1)  # original / (high - 1) and -1 / (high - 1)
    if offset >= 0:
        return []
    high = 1.0 - 1.0 / offset
    return [(float(np.round(high, 4)), float(np.round(slope * (high - 1.0))))]
