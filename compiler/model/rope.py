"""Rotary position embedding: the inverse frequencies of every RoPE type that we compile.

Source: transformers, modeling_rope_utils.py (`ROPE_INIT_FUNCTIONS`); the arithmetic is done in float32 in the same
order.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from reprlib import repr as short_repr
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import ModelFileError
from .architecture import positive_number

Frequencies = tuple[NDArray[np.float32], float]

# The fields that a RoPE type cannot do without.
_REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}
# Fields that are numbers where they are given.
_NUMBERS = frozenset(
    ("original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor", "mscale", "mscale_all_dim")
)


@dataclass(frozen=True)
class RopeParameters:
    """Rotary embedding of one model.

    `scaling` holds `rope_type` and that type's own fields, None for the default type. `original_context` is
    `max_position_embeddings` of the configuration, `context` the window that is compiled (only `dynamic` reads it).
    """

    theta: float
    head_dim: int
    rotary_dim: int
    scaling: dict[str, Any] | None
    original_context: int
    context: int


def parse_rope(config: Mapping[str, Any]) -> RopeParameters:
    """Read the RoPE fields of a config: transformers v5 (`rope_parameters`), v4 (`rope_theta`, `rope_scaling` with
    `rope_type` or the older `type`) or MLC's `model_config` (`position_embedding_base`).

    Raises ModelFileError that names the field, the value and what is supported.
    """
    given = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(given, Mapping):
        raise ModelFileError(f"rope_scaling = {short_repr(given)}: expected an object")
    scaling = {name: value for name, value in given.items() if value is not None}
    rope_type = scaling.pop("rope_type", None) or scaling.get("type") or "default"
    scaling.pop("type", None)
    if not isinstance(rope_type, str) or rope_type not in _REQUIRED:
        seen = short_repr(rope_type)
        raise ModelFileError(f"rope_type = {seen} is not supported: expected one of {', '.join(_REQUIRED)}")
    theta = scaling.pop("rope_theta", None) or config.get("rope_theta") or config.get("position_embedding_base") or 1e4
    partial = scaling.pop("partial_rotary_factor", None) or config.get("partial_rotary_factor") or 1.0
    theta, partial = positive_number("rope_theta", theta), positive_number("partial_rotary_factor", partial)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    rotary_dim = int(head_dim * partial)
    if not 2 <= rotary_dim <= head_dim or rotary_dim % 2:
        raise ModelFileError(
            f"partial_rotary_factor = {partial} of head_dim = {head_dim} rotates {rotary_dim} dimensions:"
            " expected an even number in 2..head_dim"
        )
    context = config.get("context_window_size") or config.get("max_position_embeddings") or 2048
    original = config.get("max_position_embeddings") or context
    for field in {**dict.fromkeys(_REQUIRED[rope_type]), **dict.fromkeys(scaling.keys() & _NUMBERS)}:
        positive_number(f"rope_scaling's {field}", scaling.get(field))
    if rope_type == "llama3" and scaling["high_freq_factor"] <= scaling["low_freq_factor"]:
        raise ModelFileError(f"high_freq_factor = {scaling['high_freq_factor']}: expected more than low_freq_factor, "
                             f"{scaling['low_freq_factor']}")  # fmt: skip
    if rope_type in ("yarn", "llama3"):
        inner = config.get("original_max_position_embeddings") or scaling.get("original_max_position_embeddings")
        scaling["original_max_position_embeddings"] = positive_number(
            "original_max_position_embeddings", inner or original
        )
    return RopeParameters(
        theta=theta,
        head_dim=head_dim,
        rotary_dim=rotary_dim,
        scaling=None if rope_type == "default" else {"rope_type": rope_type, **scaling},
        original_context=original,
        context=context,
    )


def inverse_frequencies(rope: RopeParameters) -> Frequencies:
    """The inverse frequencies, float32 `[rotary_dim / 2]`, and the factor that cosines and sines are multiplied by."""
    scaling = rope.scaling or {"rope_type": "default"}
    return _INVERSE_FREQUENCIES[scaling["rope_type"]](rope, scaling)


def _periods(theta: float, rotary_dim: int) -> NDArray[np.float32]:
    """theta^(2i / rotary_dim); the power is taken in float64 and rounded once, within an ulp of torch's float32."""
    exponents = np.arange(0, rotary_dim, 2, dtype=np.float32) / np.float32(rotary_dim)
    return np.power(theta, exponents.astype(np.float64)).astype(np.float32)


def _default(rope: RopeParameters, scaling: dict[str, Any]) -> Frequencies:
    return np.float32(1) / _periods(rope.theta, rope.rotary_dim), 1.0


def _linear(rope: RopeParameters, scaling: dict[str, Any]) -> Frequencies:
    return _default(rope, scaling)[0] / np.float32(scaling["factor"]), 1.0


def _dynamic(rope: RopeParameters, scaling: dict[str, Any]) -> Frequencies:
    """NTK scaling for the compiled context length: transformers recomputes the base whenever a sequence grows, which
    leaves the cached keys rotated by older bases; a compiled library uses the base of its full window throughout."""
    factor, dim = scaling["factor"], rope.rotary_dim
    length = max(rope.context, rope.original_context)
    stretch = (factor * length / rope.original_context) - (factor - 1)
    return np.float32(1) / _periods(rope.theta * stretch ** (dim / (dim - 2)), dim), 1.0


def _llama3(rope: RopeParameters, scaling: dict[str, Any]) -> Frequencies:
    """Long wavelengths are divided by `factor`, short ones kept, those between interpolated."""
    frequencies, factor = _default(rope, scaling)[0], np.float32(scaling["factor"])
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    original = scaling["original_max_position_embeddings"]
    wavelengths = np.float32(2 * math.pi) / frequencies
    smooth = (np.float32(original) / wavelengths - np.float32(low)) / np.float32(high - low)
    between = (np.float32(1) - smooth) * frequencies / factor + smooth * frequencies
    scaled = np.where(wavelengths > np.float32(original / low), frequencies / factor, between)
    return np.where(wavelengths < np.float32(original / high), frequencies, scaled).astype(np.float32), 1.0


def _yarn(rope: RopeParameters, scaling: dict[str, Any]) -> Frequencies:
    """YaRN (arXiv:2309.00071): a ramp between interpolated and original frequencies, and a temperature."""
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]
    dim, periods = rope.rotary_dim, _periods(rope.theta, rope.rotary_dim)

    def correction_dim(rotations: float) -> float:
        return dim * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = correction_dim(scaling.get("beta_fast") or 32), correction_dim(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (np.arange(dim // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low)
    keep = np.float32(1) - np.clip(ramp, np.float32(0), np.float32(1))
    interpolated, extrapolated = np.float32(1) / (np.float32(factor) * periods), np.float32(1) / periods
    return interpolated * (np.float32(1) - keep) + extrapolated * keep, _yarn_attention_factor(scaling)


def _yarn_attention_factor(scaling: dict[str, Any]) -> float:
    def temperature(scale: float, mscale: float = 1.0) -> float:
        return 1.0 if scale <= 1 else 0.1 * mscale * math.log(scale) + 1.0

    given, factor = scaling.get("attention_factor"), scaling["factor"]
    mscale, mscale_all = scaling.get("mscale"), scaling.get("mscale_all_dim")
    if given is not None:
        return float(given)
    if mscale and mscale_all:
        return temperature(factor, mscale) / temperature(factor, mscale_all)
    return temperature(factor)


_INVERSE_FREQUENCIES: dict[str, Callable[[RopeParameters, dict[str, Any]], Frequencies]] = {
    "default": _default,
    "linear": _linear,
    "dynamic": _dynamic,
    "llama3": _llama3,
    "yarn": _yarn,
}
