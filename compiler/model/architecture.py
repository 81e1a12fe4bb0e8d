"""What a model architecture brings: a config, the table of its weights and its modules."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ...runtime.errors import ModelFileError

if TYPE_CHECKING:
    import numpy as np

DEFAULT_PREFILL_CHUNK_SIZE = 2048
DEFAULT_MAX_BATCH_SIZE = 128

WeightKind = Literal["linear", "embedding", "head", "plain"]


@dataclass(frozen=True)
class Weight:
    """One parameter of the model as it is stored.

    `sources` are Hugging Face names; their tensors are concatenated on axis 0 (q, k, v or gate, up) before anything
    else.
    `kind` tells the quantization scheme what it may do: only linear, embedding and head weights are ever quantized;
    then `x.weight` becomes `x.q_weight` and `x.q_scale`.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    kind: WeightKind = "plain"
    transform: "Callable[[np.ndarray], np.ndarray] | None" = None


class ModelConfig(Protocol):
    """The part of every architecture's config that the rest of the compiler reads."""

    vocab_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    context_window_size: int
    sliding_window_size: int
    attention_sink_size: int
    prefill_chunk_size: int
    max_batch_size: int
    kv_cache_dtype: str

    def to_dict(self) -> dict[str, Any]:
        """The `model_config` object of mlc-chat-config.json; `from_dict` of the architecture reads it back."""


@dataclass(frozen=True)
class Architecture:
    """A row of the registry. `from_dict` reads Hugging Face's config.json and MLC's `model_config` alike."""

    model_type: str
    from_dict: Callable[[Mapping[str, Any]], Any]
    weights: Callable[[Any], list[Weight]]
    build: Callable[..., Any]  # build(config, builder) -> nn.Module; see modules.py


def require(config: Mapping[str, Any], name: str, *alternatives: str) -> Any:
    """The value of a config field under the first of its spellings. Raises ModelFileError that names the field."""
    for key in (name, *alternatives):
        if config.get(key) is not None:
            return config[key]
    raise ModelFileError(f"{name} is missing")


def positive_int(config: Mapping[str, Any], name: str, default: int | None = None, *, limit: int = 1 << 24) -> int:
    """A config field that must be an integer in 1..limit. Raises ModelFileError that names field and value."""
    value = config.get(name)
    if value is None:
        value = require(config, name) if default is None else default
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= limit:
        raise ModelFileError(f"{name} = {short_repr(value)}: expected an integer in 1..{limit}")
    return value


def positive_number(name: str, value: Any) -> float:
    """`value` of the config field `name`, if it is a number above 0. Raises ModelFileError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ModelFileError(f"{name} = {short_repr(value)}: expected a positive number")
    return value


def switch(config: Mapping[str, Any], name: str) -> bool:
    """A config field that must be true or false; absent is false. Raises ModelFileError."""
    value = config.get(name)
    if not isinstance(value, bool | None):
        raise ModelFileError(f"{name} = {short_repr(value)}: expected true or false")
    return bool(value)


def choice(config: Mapping[str, Any], name: str, choices: Sequence[str]) -> str:
    """A config field that must be one of some words; absent is the first. Raises ModelFileError."""
    value = config.get(name)
    if value is not None and value not in choices:
        raise ModelFileError(f"{name} = {short_repr(value)}: expected {' or '.join(choices)}")
    return choices[0] if value is None else str(value)


def size_or_off(config: Mapping[str, Any], name: str, *alternatives: str) -> int:
    """A size that can be turned off: null, 0 and -1 are all -1. Raises ModelFileError."""
    key = next((key for key in (name, *alternatives) if key in config), name)
    return -1 if config.get(key) in (None, 0, -1) else positive_int(config, key)
