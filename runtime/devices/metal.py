"""Apple's devices: TVM's stock Metal runtime, from TVM's wheel for macOS, without TVM's Python package."""

import ctypes
import sys
from functools import cache

from ..errors import EngineError
from ..tvm_runtime import load_runtime, package_file

_RUNTIME = "libtvm_runtime_metal.dylib"


@cache
def load() -> None:
    """Make TVM drive Metal. Raises EngineError where that is not to be had."""
    load_runtime()
    if reason := problem():
        raise EngineError(f"device metal is not there: {reason}")
    library = package_file("tvm", _RUNTIME)
    try:
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise EngineError(f"{library} cannot be loaded: {error}".partition("\n")[0]) from None


def problem() -> str:
    """Why there is no device, in one line; empty where there may be one."""
    return "" if sys.platform == "darwin" else "this is no Mac"
