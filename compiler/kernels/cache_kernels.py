"""The kernels of a paged KV cache: what they are built from, and the set that TVM's runtime calls."""

from dataclasses import dataclass
from typing import Any, Literal

from ..model.rope import RopeParameters

LayerKind = Literal["mha", "mha_sliding"]


@dataclass(frozen=True)
class CacheShape:
    """What the kernels of a cache depend on, besides the target."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope: RopeParameters
    dtype: str  # of queries, keys, values and attention output: "float16" or "float32"
    window: int  # how many keys a query of a sliding layer sees, its own among them
    every_layer_slides: bool


@dataclass(frozen=True)
class CacheKernels:
    """PrimFuncs with the signatures that src/runtime/vm/paged_kv_cache.cc and attn_backend.h call."""

    transpose_append: Any
    prefill_ragged: Any
    prefill_paged: Any
    decode_paged: Any
    prefill_sliding: Any
    decode_sliding: Any
    merge_state_inplace: Any
    split_rotary: Any
    copy_single_page: Any
    debug_get_kv: Any
    compact_kv_copy: Any
