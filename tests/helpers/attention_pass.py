"""Forward passes that attention kernels are tested with: sequences in pages that lie anywhere, and what has to come
out, by numpy in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from kv_layout import CPU, PAGE, Layout, in_sheets, out_of_sheets
from numpy_attention import attention, rope, rotated

from mlc_llm.compiler.model.rope import RopeParameters, parse_rope
from mlc_llm.runtime.artifact import KVDtype

Array = np.ndarray[Any, Any]
LAYERS, LAYER = 2, 1
GARBAGE = {"float32": np.nan, "float16": np.nan, "int8": 127}


@dataclass(frozen=True)
class Geometry:
    """What a kernel is built for."""

    heads: int
    kv_heads: int
    dim: int
    dtype: KVDtype
    window: int | None = None
    partly_rotated: bool = False  # YaRN over half of each head, instead of plain rotary embedding of all of it

    @property
    def rope(self) -> RopeParameters:
        """The rotary embedding."""
        if not self.partly_rotated:
            return rope(self.dim)
        yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
        fields = {"rope_theta": 1e6, "partial_rotary_factor": 0.5, "max_position_embeddings": 8192}
        return parse_rope({"head_dim": self.dim, "rope_scaling": yarn, **fields})


class Pass:
    """One forward pass: sequences with a past in the pages, and new tokens. `run` checks all that it changes."""

    def __init__(self, geometry: Geometry, past: list[int], new: list[int], shared: int = 0, seed: int = 0) -> None:
        """The first `shared` pages of all sequences are the same."""
        self.geometry, self.past, self.new = geometry, past, new
        self.random = np.random.default_rng(seed)
        lengths = [p + n for p, n in zip(past, new, strict=True)]
        counts = [-(-length // PAGE) for length in lengths]
        numbers = iter(self.random.permutation(sum(counts) + 3).astype(np.int32))
        common = [next(numbers) for _ in range(shared)]
        self.tables = [np.array(common + [next(numbers) for _ in range(count - shared)]) for count in counts]
        layout = (sum(counts) + 3, LAYERS, 2, geometry.kv_heads, PAGE)
        self.kv = np.full((*layout, geometry.dim), GARBAGE[geometry.dtype], geometry.dtype)
        self.scales = np.full(layout, np.nan, np.float32)
        for table, length in zip(self.tables, past, strict=True):
            for position in range(length):
                place = (table[position // PAGE], LAYER, slice(None), slice(None), position % PAGE)
                self.put(place, self.random.standard_normal((2, geometry.kv_heads, geometry.dim)))
        fused = geometry.heads + 2 * geometry.kv_heads
        self.qkv = self.random.standard_normal((sum(new), fused * geometry.dim)).astype(np.float32)
        self.positions = np.concatenate([np.arange(p, p + n) for p, n in zip(past, new, strict=True)])
        owners = np.repeat(np.arange(len(new)), new)
        self.slots = np.array(
            [self.tables[i][p // PAGE] * PAGE + p % PAGE for i, p in zip(owners, self.positions, strict=True)]
        )

    def put(self, place: Any, rows: Array) -> None:
        if self.geometry.dtype == "int8":
            self.scales[place] = np.abs(rows).max(-1) / 127
            rows = np.rint(rows / self.scales[place][..., None])
        self.kv[place] = rows

    def values(self, kv: Array, scales: Array) -> Array:
        """What stored numbers stand for."""
        return kv.astype(np.float64) * (scales[..., None] if kv.dtype == np.int8 else 1)

    def run(self, function: Any, batched: bool, tolerance: float = 4e-6, layout: Layout = CPU) -> None:
        """Check what a kernel writes."""
        self.expect(*self.forward(function, batched, layout), tolerance)

    def forward(self, function: Any, batched: bool, layout: Layout = CPU) -> tuple[Array, Array, Array]:
        """Call a kernel: the pages and their scales, which it changes, and its output `[n, heads, dim]`."""
        g, count = self.geometry, len(self.kv)
        rows = (len(self.qkv), 1) if batched else (len(self.qkv),)
        out = np.full((*rows, g.heads * g.dim), np.nan, np.float32)
        tables: list[Any] = [self.positions, self.slots, [0, *np.cumsum(self.new)]]
        tables += [[0, *np.cumsum([len(table) for table in self.tables])], np.concatenate(self.tables)]
        tables += [[p + n for p, n in zip(self.past, self.new, strict=True)]]
        integers = [np.array(table, np.int32) for table in tables]
        kv, scales = layout.stored(self.kv), in_sheets(self.scales)
        function(self.qkv.reshape(*rows, -1), LAYER, *integers, kv, *([scales] if g.dtype == "int8" else []), out)
        return layout.pages(kv, count), out_of_sheets(scales, count), out.reshape(len(self.qkv), g.heads, g.dim)

    def expect(self, kv: Array, scales: Array, out: Array, tolerance: float) -> None:
        g = self.geometry
        q, k, v = np.split(self.qkv.reshape(len(self.qkv), -1, g.dim), [g.heads, g.heads + g.kv_heads], axis=1)
        self.expect_stored(kv, scales, np.stack([rotated(k, self.positions, g.rope), v], 1))
        stored, start = self.values(kv, scales)[:, LAYER], 0
        for table, past, new in zip(self.tables, self.past, self.new, strict=True):
            own = slice(start, start + new)
            rows = stored[table].transpose(0, 3, 1, 2, 4).reshape(-1, 2, g.kv_heads, g.dim)[: past + new]
            expected = attention(rotated(q[own], self.positions[own], g.rope), rows[:, 0], rows[:, 1], g.window)
            np.testing.assert_allclose(out[own], expected, atol=tolerance, rtol=tolerance)
            start += new

    def expect_stored(self, kv: Array, scales: Array, rows: Array) -> None:
        """New keys and values `[n, 2, kv_heads, dim]` are at their slots, and nothing else has changed."""
        pages, offsets = self.slots // PAGE, self.slots % PAGE
        found = self.values(kv, scales)[pages, LAYER, :, :, offsets]
        largest = np.abs(rows).max(-1, keepdims=True)
        rounding = {"float32": 0, "float16": np.abs(rows) * 2**-11, "int8": largest / 254}[self.geometry.dtype]
        assert (np.abs(found - rows) <= 2e-6 + 1.01 * rounding).all()
        for after, before in ((kv, self.kv.copy()), (scales, self.scales.copy())):
            if after is kv or self.geometry.dtype == "int8":
                before[pages, LAYER, :, :, offsets] = after[pages, LAYER, :, :, offsets]
            np.testing.assert_array_equal(after, before)
