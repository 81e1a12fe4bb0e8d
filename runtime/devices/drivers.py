"""Making TVM drive a device: its driver loaded, and the device found. Nothing of it is imported for the processor."""

from functools import cache
from typing import Any

from .. import processor
from ..errors import EngineError
from ..ffi import Device, global_function
from ..tvm_runtime import load_runtime

_EXISTS, _TOTAL_MEMORY, _AVAILABLE_MEMORY = 0, 14, 15  # TVM's DeviceAttrKind
_OWN = ("opencl", "vulkan", "rocm")  # driven by plug-ins of ours
_NO_LIMIT = 1 << 62


def open_device(device: Device) -> None:
    """Have the device ready for tensors and kernels. Raises EngineError, in one line, where it is not there."""
    load_driver(device.kind)
    if not device.is_host and not global_function("runtime.GetDeviceAttr")(device.type_code, device.number, _EXISTS):
        raise EngineError(f"device {device} is not there: {_problem(device.kind)}")


@cache
def load_driver(kind: str) -> None:
    """Have TVM know a kind of device, so that libraries for it can be loaded, whether or not there is one here.

    Raises EngineError.
    """
    load_runtime()
    _ask(kind, "load")


def available_memory(device: Device) -> int:
    """Bytes of a device's memory that can still be taken: all of it where the driver does not tell what is used."""
    if device.is_host:
        return processor.available_memory()
    ask = global_function("runtime.GetDeviceAttr")
    answers = (ask(device.type_code, device.number, what) for what in (_AVAILABLE_MEMORY, _TOTAL_MEMORY))
    return next((int(answer) for answer in answers if answer), _NO_LIMIT)


def largest_buffer(device: Device) -> int:
    """Bytes that one tensor may have on a device, where its driver limits them."""
    if device.kind not in _OWN:
        return _NO_LIMIT
    return int(_ask(device.kind, "devices")[device.number]["max_buffer"])


def computes_on_processor(device: Device) -> bool:
    """Whether a device is the processor, as a driver of ours calls it: PoCL's, lavapipe's."""
    return device.is_host or (device.kind in _OWN and _ask(device.kind, "devices")[device.number].get("type") == "cpu")


def _problem(kind: str) -> str:
    """Why a device is missing, or who tells which ones there are."""
    return _ask(kind, "problem") or f"`mlc doctor` lists the devices that {kind} sees"


def _ask(kind: str, function: str) -> Any:
    """What the driver of a kind of device does or says: "load", "devices" or "problem". Raises EngineError."""
    if kind in _OWN:
        from . import plugin

        return getattr(plugin, function)(kind)
    if kind == "cuda":
        from . import cuda

        return getattr(cuda, function)()
    if kind == "metal":
        from . import metal

        return getattr(metal, function)()
    return None
