"""The graphics processor of a Mac, as Metal tells of it."""

import ctypes
import platform
import sys
from typing import Any

from .detect import DriverProblem, FoundDevice

_FRAMEWORKS = "/System/Library/Frameworks/{0}.framework/{0}"


def devices() -> list[FoundDevice]:
    """The device that the system prefers. Raises DriverProblem where there is none."""
    if sys.platform != "darwin":
        raise DriverProblem("no Metal: this is no Mac")
    try:
        ctypes.CDLL(_FRAMEWORKS.format("CoreGraphics"))  # without it a program that has no window finds no device
        metal, objc = ctypes.CDLL(_FRAMEWORKS.format("Metal")), ctypes.CDLL("/usr/lib/libobjc.dylib")
    except OSError as error:
        raise DriverProblem(f"no Metal: {error}") from None
    metal.MTLCreateSystemDefaultDevice.restype = ctypes.c_void_p
    device = metal.MTLCreateSystemDefaultDevice()
    if not device:
        raise DriverProblem("no Metal device: macOS offers none to this process")
    name = _ask(objc, _ask(objc, device, b"name", ctypes.c_void_p), b"UTF8String", ctypes.c_char_p)
    memory = _ask(objc, device, b"recommendedMaxWorkingSetSize", ctypes.c_uint64)
    return [FoundDevice("metal", 0, (name or b"Metal device").decode(), memory or 0, f"macOS {platform.mac_ver()[0]}")]


def _ask(objc: Any, receiver: int, message: bytes, result: Any) -> Any:
    """The answer of an object to a message without arguments."""
    objc.sel_registerName.restype = ctypes.c_void_p
    selector = objc.sel_registerName(message)
    send = ctypes.CFUNCTYPE(result, ctypes.c_void_p, ctypes.c_void_p)(("objc_msgSend", objc))
    return send(receiver, selector)
