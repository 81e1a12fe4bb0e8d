"""config.json is rebuilt from metadata as the model's authors wrote it, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mlc_llm.compiler.source import Source, open_source
from mlc_llm.runtime.errors import ModelFileError

Open = Callable[..., Source]


@pytest.fixture
def opened(tmp_path: Path, write_gguf: Any, metadata: dict[str, Any], tensors: dict[str, np.ndarray]) -> Open:
    """opened(tensors={...}, key=value...): the tiny llama with these changes; None removes a key."""

    def open_(changes: dict[str, Any] | None = None, *, more: dict[str, Any] | None = None, **options: Any) -> Source:
        values = {key: value for key, value in (metadata | (changes or {})).items() if value is not None}
        return open_source(str(write_gguf(tmp_path / "x.gguf", values, tensors | (more or {}), **options)))

    return open_


def test_the_config_is_hugging_faces(opened: Open, sizes: Any) -> None:
    assert opened().config == {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": sizes.hidden,
        "intermediate_size": sizes.intermediate,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,  # exactly: stored as float32
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "vocab_size": sizes.vocab,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }


def test_the_head_size_may_differ_from_hidden_size_over_heads(opened: Open) -> None:
    changes = {"llama.attention.key_length": 32, "llama.attention.value_length": 32, "llama.rope.dimension_count": 32}
    assert opened(changes).config["head_dim"] == 32


def test_every_token_that_ends_a_turn_is_in_the_generation_config(opened: Open) -> None:
    assert opened().generation_config == {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    changes = {"tokenizer.ggml.eot_token_id": 5, "tokenizer.ggml.eom_token_id": 2, "tokenizer.ggml.padding_token_id": 7}
    assert opened(changes).generation_config == {"bos_token_id": 1, "eos_token_id": [2, 5], "pad_token_id": 7}


def test_no_token_is_said_as_minus_one(opened: Open) -> None:
    assert opened({"tokenizer.ggml.padding_token_id": 0xFFFFFFFF}).config["pad_token_id"] is None


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "none"}, None),
        ({"type": "linear", "factor": 1.0}, None),
        ({"type": "linear", "factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
        ({"factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
        ({"type": "yarn", "factor": 4.0, "original_context_length": 32768},
         {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}),
        ({"type": "yarn", "factor": 4.0, "yarn_beta_fast": 16.0, "yarn_beta_slow": 2.0},
         {"rope_type": "yarn", "factor": 4.0, "beta_fast": 16.0, "beta_slow": 2.0}),
        ({"type": "yarn", "factor": 4.0, "attn_factor": 0.5},
         {"rope_type": "yarn", "factor": 4.0, "attention_factor": 0.5 * (0.1 * np.log(4.0) + 1)}),
    ],
)  # fmt: skip
def test_rope_scaling_from_metadata(changes: dict[str, Any], expected: Any, opened: Open) -> None:
    assert (
        opened({f"llama.rope.scaling.{key}": value for key, value in changes.items()}).config["rope_scaling"]
        == expected
    )


def test_the_old_name_of_linear_scaling(opened: Open) -> None:
    assert opened({"llama.rope.scale_linear": 8.0}).config["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def rope_factors(scaling: dict[str, Any], head_dim: int, rope_theta: float) -> np.ndarray:
    """What llama.cpp's converter stores for a llama3 rope_scaling, from transformers' frequencies."""
    config = LlamaConfig(
        hidden_size=head_dim * 4,
        num_attention_heads=4,
        max_position_embeddings=131072,
        rope_parameters={"rope_theta": rope_theta, **scaling},
    )
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
    return (plain / scaled.numpy()).astype(np.float32)


@pytest.mark.parametrize(
    ("factor", "high", "original", "head_dim", "theta"),
    [
        (8.0, 4.0, 8192, 128, 500000.0),  # Llama 3.1
        (32.0, 4.0, 8192, 64, 500000.0),  # Llama 3.2
        (8.0, 4.0, 8192, 16, 10000.0),
        (16.0, 8.0, 4096, 128, 500000.0),
        (4.0, 3.0, 2048, 64, 10000.0),
    ],
)
def test_llama3_scaling_is_recovered_from_its_factors(
    factor: float, high: float, original: int, head_dim: int, theta: float, opened: Open
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }
    changes = {"llama.attention.key_length": head_dim, "llama.attention.value_length": head_dim}
    stored = rope_factors(scaling, head_dim, theta)
    source = opened({**changes, "llama.rope.freq_base": theta}, more={"rope_freqs.weight": stored})
    assert source.config["rope_scaling"] == pytest.approx(scaling)
    assert not any("rope" in name for name in source.tensors)


def test_factors_of_one_scale_nothing(opened: Open) -> None:
    assert opened(more={"rope_freqs.weight": np.ones(8, np.float32)}).config["rope_scaling"] is None


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"llama.block_count": None}, {}, "has no metadata key llama.block_count"),
        ({"llama.block_count": 0}, {}, "llama.block_count is '0', expected an integer between 1 and"),
        ({"llama.block_count": "two"}, {}, "llama.block_count is 'two', expected an integer"),
        ({"llama.block_count": 1}, {}, "tensor blk.1.attn_norm.weight does not belong to a llama model of 1 layers"),
        ({"llama.attention.head_count": [4, 2]}, {}, "llama.attention.head_count is '[4 2]', expected an integer"),
        ({"llama.attention.head_count_kv": 3}, {}, "has 4 attention heads, not a multiple of 3 key/value heads"),
        ({"llama.attention.head_count": 1 << 20}, {}, "expected an integer between 1 and 65536"),
        ({"llama.attention.head_count": 48, "llama.attention.head_count_kv": 2}, {}, "key_length is '1', expected"),
        ({"llama.attention.layer_norm_rms_epsilon": float("nan")}, {}, "is 'nan', expected a finite number"),
        ({"llama.attention.value_length": 8}, {}, "has llama.attention.value_length 8; only the head size 16"),
        ({"llama.rope.dimension_count": 8}, {}, "has llama.rope.dimension_count 8; only the head size 16"),
        ({"llama.expert_count": 8}, {}, "has llama.expert_count: mixture of experts is not supported"),
        ({"llama.attention.scale": 0.5}, {}, "an attention scale of its own is not supported"),
        ({"llama.rope.scaling.type": "longrope"}, {}, "'longrope'; none, linear and yarn are read"),
        ({"llama.rope.scaling.type": "yarn", "llama.rope.scaling.yarn_log_multiplier": 0.1}, {}, "has a YaRN variant"),
        ({"tokenizer.ggml.eos_token_id": "2"}, {}, "tokenizer.ggml.eos_token_id is '2', expected an integer"),
        ({"tokenizer.ggml.tokens": ["x"] * 300}, {}, "has 300 tokens but embeddings for 265"),
        ({}, {"blk.0.attn_gate.weight": np.ones(4, np.float32)}, "tensor blk.0.attn_gate.weight does not belong"),
        ({}, {"blk.00.attn_norm.weight": np.ones(4, np.float32)}, "two tensors are called model.layers.0."),
        ({}, {"blk.0.attn_q.bias": np.ones(12, np.float32)}, "attn_q.bias has 12 rows, not a multiple of 2 x 4 heads"),
        ({}, {"rope_freqs.weight": np.ones(7, np.float32)}, "rope_freqs.weight is F32 [7], expected F32 [8]"),
        ({}, {"rope_freqs.weight": np.zeros(8, np.float32)}, "holds factors outside 1 to 10000"),
        ({}, {"rope_freqs.weight": np.full(8, 2, np.float32)}, "do not follow Llama 3's rule"),
        ({}, {"rope_freqs.weight": np.arange(1, 9, dtype=np.float32)[::-1].copy()}, "do not follow Llama 3's rule"),
    ],
)  # fmt: skip
def test_what_cannot_be_rebuilt_is_refused(
    changes: dict[str, Any], more: dict[str, Any], message: str, opened: Open
) -> None:
    with pytest.raises(ModelFileError) as error:
        opened(changes, more=more)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_other_architectures_are_refused(opened: Open) -> None:
    with pytest.raises(ModelFileError, match="has architecture 'falcon'; GGUF files of these are read: llama"):
        opened(architecture="falcon")


def test_embeddings_are_required(tmp_path: Path, write_gguf: Any, metadata: dict[str, Any]) -> None:
    path = write_gguf(tmp_path / "x.gguf", metadata, {"output_norm.weight": np.ones(64, np.float32)})
    with pytest.raises(ModelFileError, match=r"has no token_embd.weight matrix"):
        open_source(str(path))
