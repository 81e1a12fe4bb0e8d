"""Linking a model library for whatever machine `--host` names, from this one.

    this machine            $CXX, $CC, else g++, gcc, clang on PATH
    another one of Linux    $CXX, $CC, else <triple>-g++, <triple>-gcc on PATH, else ziglang
    macOS, iOS              $CXX, $CC, else ziglang (unless this is that kind of machine)

`ziglang` is a package of PyPI: clang, a linker for every format, and the headers and names of the systems' libraries.
What the library calls of TVM's runtime stays undefined, on every system: whoever loads the library has loaded it.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..runtime.artifact import cache_home
from ..runtime.errors import EngineError
from .target.cpu import native_triple
from .target.host import Host, parse_host

_THREADS = Path(__file__).parent / "kernels/cpu/threads.c"  # goes into every library
# The order in which tvm.support.cc looks for one; $CXX and $CC come first.
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")
_GLIBC = "2.28"  # that of TVM's own wheels
# ziglang has no stub of iOS's system library: these are its names that threads.c and the compiler itself ask for.
_IOS_SYSTEM = """--- !tapi-tbd
tbd-version: 4
targets: [ arm64-ios ]
install-name: '/usr/lib/libSystem.B.dylib'
exports:
  - targets: [ arm64-ios ]
    symbols: [ ___cxa_atexit, __tlv_bootstrap, _clock_gettime, dyld_stub_binder, _pthread_atfork,
               _pthread_cond_broadcast, _pthread_cond_init, _pthread_cond_signal, _pthread_cond_wait, _pthread_create,
               _pthread_join, _pthread_mutex_init, _pthread_mutex_lock, _pthread_mutex_trylock, _pthread_mutex_unlock,
               _bzero, _memcpy, _memmove, _memset, _exp, _expf, _log, _logf, _powf, _tanhf, _erff, _fmodf ]
...
"""


@dataclass(frozen=True)
class Linker:
    """A C compiler that links for a host."""

    host: Host
    command: str  # a program
    is_zig: bool = False


def find_linker(triple: str) -> Linker:
    """What links model libraries for a host. Raises UsageError for the host, EngineError where nothing does."""
    host = parse_host(triple)
    for variable in ("CXX", "CC"):
        if command := os.environ.get(variable):
            if shutil.which(command) is None:
                raise EngineError(f"${variable} is {command!r}, and there is no such program: unset it or correct it")
            return Linker(host, command)
    native = parse_host(native_triple())
    foreign = (host.architecture, host.system) != (native.architecture, native.system)
    names: Sequence[str] = _COMPILERS
    if foreign:
        short = f"{host.architecture}-linux-{host.abi}"
        names = [] if host.is_apple else [f"{t}-{c}" for t in dict.fromkeys((triple, short)) for c in ("g++", "gcc")]
    for name in names:
        if path := shutil.which(name):
            return Linker(host, path)
    if zig := _zig():
        return Linker(host, zig, is_zig=True)
    if foreign:
        gcc = "" if host.is_apple else f"have {triple}-gcc on PATH, or "
        raise EngineError(f"no C compiler found for {triple}: run `pip install ziglang`, or {gcc}name one in $CC")
    raise EngineError(
        "no C compiler found: cc, gcc or clang on PATH is needed to link the model library: install one "
        "(Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install; "
        "or pip install ziglang)"
    )


def _zig() -> str | None:
    """The program of the package `ziglang`."""
    spec = find_spec("ziglang")
    folders = list(spec.submodule_search_locations or []) if spec else []
    return next((str(path) for path in (Path(folder) / "zig" for folder in folders) if path.is_file()), None)


def link(executable: Any, linker: Linker, folder: Path, output: Path, device: str) -> None:
    """Link what TVM built (`export_library` of it) in the workspace `folder` and move the library into place.

    `device` is written into the library, to be read before it is loaded. The same input gives the same bytes. Raises
    EngineError with the linker's reason.
    """
    linked = folder / f"library{linker.host.suffix}"  # a signed Mach-O file keeps this name inside

    def compile_and_link(target: str, objects: list[str], **_: Any) -> None:
        command = [
            linker.command,
            *_options(linker, folder, output),
            f'-DMLC_DEVICE="{device}"',
            "-o",
            target,
            *objects,
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", env=_environment(folder))
        if done.returncode != 0:
            name = "ziglang" if linker.is_zig else linker.command
            raise EngineError(f"{output} could not be linked by {name} ({_reason(done.stdout + done.stderr)}): "
                              "$CC names another compiler")  # fmt: skip

    executable.export_library(str(linked), fcompile=compile_and_link, addons=[str(_THREADS)], workspace_dir=str(folder))
    linked.chmod(0o755)
    linked.replace(output)


def _options(linker: Linker, folder: Path, output: Path) -> list[str]:
    host = linker.host
    options = ["-shared", "-fPIC", "-O2", "-g0"]
    if host.is_apple:
        # local names are left out; a program that brings the library along finds it under its file name
        options += ["-Wl,-undefined,dynamic_lookup", f"-Wl,-install_name,@rpath/{output.name}", "-Wl,-x"]
    else:
        options += ["-pthread", "-Wl,-s", "-Wl,--build-id=none"]  # no names of temporary files, no id
    if not linker.is_zig:
        return options
    zig_system = f"{host.system}.{host.version}" if host.is_apple else f"linux-{host.abi}"
    if host.abi.startswith("gnu"):
        zig_system += f".{_GLIBC}"
    options = ["cc", "-target", f"{host.architecture}-{zig_system}", *options]
    if host.is_apple:
        options.append("-rtlib=none")  # their system library has those functions, and ziglang would compile its own
    if host.system == "ios":
        (folder / "libSystem.tbd").write_text(_IOS_SYSTEM)
        options.append(f"-L{folder}")
        headers = Path(linker.command).parent / "lib/libc/include"  # those of macOS: they declare the same functions
        for name in ("any-darwin-any", "any-macos-any"):  # of newer and of older versions
            options += ["-isystem", str(headers / name)]
    return options


def _environment(folder: Path) -> dict[str, str]:
    """ziglang keeps what it compiled of the systems' libraries with our other caches."""
    return {"ZIG_GLOBAL_CACHE_DIR": str(cache_home() / "zig"), **os.environ, "ZIG_LOCAL_CACHE_DIR": str(folder / "zig")}


def _reason(output: str) -> str:
    """The line of a failed linker's output that says why."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line or "failed" in line), lines[-1] if lines else "it gave no reason"
    )
