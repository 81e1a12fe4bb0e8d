"""TIR's data types as the emitter sees them."""

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

_NAME = re.compile(r"(int|uint|float|bool)(\d*)(?:x(\d+))?")
_BITS = {"int": (8, 16, 32, 64), "uint": (8, 16, 32, 64), "float": (16, 32, 64), "bool": (8,)}


@dataclass(frozen=True)
class Dtype:
    """Lanes of one kind of number. SPIR-V itself has no sign here: every integer is declared unsigned, and the
    instructions say how they read it."""

    kind: str  # "int", "uint", "float" or "bool"
    bits: int  # of a lane; 8 for bool, which takes a byte in memory
    lanes: int = 1

    def of(self, lanes: int) -> "Dtype":
        """The same numbers in another count of lanes."""
        return self if lanes == self.lanes else Dtype(self.kind, self.bits, lanes)

    @property
    def is_integer(self) -> bool:
        """Whether the lanes are int or uint."""
        return self.kind in ("int", "uint")

    @property
    def is_float(self) -> bool:
        """Whether the lanes are floating point."""
        return self.kind == "float"

    @property
    def size(self) -> int:
        """Bytes of a lane in memory."""
        return self.bits // 8

    @property
    def part_lanes(self) -> tuple[int, ...]:
        """Lanes of each part: SPIR-V's vectors end at four, longer ones are several values."""
        return (4,) * (self.lanes // 4) + ((self.lanes % 4,) if self.lanes % 4 else ())

    def __str__(self) -> str:
        name = "bool" if self.kind == "bool" else f"{self.kind}{self.bits}"
        return name if self.lanes == 1 else f"{name}x{self.lanes}"


@cache
def parse_dtype(name: str) -> Dtype | None:
    """The type of TVM's name ("float16", "uint32x4", "bool"), None for one that Vulkan has no counterpart of."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    kind, bits, lanes = match[1], int(match[2] or 8), int(match[3] or 1)
    return Dtype(kind, bits, lanes) if bits in _BITS[kind] else None


def dtype_of(expression: Any) -> Dtype | None:
    """The type of a TIR expression that has a number for its value."""
    return parse_dtype(str(expression.ty.dtype))


BOOL = Dtype("bool", 8)
INT32 = Dtype("int", 32)
UINT32 = Dtype("uint", 32)
INT64 = Dtype("int", 64)
UINT64 = Dtype("uint", 64)
FLOAT32 = Dtype("float", 32)
