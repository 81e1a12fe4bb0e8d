"""The paged KV cache as a model sees it while it is traced: tensors, and the kernel that reads and writes them.

The runtime owns the memory and the page tables (runtime/kv_cache.py) and hands both to every forward function. With n
new tokens of b sequences:

    positions     int32 [n]       position of each new token in its sequence
    slots         int32 [n]       page * PAGE_SIZE + offset where its key and value are stored
    query_starts  int32 [b + 1]   the new tokens of sequence i are query_starts[i] .. query_starts[i + 1]
    page_starts   int32 [b + 1]   the pages of sequence i are pages[page_starts[i] .. page_starts[i + 1]]
    pages         int32 [any]     page numbers
    lengths       int32 [b]       tokens of each sequence, the new ones included
    kv            [num_sheets, layers, 2, kv_heads, rows, head_dim]   keys at index 0 of the third axis, values at 1
    kv_scales     float32 [num_sheets, layers, 2, kv_heads, rows]     only where kv is int8: the factor of each row

Keys are stored rotated. A page may belong to several sequences that begin alike. Pages are what sequences share, sheets
what is read at a stretch: page p is rows PAGE_SIZE * (p % SHEET_PAGES) and on of sheet p // SHEET_PAGES. In what order
numbers lie within the rows of a page is the kernels' business.
"""
# mypy: disable-error-code="misc,no-any-return"

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from ..target.target import CompileTarget
from .cache_kernels import CacheKernels, CacheShape
from .call import call_kernel

PAGE_SIZE = 16
SHEET_PAGES = 4  # pages that lie together in memory


MakeKernels = Callable[[CacheShape, CompileTarget, int], CacheKernels]


class CacheSpec:
    """The cache of one model: its shape, and the kernels of its layers, made once for each kind of layer."""

    def __init__(self, make: MakeKernels, cache: CacheShape, target: CompileTarget, activation_bits: int = 16) -> None:
        """`make`: those of the target's family. `activation_bits`: what the products of prefill attention are rounded
        to; 32 is float32 arithmetic."""
        self._make = make
        self.shape, self._target, self._activation_bits = cache, target, activation_bits
        self._kernels: dict[int | None, CacheKernels] = {}

    def kernels(self, window: int | None) -> CacheKernels:
        """The kernels of layers whose queries see the last `window` keys; None: all keys."""
        if window not in self._kernels:
            shape = replace(self.shape, window=window)
            self._kernels[window] = self._make(shape, self._target, self._activation_bits)
        return self._kernels[window]

    def specification(self, tokens: int | str, sequences: int | str) -> list[Any]:
        """The tensors above as an argument of an exported function, for so many new tokens and sequences."""
        cache = self.shape
        starts = sequences + 1 if isinstance(sequences, int) else f"{sequences}_and_end"
        layout = ["num_sheets", cache.num_hidden_layers, 2, cache.num_key_value_heads, PAGE_SIZE * SHEET_PAGES]
        tables = [[tokens], [tokens], [starts], [starts], ["used_pages"], [sequences]]
        tensors = [nn.spec.Tensor(shape, "int32") for shape in tables]
        tensors.append(nn.spec.Tensor([*layout, cache.head_dim], cache.dtype))
        if cache.dtype == "int8":
            tensors.append(nn.spec.Tensor(layout, "float32"))
        return tensors


@dataclass(frozen=True)
class PagedKVCache:
    """The tensors of one forward pass, in the order in which kernels take them."""

    spec: CacheSpec
    tensors: Sequence[Tensor]
    decodes: bool  # every sequence has exactly one new token

    def attention(self, layer: int, qkv: Tensor, window: int | None = None) -> Tensor:
        """Attention of the new tokens, whose keys and values are stored on the way.

        qkv float32 [batch, seq, (heads + 2 x kv_heads) x head_dim], not rotated -> [batch, seq, heads x head_dim]
        float32. `window`: how many keys a query sees, its own among them; None: all.

        The kernel writes to kv, which Relax takes for an input that it only reads. That is safe: a layer reads only
        what it stored itself, in this call or in earlier forward passes, and its output is always used.
        """
        batch, seq, fused = qkv.shape
        kernels, shape = self.spec.kernels(window), self.spec.shape
        width = shape.num_attention_heads * shape.head_dim
        arguments: list[Any] = [tirx.const(layer, "int64"), *self.tensors]
        if self.decodes:
            out = Tensor.placeholder((batch, 1, width), "float32")
            return call_kernel(kernels.decode_attention, "decode_attention", [qkv, *arguments], out)
        rows, out = op.reshape(qkv, (seq, fused)), Tensor.placeholder((seq, width), "float32")
        attended = call_kernel(kernels.prefill_attention, "prefill_attention", [rows, *arguments], out)
        return op.reshape(attended, (batch, seq, width))
