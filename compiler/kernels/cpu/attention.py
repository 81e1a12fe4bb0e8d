"""The set of CPU kernels that a paged KV cache needs."""

from ...model.rope import inverse_frequencies
from ..cache_kernels import CacheKernels, CacheShape
from .decode import decode_paged, merge_state_inplace
from .flash import HeadShape
from .kv_pages import compact_kv_copy, copy_single_page, debug_get_kv, transpose_append
from .prefill import prefill_paged, prefill_ragged
from .rope import Rotation, split_rotary
from .vector import VectorUnit


def cache_kernels(cache: CacheShape, unit: VectorUnit) -> CacheKernels:
    """Kernels for one cache shape and vector unit.

    Only the ragged and the sliding kernels can rotate by themselves: TVM stores unrotated keys in caches whose whole
    window slides, and in no others. The ragged kernel applies a window only if every layer has it, because all layers
    share it: a model that mixes layer kinds must not prefill more tokens at once than its window holds.
    """
    heads, kv_heads, dim, dtype = cache.num_attention_heads, cache.num_key_value_heads, cache.head_dim, cache.dtype
    shape = HeadShape(heads, kv_heads, dim, dtype, unit)
    frequencies, attention_factor = inverse_frequencies(cache.rope)
    rotation = Rotation(tuple(float(f) for f in frequencies), attention_factor, dim)
    return CacheKernels(
        transpose_append=transpose_append(kv_heads, dim, dtype, unit),
        prefill_ragged=prefill_ragged(shape, rotation, cache.window if cache.every_layer_slides else None),
        prefill_paged=prefill_paged(shape),
        decode_paged=decode_paged(shape),
        prefill_sliding=prefill_paged(shape, rotation, cache.window),
        decode_sliding=decode_paged(shape, rotation, sliding=True),
        merge_state_inplace=merge_state_inplace(shape),
        split_rotary=split_rotary(heads, kv_heads, rotation, dtype, unit),
        copy_single_page=copy_single_page(kv_heads, dim, dtype, unit),
        debug_get_kv=debug_get_kv(cache.num_hidden_layers, kv_heads, dim, dtype, unit),
        compact_kv_copy=compact_kv_copy(kv_heads, dim, dtype, unit),
    )
