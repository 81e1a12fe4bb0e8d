"""The devices that OpenCL's drivers offer, by a few calls of its C interface (https://registry.khronos.org/OpenCL/)."""

import ctypes
from typing import Any

from .detect import DriverProblem, FoundDevice

_LIBRARIES = ("libOpenCL.so.1", "libOpenCL.so", "/System/Library/Frameworks/OpenCL.framework/OpenCL")
_TYPES = (4, 8, 2)  # CL_DEVICE_TYPE_GPU, _ACCELERATOR, _CPU: the plug-in's order
_PROCESSOR = 2
_MEMORY, _LITTLE, _AVAILABLE, _COMPILER, _NAME, _DRIVER, _PLATFORM_NAME = (
    0x101F, 0x1026, 0x1027, 0x1028, 0x102B, 0x102D, 0x0902,
)  # fmt: skip
_MOST = 64  # platforms, devices of one


def devices() -> list[FoundDevice]:
    """The devices that can be used, in the order of the plug-in. Raises DriverProblem for none."""
    library = next(filter(None, map(_open, _LIBRARIES)), None)
    if library is None:
        raise DriverProblem("no OpenCL: libOpenCL.so.1 is not there; install an OpenCL loader (on Debian "
                            "ocl-icd-libopencl1) and your device's driver")  # fmt: skip
    count, platforms = ctypes.c_uint32(), (ctypes.c_void_p * _MOST)()
    if library.clGetPlatformIDs(_MOST, platforms, ctypes.byref(count)) or not count.value:
        raise DriverProblem("no OpenCL driver: the loader found none (/etc/OpenCL/vendors lists them); install your "
                            "device's driver")  # fmt: skip
    found = [
        (platform, device, kind)
        for kind in _TYPES
        for platform in map(ctypes.c_void_p, platforms[: min(count.value, _MOST)])
        for device in _of_platform(library, platform, kind)
    ]
    if not found:
        raise DriverProblem("no OpenCL device: the installed drivers know none that is available and has a compiler")
    return [_describe(library, i, *one) for i, one in enumerate(found)]


def _open(name: str) -> Any:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None


def _of_platform(library: Any, platform: ctypes.c_void_p, kind: int) -> list[ctypes.c_void_p]:
    """The devices of a type that can be used."""
    count, ids = ctypes.c_uint32(), (ctypes.c_void_p * _MOST)()
    if library.clGetDeviceIDs(platform, ctypes.c_uint64(kind), _MOST, ids, ctypes.byref(count)):
        return []
    found = [ctypes.c_void_p(address) for address in ids[: min(count.value, _MOST)]]
    needed = (_AVAILABLE, _COMPILER, _LITTLE)
    return [one for one in found if all(_number(library, one, what) & 0xFFFFFFFF for what in needed)]


def _describe(library: Any, i: int, platform: ctypes.c_void_p, device: ctypes.c_void_p, kind: int) -> FoundDevice:
    made_by = _text(library.clGetPlatformInfo, platform, _PLATFORM_NAME)
    driver = f"{made_by} {_text(library.clGetDeviceInfo, device, _DRIVER)}".strip()
    name = _text(library.clGetDeviceInfo, device, _NAME)
    return FoundDevice("opencl", i, name, _number(library, device, _MEMORY), driver, is_processor=kind == _PROCESSOR)


def _number(library: Any, device: ctypes.c_void_p, what: int) -> int:
    """A fact of up to 64 bits."""
    value = ctypes.c_uint64()
    code = library.clGetDeviceInfo(device, what, ctypes.c_size_t(8), ctypes.byref(value), None)
    return 0 if code else value.value


def _text(function: Any, of: ctypes.c_void_p, what: int) -> str:
    text = ctypes.create_string_buffer(1024)
    code = function(of, what, ctypes.c_size_t(len(text)), text, None)
    return "" if code else text.value.decode("utf-8", "replace").strip()
