"""The attention kernels of devices: the one place where they are chosen."""

from ....runtime.errors import UsageError
from ...target.target import CompileTarget
from ..cache_kernels import CacheKernels, CacheShape
from .arithmetic import VECTOR
from .attention_decode import decode_attention
from .attention_prefill import prefill_attention
from .rope import Rotation

MOST_DIMENSIONS = 256  # of a head: what workgroups keep in shared memory grows with them


def cache_kernels(cache: CacheShape, target: CompileTarget, activation_bits: int) -> CacheKernels:
    """Kernels for one cache shape: float32 arithmetic, whatever the target and the bits of activations."""
    if cache.head_dim % VECTOR or cache.head_dim > MOST_DIMENSIONS:
        raise UsageError(
            f"attention heads of {cache.head_dim} dimensions on {target.device}: expected a multiple of {VECTOR}"
            f" up to {MOST_DIMENSIONS}"
        )
    rotation = Rotation.of(cache.rope)
    return CacheKernels(
        decode_attention=decode_attention(cache, rotation), prefill_attention=prefill_attention(cache, rotation)
    )
