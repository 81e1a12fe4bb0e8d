"""TVM without its compiler: its runtime loaded into the process, memory for tensors, and tensors over numpy arrays.

`import tvm` would load a compiler of 260 MB and take most of a second; nothing here needs it, nor `tvm_ffi`.
"""

import ctypes
import mmap
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ffi, ffi_tensor
from .errors import EngineError, ModelFileError

if TYPE_CHECKING:
    import numpy as np

ALIGNMENT = 64  # what compiled kernels expect of the address of a tensor
_HUGE_PAGE = 2 << 20


@cache
def load_runtime() -> None:
    """Load TVM's runtime into the process. Raises EngineError when there is none."""
    runtime = package_file("tvm", library_file("tvm_runtime"))
    interface = package_file("tvm_ffi", library_file("tvm_ffi"))
    try:
        ffi.load(str(interface), str(runtime))
    except (OSError, ffi.FFIError) as error:
        raise EngineError(f"{runtime} cannot be loaded: {one_line(error)}") from None


def library_file(name: str) -> str:
    """The file of one of TVM's libraries."""
    return f"lib{name}.dylib" if sys.platform == "darwin" else f"lib{name}.so"


def package_file(package: str, name: str) -> Path:
    """A shared library of TVM's. The package is found but not imported."""
    spec = find_spec(package)
    folders = list(spec.submodule_search_locations or []) if spec else []
    library = next((path for path in (Path(f) / "lib" / name for f in folders) if path.exists()), None)
    if library is None:
        raise EngineError(f"the TVM runtime ({name}) is missing: run `pip install apache-tvm`")
    return library


@cache
def tvm_version() -> str:
    """The version of the installed TVM, as "0.27.0.post1"."""
    spec = find_spec("tvm")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        # importlib.metadata would read the same name, but takes 20 ms to import.
        for info in Path(folder).parent.glob("apache_tvm-*.dist-info"):
            return info.name.removeprefix("apache_tvm-").removesuffix(".dist-info")
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("apache-tvm")
    except PackageNotFoundError:
        raise EngineError("TVM is not installed: run `pip install apache-tvm`") from None


@cache
def global_function(name: str) -> ffi.Function:
    """A function that TVM's runtime registers, as "vm.builtin.kv_state_popn"."""
    load_runtime()
    return ffi.global_function(name)


def one_line(error: BaseException) -> str:
    """The first line of an error's message that says something; TVM's messages carry a trace of its C++ frames."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line for line in lines if line), type(error).__name__)


class Arena:
    """One block of memory that tensors and arrays are cut from, in huge pages where the kernel grants them.

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
        start = -ctypes.addressof(ctypes.c_char.from_buffer(block)) % _HUGE_PAGE
        self.memory = memoryview(block)[start:]
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        self._next = 0

    def tensor(self, shape: Sequence[int], dtype: str) -> ffi_tensor.Tensor:
        """A new tensor, aligned for kernels. Raises ValueError when the arena is full."""
        start = self._take(nbytes_of(shape, dtype))
        load_runtime()
        return ffi_tensor.tensor(self._address + start, dtype, shape, self)

    def array(self, shape: Sequence[int], dtype: "np.dtype[Any]") -> "np.ndarray[Any, Any]":
        """A new numpy array, aligned for kernels. Raises ValueError when the arena is full."""
        import numpy as np

        nbytes = prod(shape) * dtype.itemsize
        start = self._take(nbytes)
        return np.frombuffer(self.memory[start : start + nbytes], dtype).reshape(tuple(shape))

    def _take(self, nbytes: int) -> int:
        start, end = self._next, self._next + nbytes
        if end > self.memory.nbytes:
            raise ValueError(f"the arena has {self.memory.nbytes - start} bytes left, not {nbytes}")
        self._next = end + -end % ALIGNMENT
        return start

    @staticmethod
    def room(nbytes: int) -> int:
        """Bytes that an array of `nbytes` takes of an arena."""
        return nbytes + -nbytes % ALIGNMENT


def nbytes_of(shape: Sequence[int], dtype: str) -> int:
    """Bytes of a tensor. Raises ModelFileError for an unknown type."""
    try:
        return prod(shape) * ffi_tensor.itemsize(dtype)
    except KeyError:
        raise ModelFileError(f"tensor type {dtype!r} is unknown") from None


def numpy_dtype(dtype: str) -> "np.dtype[Any]":
    """The numpy type that holds values of TVM's type `dtype`. Raises ModelFileError for an unknown name.

    Types that numpy has no name for travel as the unsigned integers of their bits.
    """
    import numpy as np

    try:
        return np.dtype(ffi_tensor.numpy_name(dtype))
    except KeyError:
        raise ModelFileError(f"tensor type {dtype!r} is unknown") from None


def tensor(array: "np.ndarray[Any, Any]", dtype: str | None = None) -> ffi_tensor.Tensor:
    """A TVM tensor over the memory of a contiguous `array`; `dtype` where numpy's type only carries the bits."""
    load_runtime()
    address: int = array.__array_interface__["data"][0]
    return ffi_tensor.tensor(address, dtype or str(array.dtype), array.shape, array)
