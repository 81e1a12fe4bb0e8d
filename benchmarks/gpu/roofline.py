"""Roofline on paper: what decoding and prefill of Llama-3-8B in q4f16_1 can reach on a device by its data sheet, and
what the schedules of compiler/kernels/gpu leave of that by construction. Nothing is measured.

    python -m mlc_llm.benchmarks.gpu.roofline        # the table of docs/devices.md
"""

from dataclasses import dataclass

from .shapes import SHAPES, weight_count

_SHAPE = SHAPES["llama-3-8b"]
_BITS = 4.5  # of a weight: a code of 4 bits, and a float16 scale for 32 of them
_DEPTH = 1024  # tokens in the KV cache
_SHARED = 128  # bytes of shared memory that a unit reads or writes in a cycle (Apple's is assumed)
_FRAGMENT, _OUTPUTS, _WARP_ROWS = 16, 128, 32  # of matmul_units.py
# matmul_tiles.py, a thread's instructions for 32 columns: products; all with loads, widening (4 a weight) and stores
_TILE_PRODUCTS, _TILE_INSTRUCTIONS = 1024, 1024 + 96 + 14 + 64 + 5
# matmul_units.py, 64 rows x 64 columns, where matrices are multiplied by the same units as everything else
_LANE_PRODUCTS, _LANE_INSTRUCTIONS = 2048, 2048 + 128 + 40


@dataclass(frozen=True)
class Schedule:
    """How many rows are multiplied: rows of a workgroup, its warps, bytes that a warp reads for a fragment, and whether
    matrices have units of their own; no rows: float32, without matrix units."""

    rows: int = 0
    warps: int = 8
    fragment_bytes: int = 512
    own_units: bool = True

    def shared_bytes(self) -> float:
        """Bytes of shared memory that are read and written for each product."""
        across = _OUTPUTS // 2 * (self.rows // _WARP_ROWS) // (self.warps * _FRAGMENT)
        read = (2 + 2 * across) * self.fragment_bytes / (4 * across * _FRAGMENT**3)
        return read + 2 * (self.rows + _OUTPUTS) / (self.rows * _OUTPUTS)


@dataclass(frozen=True)
class Card:
    """A device by its data sheet: GB/s of memory, TFLOP/s of the products that the schedule uses, units, GHz."""

    name: str
    target: str
    bandwidth: float
    rate: float
    units: int
    clock: float
    schedule: Schedule

    def reached(self) -> float:
        """The share of the rate that shared memory, or other instructions, leave."""
        if not self.schedule.rows:
            return _TILE_PRODUCTS / _TILE_INSTRUCTIONS
        products = self.rate * 1e12 / 2 / (self.units * self.clock * 1e9)  # of a unit in a cycle
        issued = 1.0 if self.schedule.own_units else _LANE_PRODUCTS / _LANE_INSTRUCTIONS
        return min(issued, _SHARED / (self.schedule.shared_bytes() * products))


_CUDA, _COOPERATIVE, _METAL = Schedule(128), Schedule(64), Schedule(64, own_units=False)
_MFMA, _WMMA = Schedule(128, warps=4), Schedule(128, fragment_bytes=1024)  # both halves of a wavefront read the same
CARDS = [
    Card("H100 SXM", "cuda", 3350, 989.4, 132, 1.83, _CUDA),
    Card("RTX 4090", "cuda", 1008, 165.2, 128, 2.52, _CUDA),
    Card("RTX 4090", "vulkan:cooperative", 1008, 165.2, 128, 2.52, _COOPERATIVE),
    Card("RTX 4090", "vulkan", 1008, 82.6, 128, 2.52, Schedule()),
    Card("MI300X", "rocm:gfx942", 5300, 1307.4, 304, 2.1, _MFMA),
    Card("RX 7900 XTX", "rocm:gfx1100", 960, 122.8, 96, 2.5, _WMMA),
    Card("M2 Ultra, 76 cores", "metal", 800, 27.2, 76, 1.4, _METAL),
    Card("M2 Ultra, 76 cores", "webgpu", 800, 27.2, 76, 1.4, Schedule()),
    Card("Arc A770", "opencl", 560, 19.7, 32, 2.4, Schedule()),
]


def decode_bytes(depth: int = _DEPTH) -> float:
    """Bytes of device memory that a token reads: every weight once, but for the embedding, and the keys and values."""
    keys = 2 * _SHAPE["num_hidden_layers"] * _SHAPE["num_key_value_heads"] * _SHAPE["head_dim"]
    return weight_count(_SHAPE) * _BITS / 8 + 2 * keys * depth


def decode_flops() -> float:
    """Two for each weight."""
    return 2 * weight_count(_SHAPE)


def prefill_flops() -> float:
    """Of a token of a long prompt, without attention: the head multiplies the last one alone."""
    return decode_flops() - 2 * _SHAPE["vocab_size"] * _SHAPE["hidden_size"]


def table() -> str:
    """Markdown."""
    lines = [
        "| device | `--device` | memory, GB/s | decode, tokens/s | products, TFLOP/s | prefill, tokens/s | reached |"
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for card in CARDS:
        decode = card.bandwidth * 1e9 / decode_bytes()
        prefill = card.reached() * card.rate * 1e12 / prefill_flops()
        lines.append(f"| {card.name} | `{card.target}` | {card.bandwidth:.0f} | {decode:.0f} | {card.rate:.0f} "
                     f"| {prefill:.0f} | {card.reached():.0%} |")  # fmt: skip
    return "\n".join(lines)


if __name__ == "__main__":
    print(f"{decode_bytes() / 1e9:.2f} GB, {decode_flops() / 1e9:.1f} GFLOP; prefill {prefill_flops() / 1e9:.1f} GFLOP")
    print(table())
