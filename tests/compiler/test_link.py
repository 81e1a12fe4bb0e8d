"""What links a library for a host, and what the linked libraries are, as lief reads them."""

import platform
import struct
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import lief
import numpy as np
import pytest
import tvm
from compiled_kernels import needs_qemu
from tvm.script import tirx as T

from mlc_llm.compiler import link as linking
from mlc_llm.compiler.link import Linker, find_linker, link
from mlc_llm.compiler.target.cpu import native_triple
from mlc_llm.compiler.target.host import Host, parse_host
from mlc_llm.runtime.errors import EngineError

needs_zig = pytest.mark.skipif(find_spec("ziglang") is None, reason="links with ziglang: pip install ziglang")
# What a library may leave to whatever is loaded: TVM's runtime, and conversions that it weakly has itself.
UNDEFINED = ("_TVMFFI", "_TVMBackend", "___extendhfsf2", "___truncsfhf2")


@T.prim_func(s_tir=True)
def kernel(a: T.Buffer((64,), "float32"), b: T.Buffer((64,), "float32")) -> None:  # type: ignore[no-untyped-def]
    for i in T.parallel(64):
        b[i] = T.exp(a[i]) * T.float32(2)


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True, scope="module")
def _one_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """ziglang compiles its own libraries once, not for each test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZIG_GLOBAL_CACHE_DIR", str(tmp_path_factory.mktemp("zig")))
        yield


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder in which programs are found; ziglang is not installed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(linking, "_zig", lambda: None)
    return tmp_path


def test_another_machine_needs_a_linker_of_its_own(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcc = program(programs / "gcc")
    assert find_linker(native_triple()).command == str(gcc)
    with pytest.raises(EngineError) as caught:
        find_linker("s390x-linux-gnu")
    assert str(caught.value) == (
        "no C compiler found for s390x-linux-gnu: run `pip install ziglang`, "
        "or have s390x-linux-gnu-gcc on PATH, or name one in $CC"
    )
    cross = program(programs / "s390x-linux-gnu-gcc")
    assert find_linker("s390x-linux-gnu").command == find_linker("s390x-unknown-linux-gnu").command == str(cross)
    monkeypatch.setenv("CC", str(gcc))
    assert find_linker("s390x-linux-gnu").command == str(gcc)


def test_ziglang_links_what_no_compiler_on_the_path_does(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = "s390x-linux-gnu"
    with pytest.raises(
        EngineError, match=r"^no C compiler found for arm64-apple-ios: run `pip install ziglang`, or name one in"
    ):
        find_linker("arm64-apple-ios")
    with pytest.raises(EngineError, match=r"^no C compiler found: cc, gcc or clang on PATH .*; or pip install ziglang"):
        find_linker(native_triple())
    monkeypatch.setattr(linking, "_zig", lambda: "/zig")
    assert find_linker(foreign) == Linker(parse_host(foreign), "/zig", is_zig=True)
    assert find_linker(native_triple()).is_zig
    program(programs / "cc")
    assert not find_linker(native_triple()).is_zig
    assert find_linker("arm64-apple-macos").is_zig


class Exported:
    """An executable of which a linker hears, without one being made."""

    def export_library(self, path: str, *, fcompile: Any, addons: list[str], workspace_dir: str) -> None:
        fcompile(path, addons)


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "it gave no reason"),
        ("ld: warning: odd\nld: lib0.o: error adding symbols\ncollect2: error: 1", "ld: lib0.o: error adding symbols"),
        ("ld: final link failed: No space left on device\ncollect2: error: ld returned 1",
         "ld: final link failed: No space left on device"),
        ("cannot do it", "cannot do it"),
    ],
)  # fmt: skip
def test_a_failed_linker_gives_its_reason_and_the_old_library_stays(output: str, reason: str, tmp_path: Path) -> None:
    old, folder, failing = tmp_path / "x.so", tmp_path / "folder", tmp_path / "cc"
    old.write_text("old")
    folder.mkdir()
    failing.write_text(f"#!/bin/sh\ncat >&2 <<'END'\n{output}\nEND\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(EngineError) as caught:
        link(Exported(), Linker(parse_host(native_triple()), str(failing)), folder, old, "cpu")
    assert str(caught.value) == f"{old} could not be linked by {failing} ({reason}): $CC names another compiler"
    assert old.read_text() == "old"


def linked(triple: str, folder: Path, linker: Linker | None = None) -> Path:
    """A library with one kernel, `kernel`."""
    target = tvm.target.Target({"kind": "llvm", "mtriple": triple})
    executable = tvm.compile(tvm.IRModule({"kernel": kernel}), target=target)
    folder.mkdir()
    output = folder.parent / f"{folder.name}-output" / f"kernel{parse_host(triple).suffix}"
    output.parent.mkdir()
    link(executable, linker or find_linker(triple), folder, output, "cpu")
    return output


def zig(triple: str) -> Linker:
    command = linking._zig()
    assert command is not None
    return Linker(parse_host(triple), command, is_zig=True)


@pytest.mark.parametrize("linker", ["found", pytest.param("zig", marks=[needs_zig, pytest.mark.slow])])
def test_a_library_for_this_machine_runs(linker: str, tmp_path: Path) -> None:
    triple = native_triple()
    path = linked(triple, tmp_path / "work", zig(triple) if linker == "zig" else None)
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    result = tvm.runtime.empty((64,), "float32")
    tvm.runtime.load_module(str(path))["kernel"](tvm.runtime.tensor(x), result)
    np.testing.assert_allclose(result.numpy(), np.exp(x) * 2, rtol=1e-6)


@pytest.mark.parametrize("linker", ["aarch64-linux-gnu-gcc", pytest.param("zig", marks=[needs_zig, pytest.mark.slow])])
@needs_qemu
def test_a_library_for_another_processor_runs_under_qemu(linker: str, tmp_path: Path) -> None:
    triple = "aarch64-linux-gnu"
    path = linked(triple, tmp_path / "work", zig(triple) if linker == "zig" else Linker(parse_host(triple), linker))
    program = tmp_path / "program"
    harness = Path(__file__).parents[1] / "helpers/kernel_main.c"  # a program that calls `kernel`
    subprocess.run(
        ["aarch64-linux-gnu-gcc", "-rdynamic", "-o", str(program), str(harness), str(path), "-lm"], check=True
    )
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    tensor = struct.pack("=3iq", 1, 2, 32, x.size) + x.tobytes()
    emulator = ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", "-E", f"LD_LIBRARY_PATH={path.parent}"]
    done = subprocess.run([*emulator, str(program)], input=struct.pack("=i", 2) + tensor * 2, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    np.testing.assert_allclose(np.frombuffer(done.stdout, np.float32)[64:], np.exp(x) * 2, rtol=1e-6)


@needs_zig
@pytest.mark.slow
def test_a_library_for_another_linux(tmp_path: Path) -> None:
    triple = "riscv64-linux-gnu" if platform.machine() == "aarch64" else "aarch64-linux-gnu"
    first, second = (linked(triple, tmp_path / name, zig(triple)) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    library = lief.ELF.parse(str(first))
    assert library is not None
    assert library.header.machine_type == getattr(lief.ELF.ARCH, "RISCV" if triple.startswith("riscv") else "AARCH64")
    assert {"__tvm_ffi_kernel", "__tvm_ffi_set_num_threads"} <= {symbol.name for symbol in library.exported_symbols}
    assert str(tmp_path) not in first.read_bytes().decode("latin1")


@needs_zig
@pytest.mark.parametrize(
    ("triple", "processor", "system"),
    [
        ("arm64-apple-macos", "ARM64", "MACOS"),
        ("x86_64-apple-macos", "X86_64", "MACOS"),
        ("arm64-apple-ios15.0", "ARM64", "IOS"),
    ],
)
def test_a_library_for_an_apple_system(triple: str, processor: str, system: str, tmp_path: Path) -> None:
    first, second = (linked(triple, tmp_path / name) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    binaries = lief.MachO.parse(str(first))
    assert binaries is not None
    (library,) = binaries
    assert library.header.cpu_type == getattr(lief.MachO.Header.CPU_TYPE, processor)
    assert library.header.file_type == lief.MachO.Header.FILE_TYPE.DYLIB
    assert library.build_version.platform == getattr(lief.MachO.BuildVersion.PLATFORMS, system)
    assert list(library.build_version.minos[:2]) == ([15, 0] if system == "IOS" else [11, 0])
    assert [entry.name for entry in library.libraries] == ["@rpath/kernel.dylib", "/usr/lib/libSystem.B.dylib"]
    exported = {symbol.name for symbol in library.exported_symbols}
    assert {"___tvm_ffi_kernel", "___tvm_ffi_set_num_threads", "___TVMBackendParallelLaunch"} <= exported
    unbound = {symbol.name for symbol in library.imported_symbols if library_of(symbol) is None}
    assert {name for name in unbound if not name.startswith(UNDEFINED)} == set()
    assert first.read_bytes().count(b"\nmlc-device:cpu\n") == 1
    assert str(tmp_path) not in first.read_bytes().decode("latin1")


def library_of(symbol: Any) -> str | None:
    """The library that a symbol is bound to; None where it is searched for in all."""
    return symbol.binding_info.library.name if symbol.has_binding_info and symbol.binding_info.has_library else None


@needs_zig
def test_ziglang_says_why(tmp_path: Path) -> None:
    linker = Linker(Host("x-linux-gnu", "x", "linux", abi="gnu"), zig(native_triple()).command, is_zig=True)
    with pytest.raises(
        EngineError, match=r"could not be linked by ziglang \(error: .*\): \$CC names another compiler$"
    ):
        link(Exported(), linker, tmp_path, tmp_path / "x.so", "cpu")


@needs_zig
def test_the_threads_compile_without_warnings_for_every_system(tmp_path: Path) -> None:
    for triple in ("aarch64-macos", "x86_64-macos", "aarch64-linux-gnu"):
        flags = ["-target", triple, "-Wall", "-Wextra", "-Werror", "-O2", "-fPIC", "-c", "-o", "threads.o"]
        command = [zig(native_triple()).command, "cc", *flags, str(linking._THREADS)]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr.decode()
