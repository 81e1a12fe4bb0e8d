"""Plug-ins through which TVM drives a kind of device: prebuilt in the wheel, else built once by the C++ compiler.

A plug-in is a shared library. As soon as it is loaded, TVM has the device's interface (`device_api.opencl`) and can
load the kernels that are in a model library (`ffi.Module.load_from_bytes.opencl`). It needs TVM's headers, which its
wheels bring, and no header or library of the driver: it opens that at run time. So a plug-in builds and loads where
there is no driver, and `devices` and `problem` tell.
"""

import ctypes
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from .. import ffi
from ..artifact import cache_home
from ..errors import EngineError
from ..locks import locked
from ..tvm_runtime import global_function, load_runtime, one_line

FOLDERS = {"opencl": "opencl", "vulkan": "vulkan", "rocm": "hip"}  # kind of device -> folder of its sources
_HERE = Path(__file__).parent
PREBUILT = _HERE / "prebuilt"
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-w")
_COMPILERS = ("c++", "g++", "clang++")
_TIMEOUT = 600  # seconds for one file: a loaded machine may be slow
_SEAL = b"\nmlc plug-in, sha256 of the above: "  # ends a built file, before the digest
_lock = threading.Lock()


def load(kind: str) -> None:
    """Make TVM drive devices of a kind ("opencl", "vulkan", "rocm") in this process; a second call does nothing.

    Raises EngineError, in one line, where the plug-in is neither prebuilt nor can be built.
    """
    with _lock:
        load_runtime()
        if _is_loaded(kind):
            return
        came = prebuilt(kind)
        if came is None or _open(came):  # it may be made for a newer C library than this machine's
            path = built(kind)
            if reason := _open(path):
                raise EngineError(f"the {kind} plug-in {path} cannot be loaded: {reason}")


def _open(path: Path) -> str:
    """Load a plug-in; why that is not possible, in one line, or ""."""
    try:
        ctypes.CDLL(str(path))
    except OSError as error:
        return one_line(error)
    return ""


def devices(kind: str) -> list[dict[str, Any]]:
    """The devices of a kind, best first: name, driver, memory (bytes), limits. Loads the plug-in.

    Raises EngineError as `load` does.
    """
    load(kind)
    found: list[dict[str, Any]] = json.loads(global_function(f"mlc.{kind}.devices")())
    return found


def problem(kind: str) -> str:
    """Why there are no devices of a kind, in one line; "" if there are. Loads the plug-in.

    Raises EngineError as `load` does.
    """
    load(kind)
    return str(global_function(f"mlc.{kind}.problem")())


def _is_loaded(kind: str) -> bool:
    try:
        ffi.global_function(f"mlc.{kind}.devices")
    except ffi.FFIError:
        return False
    return True


def prebuilt(kind: str) -> Path | None:
    """The plug-in that came with the wheel, if it fits these sources, the installed TVM and this machine."""
    path = PREBUILT / file_name(kind)
    return path if path.is_file() else None


def built(kind: str) -> Path:
    """The plug-in in the user's cache folder, built now if it is not there whole. Raises EngineError."""
    path = _cached(kind)
    if _is_whole(path):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock"), path, lambda note: print(note, file=sys.stderr)):
            if not _is_whole(path):  # another process may have built it meanwhile
                print(f"the {kind} plug-in is compiled, once, which takes some seconds", file=sys.stderr, flush=True)
                compile_plugin(kind, path)
    except OSError as error:
        raise EngineError(f"the {kind} plug-in cannot be written to {path.parent}: {error.strerror or error}") from None
    return path


def is_built(kind: str) -> bool:
    """Whether the user's cache folder has the plug-in."""
    return _is_whole(_cached(kind))


def _cached(kind: str) -> Path:
    return cache_home() / "plugins" / file_name(kind, os.environ.get("CXX", ""))


def file_name(kind: str, compiler: str = "") -> str:
    """The name of a plug-in's file; it differs wherever another one would have to be built."""
    digest = hashlib.sha256()
    for path in sources(kind):
        digest.update(f"{path.relative_to(_HERE)}\n".encode() + path.read_bytes())
    versions = (_version("tvm", "apache_tvm"), _version("tvm_ffi", "apache_tvm_ffi"))
    digest.update(repr((_FLAGS, compiler, versions)).encode())
    return f"{kind}-{sys.platform}-{platform.machine()}-{digest.hexdigest()[:16]}.so"


def sources(kind: str) -> list[Path]:
    """The C++ files that a plug-in is built from, headers included."""
    if kind not in FOLDERS:
        raise EngineError(f"there is no plug-in for {kind!r}: expected {', '.join(FOLDERS)}")
    folders = (_HERE / "shared", _HERE / FOLDERS[kind])
    return sorted(path for folder in folders for path in folder.glob("*.*") if path.suffix in (".cc", ".h"))


def can_build() -> bool:
    """Whether there is a C++ compiler."""
    return _compiler() is not None


def _is_whole(path: Path) -> bool:
    """Whether the file is what was built: the system would crash on the pages that a truncated one lacks."""
    with suppress(OSError):
        content, seal, digest = path.read_bytes().rpartition(_SEAL)
        return bool(seal) and hashlib.sha256(content).digest() == digest
    return False


def compile_plugin(kind: str, output: Path) -> None:
    """Build a plug-in; `output` appears whole or not at all.

    Raises EngineError, in one line, without a C++ compiler or TVM's headers, or where the sources do not compile;
    OSError where nothing can be written.
    """
    compiler = _compiler()
    if compiler is None:
        raise EngineError(f"the {kind} plug-in has to be built once, and there is no C++ compiler: install g++ or "
                          "clang++, or name one in $CXX")  # fmt: skip
    includes = [f"-I{folder}" for folder in (_folder("tvm", "include"), _folder("tvm_ffi", "include"))]
    libraries = [_folder("tvm", "lib") / "libtvm_runtime.so", _folder("tvm_ffi", "lib") / "libtvm_ffi.so"]
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{kind}-") as workspace:
        objects = {path: f"{workspace}/{path.stem}.o" for path in sources(kind) if path.suffix == ".cc"}
        commands = [[*compiler, *_FLAGS, *includes, "-c", str(path), "-o", made] for path, made in objects.items()]
        _run_all(kind, commands)
        linked = Path(workspace) / "plugin.so"
        # named as libraries, so that they are found where they are loaded privately too
        needs = [*(str(path) for path in libraries), "-ldl", "-pthread"]
        _run_all(kind, [[*compiler, "-shared", "-Wl,-s", *objects.values(), *needs, "-o", str(linked)]])
        content = linked.read_bytes()
        linked.write_bytes(content + _SEAL + hashlib.sha256(content).digest())
        linked.chmod(0o755)
        linked.replace(output)


def _run_all(kind: str, commands: list[list[str]]) -> None:
    """Run commands of a compiler, as many at a time as there are cores. Raises EngineError with its first error."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        for result in threads.map(_run, commands):
            if result.returncode:
                reason = _first_error(result.stderr or f"exit status {result.returncode}")
                raise EngineError(f"the {kind} plug-in could not be built by {commands[0][0]}: {reason}")


def _run(command: list[str]) -> "subprocess.CompletedProcess[str]":
    environment = {**os.environ, "LC_ALL": "C"}  # errors are looked for by their English name
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              env=environment, timeout=_TIMEOUT, check=False)  # fmt: skip
    except OSError as error:
        raise EngineError(f"{command[0]} cannot be run: {error.strerror or error}: $CXX names a C++ compiler") from None
    except subprocess.TimeoutExpired:
        raise EngineError(f"{command[0]} took more than {_TIMEOUT} s: $CXX names a C++ compiler") from None


def _first_error(log: str) -> str:
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "it gave no reason")


def _compiler() -> list[str] | None:
    """The command of the C++ compiler; None where there is none."""
    named = os.environ.get("CXX", "").split()
    found = next((path for path in map(shutil.which, _COMPILERS) if path), None)
    return named or (None if found is None else [found])


@cache
def _folder(package: str, name: str) -> Path:
    """A folder of TVM's wheels. The packages are found but not imported."""
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (Path(folder) / name).is_dir():
            return Path(folder) / name
    raise EngineError(f"the folder {package}/{name} of TVM is missing: run `pip install apache-tvm apache-tvm-ffi`")


@cache
def _version(package: str, distribution: str) -> str:
    """The version of an installed package; "" where it is not installed as a distribution."""
    for info in _folder(package, "lib").parent.parent.glob(f"{distribution}-*.dist-info"):
        return info.name.removeprefix(f"{distribution}-").removesuffix(".dist-info")
    return ""
