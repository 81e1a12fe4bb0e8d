"""The CPU's attention kernels of a paged KV cache: the one place where they are chosen."""

from ....runtime.errors import UsageError
from ...model.rope import inverse_frequencies
from ...target.target import CompileTarget
from ..cache_kernels import CacheKernels, CacheShape
from .attention_dot import attention_dot
from .attention_panels import Tile
from .decode import decode_attention
from .flash import HeadShape
from .kv_pages import NUMBERS
from .prefill_attention import prefill_attention
from .rope import Rotation
from .vector import VectorUnit


def cache_kernels(cache: CacheShape, target: CompileTarget, activation_bits: int) -> CacheKernels:
    """Kernels for one cache shape and target."""
    if cache.head_dim % NUMBERS:
        raise UsageError(f"attention heads of {cache.head_dim} dimensions: expected a multiple of {NUMBERS}")
    frequencies, attention_factor = inverse_frequencies(cache.rope)
    rotation = Rotation(tuple(float(f) for f in frequencies), attention_factor, cache.head_dim)
    widest = VectorUnit(target.lanes, target.vector_registers, target.converts_float16)
    # One width for all: LLVM 22 fails on rows that are written in narrower vectors than they are read.
    unit = rotation.unit(widest)
    shape = HeadShape(cache.num_attention_heads, cache.num_key_value_heads, cache.head_dim, cache.dtype, unit)
    bits = 32 if cache.dtype == "float32" else activation_bits  # models in float32 are chosen for their precision
    tile = Tile(shape, widest, attention_dot(target, bits))
    words = attention_dot(target, 8)
    whole_words = cache.dtype == "int8" and words.format == "int8" and shape.vectors.lanes >= NUMBERS
    decode_dot = words if whole_words else None
    return CacheKernels(
        decode_attention=decode_attention(shape, rotation, decode_dot, cache.num_hidden_layers, cache.window),
        prefill_attention=prefill_attention(tile, rotation, cache.num_hidden_layers, cache.window),
    )
