"""Creates TVM's paged KV cache with our kernels, inside the function that a model exports for it.

The runtime object is src/runtime/vm/paged_kv_cache.cc; its constructor takes 28 arguments by position.
"""

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

import tvm
from tvm import relax, tirx
from tvm.relax.frontend.nn.llm.kv_cache import AttnKind, PagedKVCache, RopeMode

from ...runtime.errors import UsageError
from ..model.rope import RopeParameters
from ..target.target import CompileTarget
from .cache_kernels import CacheKernels, CacheShape, LayerKind

__all__ = ["PagedKVCache", "create_paged_kv_cache"]


def _cpu_kernels(cache: CacheShape, target: CompileTarget) -> CacheKernels:
    from .cpu.attention import cache_kernels
    from .cpu.vector import VectorUnit

    return cache_kernels(cache, VectorUnit(target.lanes, target.vector_registers, target.converts_float16))


# How the kernels of a cache are made, by the kind of TVM's target.
_KERNELS: dict[str, Callable[[CacheShape, CompileTarget], CacheKernels]] = {"llvm": _cpu_kernels}


def create_paged_kv_cache(
    max_batch_size: tirx.Var,
    max_total_seq_len: tirx.Var,
    prefill_chunk_size: tirx.Var,
    page_size: tirx.Var,
    support_sliding_window: tirx.Var,
    *,
    num_hidden_layers: int,
    num_attention_heads: int,
    num_key_value_heads: int,
    head_dim: int,
    rope: RopeParameters,
    dtype: str,
    target: CompileTarget,
    layer_kinds: Sequence[LayerKind] | None = None,
    layer_sliding_window_size: int = 1024,
    name: str = "paged_kv_cache",
) -> PagedKVCache:
    """Emit the creation of a cache into the current BlockBuilder and return it.

    `dtype` is that of q, k, v, the pages and the attention output. `page_size` must be 16 when the function runs.
    `support_sliding_window` = 1 makes the whole cache forget what leaves a sequence's window (positions then count from
    the window's start, as in StreamingLLM). A layer of kind "mha_sliding" keeps everything but sees only the last
    `layer_sliding_window_size` keys, as transformers defines `sliding_window`; with such layers the former is off.
    """
    kind = target.attributes["kind"]
    if kind not in _KERNELS:
        raise UsageError(f"no attention kernels for target {kind!r}: expected one of {', '.join(_KERNELS)}")
    kinds = list(layer_kinds or ["mha"] * num_hidden_layers)
    slides = "mha_sliding" in kinds
    cache = CacheShape(
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_key_value_heads,
        head_dim=head_dim,
        rope=rope,
        dtype=dtype,
        window=layer_sliding_window_size,
        every_layer_slides="mha" not in kinds,
    )
    if "mha" not in kinds:
        kinds.append("mha")  # belongs to no layer: the runtime allocates its q, k, v buffers only if it finds the kind
    kernels = _KERNELS[kind](cache, target)
    builder = relax.BlockBuilder.current()
    functions = {
        field.name: builder.add_func(_named(getattr(kernels, field.name), field.name), field.name)
        for field in fields(kernels)
    }

    def backend(kernel: str) -> relax.Tuple:
        return relax.Tuple([tvm.ir.StringImm("tirx"), functions[kernel]])

    window = [0 if slides else support_sliding_window, layer_sliding_window_size]
    arguments = [
        relax.ShapeExpr([max_batch_size, max_total_seq_len, prefill_chunk_size, page_size, *window]),
        relax.ShapeExpr([0, num_hidden_layers]),  # the layers of each pipeline stage: one stage
        relax.prim_value(num_attention_heads),
        relax.prim_value(num_key_value_heads),
        relax.prim_value(head_dim),
        relax.prim_value(head_dim),
        relax.ShapeExpr([int(AttnKind[kind.upper()]) for kind in kinds]),
        relax.prim_value(False),  # disaggregation
        relax.prim_value(int(RopeMode.NORMAL)),
        relax.prim_value(1.0),  # scale and theta of RoPE: handed to our kernels, which have tables instead
        relax.prim_value(float(rope.theta)),
        relax.prim_value(0),  # extension factors of RoPE
        relax.op.zeros((), dtype),  # tells the runtime the storage type
        functions["transpose_append"],
        relax.prim_value(0),  # latent attention (MLA)
        backend("prefill_ragged"),
        backend("prefill_paged"),
        backend("decode_paged"),
        backend("prefill_sliding"),
        backend("decode_sliding"),
        relax.Tuple([]),  # token trees over pages
        relax.Tuple([]),  # token trees over new tokens
        relax.Tuple([]),  # latent attention
        relax.Tuple([functions["merge_state_inplace"]]),
        functions["split_rotary"],
        functions["copy_single_page"],
        functions["debug_get_kv"],
        functions["compact_kv_copy"],
    ]
    create = "vm.builtin.paged_attention_kv_cache_create"
    return PagedKVCache(_expr=relax.call_pure_packed(create, *arguments, ty_args=relax.AnyType()), _name=name)


def _named(kernel: Any, name: str) -> Any:
    return kernel.with_attr("global_symbol", name)
