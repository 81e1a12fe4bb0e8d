"""The geometry of attention kernels."""

from dataclasses import dataclass

from .vector import VectorUnit

NO_SCORE = -1e30  # of a masked key
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class HeadShape:
    """Attention geometry and the vectors it is computed with."""

    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: str  # of stored keys and values: float32, float16 or int8
    unit: VectorUnit

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.num_q_heads // self.num_kv_heads

    @property
    def fused_width(self) -> int:
        """Numbers of one token's query, key and value heads, which follow each other in that order."""
        return (self.num_q_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def vectors(self) -> VectorUnit:
        return self.unit.dividing(self.head_dim)
