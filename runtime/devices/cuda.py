"""NVIDIA's cards: which there are, by the driver's own interface, and TVM's stock CUDA runtime made to work without
TVM's Python package and without a CUDA toolkit."""

import ctypes
import os
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from ..errors import EngineError
from ..ffi import FFIError
from ..tvm_runtime import load_runtime, one_line
from . import cuda_loader

_RUNTIME, _CUDART = "libtvm_runtime_cuda.so", "libcudart.so.13"
_NEEDED = 13000  # of cuDriverGetVersion: CUDA 13.0, for which the stock runtime was built
_SUCCESS, _NO_DEVICE = 0, 100
# CUdevice_attribute
_MAX_THREADS, _SHARED_MEMORY, _WARP, _PROCESSORS, _MAJOR, _MINOR = 1, 8, 10, 16, 75, 76

_loading = Lock()


class _DriverError(Exception):
    """What the driver refuses, in one line."""


@cache
def _driver() -> Any:
    """The driver's library, ready. Raises _DriverError."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        raise _DriverError("no NVIDIA driver: libcuda.so.1 is not there; install driver 580 or newer") from None
    code = library.cuInit(0)
    if code == _NO_DEVICE:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        hint = "" if visible is None else f" (CUDA_VISIBLE_DEVICES is {visible!r})"
        raise _DriverError(f"no CUDA device: NVIDIA's driver sees no card{hint}")
    if code != _SUCCESS:
        raise _DriverError(f"NVIDIA's driver does not start: {_error_name(library, code)}; does nvidia-smi work?")
    return library


def _error_name(library: Any, code: int) -> str:
    name = ctypes.c_char_p()
    if library.cuGetErrorName(code, ctypes.byref(name)) or not name.value:
        return f"error {code}"
    return name.value.decode()


def _number(function: str, *arguments: Any, kind: Any = ctypes.c_int) -> int:
    """What a function of the driver writes to its first argument."""
    library, value = _driver(), kind()
    code = library[function](ctypes.byref(value), *arguments)
    if code != _SUCCESS:
        raise _DriverError(f"{function} of NVIDIA's driver fails: {_error_name(library, code)}")
    return int(value.value)


def devices() -> list[dict[str, Any]]:
    """The cards that this process may use, in the driver's order; none where `problem` says why.

    Each has name, driver ("CUDA 13.0"), architecture ("sm_90"), memory, max_buffer and shared_memory (of a workgroup)
    in bytes, max_threads of a workgroup, subgroup, float16, processors.
    """
    try:
        return [_device(index) for index in range(_number("cuDeviceGetCount"))]
    except _DriverError:
        return []


def _device(index: int) -> dict[str, Any]:
    number = _number("cuDeviceGet", index)
    name = ctypes.create_string_buffer(256)
    _driver().cuDeviceGetName(name, len(name), number)
    memory = _number("cuDeviceTotalMem_v2", number, kind=ctypes.c_size_t)

    def attribute(which: int) -> int:
        return _number("cuDeviceGetAttribute", which, number)

    version = _number("cuDriverGetVersion")
    return {
        "name": name.value.decode("utf-8", "replace"),
        "driver": f"CUDA {version // 1000}.{version % 1000 // 10}",
        "architecture": f"sm_{attribute(_MAJOR)}{attribute(_MINOR)}",
        "memory": memory,
        "max_buffer": memory,
        "max_threads": attribute(_MAX_THREADS),
        "shared_memory": attribute(_SHARED_MEMORY),
        "subgroup": attribute(_WARP),
        "processors": attribute(_PROCESSORS),
        "float16": True,
    }


def problem() -> str:
    """Why CUDA does not work here, in one line that says what to install; "" if it does. Loads the driver alone."""
    try:
        version = _number("cuDriverGetVersion")
        if version < _NEEDED:
            return (f"NVIDIA's driver is for CUDA {version // 1000}.{version % 1000 // 10}, TVM's runtime needs 13.0: "
                    "install driver 580 or newer")  # fmt: skip
        if not _number("cuDeviceGetCount"):
            return "no CUDA device: NVIDIA's driver sees no card"
    except _DriverError as error:
        return str(error)
    if _package_file("tvm", f"lib/{_RUNTIME}") is None:
        return f"the installed TVM has no CUDA runtime ({_RUNTIME}): run `pip install --force-reinstall apache-tvm`"
    if _cuda_runtime() is None:
        return f"the CUDA runtime ({_CUDART}) is missing: run `pip install nvidia-cuda-runtime`"
    return ""


def load() -> None:
    """Make TVM's runtime drive CUDA in this process, and load libraries that `mlc compile --device cuda` has made.

    Once is enough. Raises EngineError with the `problem`.
    """
    with _loading:
        _load()


@cache
def _load() -> None:
    found = problem()
    if found:
        raise EngineError(f"CUDA does not work here: {found}")
    load_runtime()
    path = _package_file("tvm", f"lib/{_RUNTIME}")
    try:
        # the stock runtime looks for it in the system's folders and its own; once loaded, it is found by its name
        ctypes.CDLL(_cuda_runtime(), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
        cuda_loader.install(lambda: [card["architecture"] for card in devices()])
    except (OSError, FFIError) as error:
        raise EngineError(f"TVM's CUDA runtime ({path}) cannot be loaded: {one_line(error)}") from None


@cache
def _cuda_runtime() -> str | None:
    """Where the CUDA runtime is: in pip's package, in a toolkit, or by name where the system finds it."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    folders = [*_packaged(), *(home / lib for home in homes for lib in ("lib64", "lib"))]
    for folder in folders:
        if (folder / _CUDART).is_file():
            return str(folder / _CUDART)
    try:
        ctypes.CDLL(_CUDART)
    except OSError:
        return None
    return _CUDART


def _packaged() -> Iterator[Path]:
    """The library folders of NVIDIA's pip packages: nvidia/cu13/lib, nvidia/cuda_runtime/lib and the like."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted(Path(folder).glob("*/lib"), reverse=True)


def _package_file(package: str, name: str) -> Path | None:
    """A file of a package, which is found but not imported."""
    spec = find_spec(package)
    paths = (Path(folder) / name for folder in (spec.submodule_search_locations or [] if spec else []))
    return next((path for path in paths if path.is_file()), None)
