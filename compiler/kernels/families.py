"""Which kernels a target runs: those of the processor, or those of devices that run workgroups of threads."""
# mypy: disable-error-code="misc,no-any-return"

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tvm import tirx
from tvm.relax.frontend.nn import Tensor

from ..target.target import CompileTarget
from .cache_kernels import CacheShape
from .kv_cache import MakeKernels
from .table import KernelTable


@dataclass(frozen=True)
class Family:
    """The kernels of one kind of device."""

    table: Callable[[CompileTarget, int], KernelTable]
    cache_kernels: MakeKernels
    # (target, logits [batch, 1, vocab], settings [batch, SETTINGS], uniforms [batch], tokens int32 [batch]): chooses a
    # token from each row as cpu/sample_token.py describes and writes it to `tokens`, as keys and values are written to
    # the cache. Returns the logits [batch, vocab].
    sample: Callable[[CompileTarget, Tensor, Tensor, Tensor, Tensor], Tensor]
    # (logits [batch, vocab], words int32): does what requests ask for to the logits, as gpu/sample_adjust.py describes,
    # before a token is chosen. Returns the same logits. None where the runtime does that.
    adjust: Callable[[Tensor, Tensor], Tensor] | None
    sampling_dtype: Literal["float32", "float64"]  # of settings and uniforms
    # What else the runtime calls: names and kernels.
    others: Callable[[CacheShape, CompileTarget], dict[str, tirx.PrimFunc]]


def family(target: CompileTarget) -> Family:
    """The kernels of a target."""
    if target.gpu is None:
        from .cpu import attention, sample_in_pass, table

        return Family(
            table.CpuKernels, attention.cache_kernels, sample_in_pass.sample, None, "float64", lambda cache, target: {}
        )
    from .gpu import attention as gpu_attention
    from .gpu import kv_pages
    from .gpu import sample_in_pass as gpu_sample_in_pass
    from .gpu import table as gpu_table

    return Family(
        gpu_table.GpuKernels, gpu_attention.cache_kernels, gpu_sample_in_pass.sample, gpu_sample_in_pass.adjust,
        "float32", lambda cache, target: {"copy_page": kv_pages.copy_page(cache, target)},
    )  # fmt: skip
