"""How a library carries the machine code of its CUDA kernels.

The compiler puts it where TVM keeps CUDA source, and TVM's loader would hand that to a compiler; `cuda.py` unpacks it
first. Little endian:

    "MLCCUDA1"  8 bytes
    u32         length of the description
    JSON        {"architectures": ["sm_80", "sm_90"], "ptx": "compute_80", "images": [["fatbin", <bytes>]]}
    the images  one after another: a fat binary of all of it, or one of each architecture and the PTX
"""

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

MAGIC = b"MLCCUDA1"
FAT_BINARY = "fatbin"  # the name of an image from which the driver chooses what fits its card


@dataclass(frozen=True)
class CudaCode:
    """The kernels of a library: `architectures` that it has machine code for, as "sm_80", and PTX of one of them."""

    architectures: tuple[str, ...]
    ptx: str  # "compute_80"
    images: dict[str, bytes]  # FAT_BINARY, or the names above -> what the driver loads

    def packed(self) -> bytes:
        """As libraries carry it."""
        sizes = [(name, len(image)) for name, image in self.images.items()]
        text = json.dumps({"architectures": self.architectures, "ptx": self.ptx, "images": sizes}).encode()
        return b"".join([MAGIC, struct.pack("<I", len(text)), text, *self.images.values()])

    @classmethod
    def unpacked(cls, data: bytes) -> "CudaCode":
        """The reverse. Raises ValueError for what `packed` has not made."""
        start = len(MAGIC) + 4
        if len(data) < start or not data.startswith(MAGIC):
            raise ValueError("there is no machine code that mlc has compiled")
        end = start + struct.unpack_from("<I", data, len(MAGIC))[0]
        images: dict[str, bytes] = {}
        try:
            text = json.loads(data[start:end])
            architectures, ptx = tuple(map(_checked, text["architectures"])), _checked(text["ptx"])
            for name, size in text["images"]:
                if size <= 0 or end + size > len(data):
                    raise ValueError(name)
                images[name] = data[end : end + size]
                end += size
        except (ValueError, KeyError, TypeError):
            raise ValueError("its machine code is damaged") from None
        if end != len(data) or set(images) not in ({FAT_BINARY}, {*architectures, ptx}):
            raise ValueError("its machine code is damaged")
        return cls(architectures, ptx, images)

    def described(self) -> str:
        """ "sm_80, sm_90 and PTX of compute_80"."""
        return f"{', '.join(self.architectures)} and PTX of {self.ptx}"

    def image_for(self, cards: Sequence[str]) -> bytes | None:
        """What to load where there are cards of these architectures; None if none of them runs any of it.

        An image serves all cards of a process: the newest machine code that they all run is best, then PTX, which
        their driver compiles; if nothing runs on all of them, the first card decides.
        """
        names = [*sorted(self.architectures, key=_version, reverse=True), self.ptx]
        able = [card for card in cards if any(runs_on(name, card) for name in names)]
        if not able:
            return None
        if FAT_BINARY in self.images:
            return self.images[FAT_BINARY]
        everywhere = [name for name in names if all(runs_on(name, card) for card in able)]
        return self.images[next(iter(everywhere or (name for name in names if runs_on(name, able[0]))))]


def runs_on(code: str, card: str) -> bool:
    """Whether a card of an architecture, as "sm_86", runs code of another: machine code of the same generation and not
    newer, or PTX that is not newer. What is special to one architecture ("sm_90a") runs on that one alone."""
    generation, revision = _version(code)
    if code.startswith("compute_"):
        return (generation, revision) <= _version(card)
    if not code[-1].isdigit():
        return (generation, revision) == _version(card)
    return generation == _version(card)[0] and revision <= _version(card)[1]


def _version(name: str) -> tuple[int, int]:
    """The compute capability in an architecture's name: "sm_86" is (8, 6), "compute_120" is (12, 0)."""
    number = int(re.sub(r"\D", "", name))
    return number // 10, number % 10


def _checked(name: object) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"(sm|compute)_\d{2,3}[a-z]?", name):
        raise ValueError(name)
    return name
