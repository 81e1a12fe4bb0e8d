"""The kernels of a paged KV cache: what they are built from, and the two that attention calls."""

from dataclasses import dataclass
from typing import Any

from ...runtime.artifact import KVDtype
from ..model.rope import RopeParameters


@dataclass(frozen=True)
class CacheShape:
    """What the kernels of a layer depend on, besides the target."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RopeParameters
    dtype: KVDtype  # of the stored keys and values
    window: int | None = None  # how many keys a query sees, its own among them; None: all


@dataclass(frozen=True)
class CacheKernels:
    """PrimFuncs with the arguments that `kv_cache.PagedKVCache` describes."""

    decode_attention: Any  # one new token of each sequence
    prefill_attention: Any  # any number of new tokens of each sequence
