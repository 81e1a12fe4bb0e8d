"""TVM without its compiler: `tvm_ffi` and `libtvm_runtime.so`, and arrays that pass between them and numpy.

`import tvm` would load a compiler of 260 MB and take most of a second; nothing here needs it.
"""

import ctypes
import importlib.metadata
import importlib.util
import mmap
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from .errors import EngineError, ModelFileError

ALIGNMENT = 64  # what compiled kernels expect of the address of a tensor
_HUGE_PAGE = 2 << 20


@contextmanager
def _torch_unseen() -> Iterator[None]:
    """Keep tvm_ffi from importing torch, which it tries first and which takes two seconds where it is installed."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # type: ignore[assignment]  # makes `import torch` an ImportError
    try:
        yield
    finally:
        del sys.modules["torch"]


@cache
def tvm_ffi() -> ModuleType:
    """The package `tvm_ffi` with TVM's runtime loaded into the process. Raises EngineError when there is none."""
    spec = importlib.util.find_spec("tvm")
    folders = list(spec.submodule_search_locations or []) if spec else []
    library = next((path for path in (Path(f) / "lib/libtvm_runtime.so" for f in folders) if path.exists()), None)
    if library is None:
        raise EngineError("the TVM runtime (libtvm_runtime.so) is missing: run `pip install apache-tvm`")
    try:
        with _torch_unseen():
            import tvm_ffi
        ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
    except (ImportError, OSError) as error:
        raise EngineError(f"{library} cannot be loaded: {one_line(error)}") from None
    return tvm_ffi  # type: ignore[no-any-return]


@cache
def tvm_version() -> str:
    """The version of the installed TVM, as "0.27.0.post1"."""
    try:
        return importlib.metadata.version("apache-tvm")
    except importlib.metadata.PackageNotFoundError:
        raise EngineError("TVM is not installed: run `pip install apache-tvm`") from None


def global_function(name: str) -> Any:
    """A function that TVM's runtime registers, as "vm.builtin.kv_state_popn"."""
    return tvm_ffi().get_global_func(name)


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something; TVM's messages carry a trace of its C++ frames."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class Arena:
    """One block of memory that arrays are cut from, in huge pages where the kernel grants them.

    Kernels that stream weights are a third faster on huge pages: fewer misses of the address translation.
    Private and anonymous because the kernel gives huge pages to no other kind of mapping.
    """

    def __init__(self, nbytes: int) -> None:
        """Raises EngineError when there is not that much address space."""
        try:
            block = mmap.mmap(-1, max(nbytes, 1) + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except (OSError, ValueError, OverflowError) as error:
            raise EngineError(f"{nbytes >> 20} MiB of memory for weights are not available: {error}") from None
        with suppress(AttributeError, OSError):  # a kernel, or a Python, without huge pages
            block.madvise(mmap.MADV_HUGEPAGE)
        self._bytes = np.frombuffer(block, np.uint8)
        self._next = -self._bytes.ctypes.data % _HUGE_PAGE

    def array(self, shape: Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """A new array, aligned for kernels. Raises ValueError when the arena is full."""
        nbytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        start, end = self._next, self._next + nbytes
        if end > self._bytes.size:
            raise ValueError(f"the arena has {self._bytes.size - start} bytes left, not {nbytes}")
        self._next = end + -end % ALIGNMENT
        return self._bytes[start:end].view(dtype).reshape(tuple(shape))

    @staticmethod
    def room(nbytes: int) -> int:
        """Bytes that an array of `nbytes` takes of an arena."""
        return nbytes + -nbytes % ALIGNMENT


# Types that numpy has no name for travel as the unsigned integers of their bits.
_STORAGE = {"bfloat16": "uint16", "float8_e4m3fn": "uint8", "float8_e5m2": "uint8"}


def numpy_dtype(dtype: str) -> np.dtype[Any]:
    """The numpy type that holds values of TVM's type `dtype`. Raises ModelFileError for an unknown name."""
    try:
        return np.dtype(_STORAGE.get(dtype, dtype))
    except TypeError:
        raise ModelFileError(f"tensor type {dtype!r} is unknown") from None


def tensor(array: np.ndarray[Any, Any], dtype: str | None = None) -> Any:
    """A TVM tensor over the memory of `array`, without a copy; `dtype` where numpy's type only carries the bits."""
    result = tvm_ffi().from_dlpack(array)
    if dtype in _STORAGE:
        result = view(result, array.shape, dtype)
    return result


def view(source: Any, shape: Sequence[int], dtype: Any = None) -> Any:
    """The same memory with another shape, and type where one is given."""
    ffi = tvm_ffi()
    target = source.dtype if dtype is None else ffi.dtype(dtype)
    return global_function("runtime.TVMTensorCreateView")(source, ffi.Shape(tuple(shape)), target, 0)
