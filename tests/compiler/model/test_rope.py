"""RoPE parameters are read from every spelling of a config, and frequencies equal those of transformers."""

from typing import Any

import numpy as np
import pytest
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from mlc_llm.compiler.model.rope import inverse_frequencies, parse_rope
from mlc_llm.runtime.errors import ModelFileError

BASE: dict[str, Any] = {"hidden_size": 576, "num_attention_heads": 9, "max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
YARN = {"factor": 4.0, "original_max_position_embeddings": 1024}
TOLERANCE = 5e-7  # torch's float32 power is off by an ulp or two itself, and the interpolations carry it on
SCALINGS: list[dict[str, Any]] = [
    {"rope_type": "linear", "factor": 2.5},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "llama3", **LLAMA3},
    {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    {"rope_type": "yarn", **YARN},
    {"rope_type": "yarn", **YARN, "beta_fast": 16, "beta_slow": 2, "truncate": False},
    {"rope_type": "yarn", **YARN, "attention_factor": 0.75},
    {"rope_type": "yarn", **YARN, "mscale": 1.0, "mscale_all_dim": 0.8},
]


def reference(config: dict[str, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """What transformers computes; its own config class reads the fields."""
    hf = transformers.LlamaConfig(**config)
    rope_type = hf.rope_parameters["rope_type"]
    if rope_type == "default":
        frequencies, factor = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(hf).inv_freq, 1.0
    else:
        frequencies, factor = ROPE_INIT_FUNCTIONS[rope_type](hf, "cpu", seq_len=config.get("context_window_size"))
    return frequencies.numpy(), factor


@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda scaling: scaling["rope_type"])
@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_frequencies_equal_those_of_transformers(scaling: dict[str, Any], theta: float) -> None:
    config = {**BASE, "rope_theta": theta, "rope_scaling": scaling}
    expected, factor = reference({**BASE, "rope_parameters": {"rope_theta": theta, **scaling}})
    frequencies, attention_factor = inverse_frequencies(parse_rope(config))
    assert frequencies.dtype == np.float32
    np.testing.assert_allclose(frequencies, expected, rtol=TOLERANCE)
    assert attention_factor == pytest.approx(factor, rel=1e-7)


@pytest.mark.parametrize("head_dim", [64, 80, 128])
def test_default_frequencies_equal_those_of_transformers(head_dim: int) -> None:
    config = {**BASE, "head_dim": head_dim}
    expected, _ = reference({**config, "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}})
    frequencies, factor = inverse_frequencies(parse_rope({**config, "rope_theta": 100000.0}))
    np.testing.assert_allclose(frequencies, expected, rtol=TOLERANCE)
    assert factor == 1.0


def test_dynamic_scaling_is_that_of_the_compiled_context() -> None:
    config = {**BASE, "rope_theta": 1e4, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    longer = {**config, "context_window_size": 16384}
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4}
    expected, _ = reference({**BASE, "context_window_size": 16384, "rope_parameters": parameters})
    frequencies, _ = inverse_frequencies(parse_rope(longer))
    np.testing.assert_allclose(frequencies, expected, rtol=TOLERANCE)
    assert (frequencies[1:] < inverse_frequencies(parse_rope(config))[0][1:]).all()


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"position_embedding_base": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=["transformers v5", "v4", "older v4", "MLC"],
)
def test_every_spelling_reads_the_same(spelling: dict[str, Any]) -> None:
    rope = parse_rope({**BASE, **spelling})
    assert (rope.theta, rope.head_dim, rope.rotary_dim) == (5e5, 64, 64)
    assert rope.scaling == {"rope_type": "linear", "factor": 2.0}


def test_a_config_without_scaling_has_none() -> None:
    for spelling in ({}, {"rope_scaling": None}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}):
        rope = parse_rope({**BASE, **spelling})
        assert (rope.theta, rope.scaling, rope.context) == (1e4, None, 4096)


def test_a_partial_rotary_factor_rotates_the_first_dimensions() -> None:
    rope = parse_rope({**BASE, "partial_rotary_factor": 0.5})
    assert rope.rotary_dim == 32
    assert inverse_frequencies(rope)[0].shape == (16,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, "'longrope' is not supported: expected one of default, linear"),
        ({"rope_scaling": {"rope_type": "linear"}}, "factor = None: expected a positive number"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": "4"}}, "factor = '4': expected a positive number"),
        ({"rope_theta": -1.0}, "rope_theta = -1.0: expected a positive number"),
        ({"partial_rotary_factor": 0.33}, "rotates 21 dimensions: expected an even number"),
    ],
)
def test_what_cannot_be_compiled_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        parse_rope({**BASE, **fields})
