"""The CPU's attention kernels of a paged KV cache: the one place where they are chosen."""

from ...model.rope import inverse_frequencies
from ...target.target import CompileTarget
from ..cache_kernels import CacheKernels, CacheShape
from .attention_dot import attention_dot
from .attention_panels import Tile
from .decode import decode_attention
from .flash import HeadShape
from .prefill_attention import prefill_attention
from .rope import Rotation
from .vector import VectorUnit


def cache_kernels(cache: CacheShape, target: CompileTarget, activation_bits: int) -> CacheKernels:
    """Kernels for one cache shape and target."""
    frequencies, attention_factor = inverse_frequencies(cache.rope)
    rotation = Rotation(tuple(float(f) for f in frequencies), attention_factor, cache.head_dim)
    widest = VectorUnit(target.lanes, target.vector_registers, target.converts_float16)
    # One width for all: LLVM 22 fails on rows that are written in narrower vectors than they are read.
    unit = rotation.unit(widest)
    shape = HeadShape(cache.num_attention_heads, cache.num_key_value_heads, cache.head_dim, cache.dtype, unit)
    bits = 32 if cache.dtype == "float32" else activation_bits  # models in float32 are chosen for their precision
    tile = Tile(shape, widest, attention_dot(target, bits))
    return CacheKernels(
        decode_attention=decode_attention(shape, rotation, cache.num_hidden_layers, cache.window),
        prefill_attention=prefill_attention(tile, rotation, cache.num_hidden_layers, cache.window),
    )
