"""AMD's cards by what Linux tells of them, without ROCm."""

from collections.abc import Iterator
from pathlib import Path

_NODES = Path("/sys/class/kfd/kfd/topology/nodes")


def architectures() -> list[str]:
    """LLVM's names of the cards of this machine, as "gfx1100", in the kernel driver's order; empty without any."""
    return [name for node in sorted(_NODES.glob("[0-9]*"), key=_number) for name in _architecture(node)]


def _number(node: Path) -> int:
    return int(node.name) if node.name.isdigit() else 0


def _architecture(node: Path) -> Iterator[str]:
    """The architecture of a node of the driver's; none if that is a processor."""
    try:
        lines = (node / "properties").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        name, _, value = line.partition(" ")
        if name == "gfx_target_version" and value.isdigit() and int(value):
            # two decimal digits for each part; the name has the last two parts as one hexadecimal digit each
            version, stepping = divmod(int(value), 100)
            yield f"gfx{version // 100}{version % 100:x}{stepping:x}"
