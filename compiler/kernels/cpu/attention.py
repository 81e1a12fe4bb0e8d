"""The CPU's attention kernels of a paged KV cache: the one place where they are chosen."""

from ...model.rope import inverse_frequencies
from ..cache_kernels import CacheKernels, CacheShape
from .decode import decode_attention
from .flash import HeadShape
from .prefill import prefill_attention
from .rope import Rotation
from .vector import VectorUnit


def cache_kernels(cache: CacheShape, unit: VectorUnit) -> CacheKernels:
    """Kernels for one cache shape and vector unit."""
    frequencies, attention_factor = inverse_frequencies(cache.rope)
    rotation = Rotation(tuple(float(f) for f in frequencies), attention_factor, cache.head_dim)
    # One width for all: LLVM 22 fails on rows that are written in narrower vectors than they are read.
    unit = rotation.unit(unit)
    shape = HeadShape(cache.num_attention_heads, cache.num_key_value_heads, cache.head_dim, cache.dtype, unit)
    return CacheKernels(
        decode_attention=decode_attention(shape, rotation, cache.num_hidden_layers, cache.window),
        prefill_attention=prefill_attention(shape, rotation, cache.num_hidden_layers, cache.window),
    )
