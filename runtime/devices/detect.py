"""Which devices this machine has, asked of their drivers: in milliseconds, without TVM and without a plug-in.

The order of a kind's devices is that of its plug-in, so `vulkan:1` means the same here as where models run.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path

from .. import processor
from ..errors import EngineError

KINDS = ("cuda", "rocm", "metal", "vulkan", "opencl", "cpu")  # best first
PLUGINS = ("rocm", "vulkan", "opencl")  # kinds that a plug-in of ours drives

# Linux shows these where there is a graphics processor: NVIDIA, AMD, any with a driver of the kernel, Windows' below
# WSL, Qualcomm, ARM. To open a driver that computes on the processor takes 100 ms and more.
_CARDS = ("nvidia0", "nvidiactl", "nvgpu", "kfd", "dri/renderD*", "dxg", "kgsl-3d0", "mali*")
_DEV = Path("/dev")


@dataclass(frozen=True)
class FoundDevice:
    """A device as its driver describes it; what the driver does not tell is "" or 0."""

    kind: str
    index: int
    name: str
    memory: int = 0  # bytes
    driver: str = ""
    arch: str = ""  # as compilers call it: "sm_90", "gfx1100"
    is_processor: bool = False  # runs on the processor, as PoCL and lavapipe do

    def __str__(self) -> str:
        return self.kind if self.index == 0 else f"{self.kind}:{self.index}"


class DriverProblem(Exception):
    """Why there are no devices of a kind, in one line: what was looked for, what to install."""


def found(kind: str) -> list[FoundDevice]:
    """The devices of a kind. Raises DriverProblem where there are none."""
    return _QUERIES[kind]()


def best() -> str:
    """The device that "auto" means: the first that can be used here and is none in name only; else the processor."""
    if sys.platform.startswith("linux") and not any(_shown(pattern) for pattern in _CARDS):
        return "cpu"
    return next((str(device) for kind in KINDS[:-1] for device in _usable(kind)), "cpu")


def _shown(pattern: str) -> bool:
    return next(_DEV.glob(pattern), None) is not None


def _usable(kind: str) -> Iterator[FoundDevice]:
    try:
        devices = [device for device in found(kind) if not device.is_processor]
    except DriverProblem:
        return
    if devices and not driving(kind).problem:
        yield from devices


@dataclass(frozen=True)
class Driving:
    """How TVM comes to drive a kind of device here, or why it cannot."""

    how: str
    problem: str = ""  # one line; "": it can


def driving(kind: str) -> Driving:
    """How TVM drives a kind of device. Loads and builds nothing."""
    if kind == "cuda":
        from . import cuda

        return Driving("TVM's own", cuda.problem())
    if kind not in PLUGINS:
        return Driving("TVM's own")
    from . import plugin

    try:
        if plugin.prebuilt(kind):
            return Driving("prebuilt plug-in")
        if plugin.is_built(kind):
            return Driving("plug-in, built here")
    except EngineError as error:  # TVM's headers are not there
        return Driving("plug-in", str(error))
    how, advice = "plug-in, to be built once", "install g++ or clang++, or name a compiler in $CXX"
    return Driving(how, "" if plugin.can_build() else f"the {kind} plug-in has to be built once: {advice}")


def _cpu() -> list[FoundDevice]:
    name = processor.processor_name()
    return [FoundDevice("cpu", 0, name, processor.available_memory(), "", processor.host_architecture(), True)]


def _cuda() -> list[FoundDevice]:
    from . import cuda

    cards = cuda.devices()
    if not cards:
        raise DriverProblem(cuda.problem() or "no CUDA device: NVIDIA's driver sees no card")
    return [
        FoundDevice("cuda", i, card["name"], card["memory"], card["driver"], card["architecture"])
        for i, card in enumerate(cards)
    ]


def _query(module: str) -> Callable[[], list[FoundDevice]]:
    """The devices that a module beside this one finds, asked once: a driver does not find others later."""

    @cache
    def devices() -> list[FoundDevice]:
        result: list[FoundDevice] = import_module(f".{module}", __package__).devices()
        return result

    return devices


_QUERIES: dict[str, Callable[[], list[FoundDevice]]] = {
    "cuda": _cuda,
    "rocm": _query("query_rocm"),
    "metal": _query("query_metal"),
    "vulkan": _query("query_vulkan"),
    "opencl": _query("query_opencl"),
    "cpu": _cpu,
}
