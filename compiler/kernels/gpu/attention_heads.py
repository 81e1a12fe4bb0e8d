"""What the attention kernels share: the query heads that a workgroup takes together, and a kernel's frame."""
# mypy: ignore-errors

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import kernel
from ..cache_kernels import CacheShape

NO_SCORE = -1e30  # of a masked key
LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class HeadParts:
    """The query heads of a key head in equal parts of at most `most`, so that one reading of a key serves a part.

    Where parts are not full they begin earlier: some heads are calculated twice then, and both write the same.
    """

    group: int  # query heads of a key head
    count: int  # parts of a group
    size: int  # query heads of a part

    @staticmethod
    def of(cache: CacheShape, most: int) -> "HeadParts":
        """The parts of a model's groups."""
        group = cache.num_attention_heads // cache.num_key_value_heads
        count = -(-group // most)
        return HeadParts(group, count, -(-group // count))

    def first(self, key_head, part):
        """The first query head of a part."""
        return T.bind(key_head * self.group + T.min(part * self.size, self.group - self.size))


def attention_kernel(name: str, make: Callable) -> tirx.PrimFunc:
    """The kernel whose arguments `make(kernel)` declares, and whose statements are the `body` of what that returns."""
    with kernel(name) as k:
        statements = make(k)
        with k.body():
            statements.body()
    return k.function


def score_factor(cache: CacheShape) -> float:
    """What scores are multiplied by, so that weights are powers of two."""
    return cache.head_dim**-0.5 * LOG2_E
