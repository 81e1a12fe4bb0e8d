"""Making TVM drive a device: its plug-in loaded, and the device found."""

from functools import cache

from ..errors import EngineError
from ..ffi import HOST, Device, global_function
from ..tvm_runtime import load_runtime
from . import cuda

_EXISTS = 0  # TVM's kExist


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
    if kind == "cuda":  # TVM's own, not a plug-in of ours
        cuda.load()
    elif kind != HOST.kind:
        from .plugin import load

        load(kind)


def _problem(kind: str) -> str:
    """What a plug-in says of why it sees no device, or of how many it sees."""
    problem = cuda.problem() if kind == "cuda" else str(global_function(f"mlc.{kind}.problem")())
    return problem or f"`mlc doctor` lists the devices that {kind} sees"
