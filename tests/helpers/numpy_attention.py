"""Attention and rotary position embedding in numpy, in float64: what kernels are compared with."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlc_llm.compiler.model.rope import RopeParameters, inverse_frequencies, parse_rope

Array = NDArray[Any]


def rope(head_dim: int) -> RopeParameters:
    """Plain rotary embedding of whole heads."""
    return parse_rope({"rope_theta": 1e4, "head_dim": head_dim, "max_position_embeddings": 8192})


def rotated(x: Array, positions: Array, parameters: RopeParameters | None = None) -> Array:
    """Rotate `[n, heads, dim]` as transformers' apply_rotary_pos_emb does."""
    frequencies, factor = inverse_frequencies(parameters or rope(x.shape[-1]))
    angles = (positions[:, None].astype(np.float32) * np.asarray(frequencies, np.float32)).astype(np.float64)
    cosine, sine = (f(angles)[:, None] * factor for f in (np.cos, np.sin))
    a, b, rest = np.split(x.astype(np.float64), [len(frequencies), 2 * len(frequencies)], -1)
    return np.concatenate([a * cosine - b * sine, b * cosine + a * sine, rest], -1)


def attention(q: Array, keys: Array, values: Array, window: int | None) -> Array:
    """Causal attention of the last tokens of a text: rotated queries `[n, heads, dim]` to rotated keys and values
    `[length, kv_heads, dim]`, of which each sees the last `window`, its own among them (None: all)."""
    n, heads, dim = q.shape
    length, kv_heads, _ = keys.shape
    keys, values = (np.repeat(x, heads // kv_heads, 1) for x in (keys, values))
    distance = np.arange(length - n, length)[:, None] - np.arange(length)
    visible = (distance >= 0) & (distance < (window or length))
    scores = np.where(visible, np.einsum("qhd,khd->hqk", q, keys) * dim**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True, initial=-1e9))
    return np.asarray(np.einsum("hqk,khd->qhd", weights / weights.sum(-1, keepdims=True), values))
