"""AMD's cards as ROCm's runtime sees them, by a few calls of its C interface."""

import ctypes
from typing import Any

from . import rocm
from .detect import DriverProblem, FoundDevice

_LIBRARIES = ("libamdhip64.so.7", "libamdhip64.so.6", "libamdhip64.so", "/opt/rocm/lib/libamdhip64.so")


def devices() -> list[FoundDevice]:
    """The cards that this process may use. Raises DriverProblem for none."""
    library = next(filter(None, map(_open, _LIBRARIES)), None)
    if library is None:
        cards = rocm.architectures()
        here = f" for the {cards[0]} of this machine" if cards else ""
        raise DriverProblem(f"no ROCm{here}: libamdhip64.so is not there; install AMD's ROCm 6 or newer (its HIP "
                            "runtime is enough)")  # fmt: skip
    count = ctypes.c_int()
    if library.hipGetDeviceCount(ctypes.byref(count)) or count.value < 1:
        raise DriverProblem("no ROCm device: AMD's driver sees no card; are you in the groups render and video?")
    version = ctypes.c_int()
    known = library.hipRuntimeGetVersion(ctypes.byref(version)) == 0
    driver = f"ROCm {version.value // 10_000_000}.{version.value // 100_000 % 100}" if known else "ROCm"
    # in the kernel driver's order, which is HIP's unless a variable hides some
    names = rocm.architectures()
    names = names if len(names) == count.value else [""] * count.value
    return [
        FoundDevice("rocm", i, _name(library, i), _memory(library, i), driver, names[i]) for i in range(count.value)
    ]


def _open(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _name(library: Any, index: int) -> str:
    name = ctypes.create_string_buffer(256)
    code = library.hipDeviceGetName(name, len(name), index)
    return "AMD card" if code or not name.value else name.value.decode("utf-8", "replace")


def _memory(library: Any, index: int) -> int:
    nbytes = ctypes.c_size_t()
    return 0 if library.hipDeviceTotalMem(ctypes.byref(nbytes), index) else nbytes.value
