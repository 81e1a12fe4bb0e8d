"""Libraries of Apple's systems are told apart, and damaged ones refused, before any loader sees them."""

import struct
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest

from mlc_llm.runtime.errors import ModelFileError
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.macho import is_macho, read_architecture

pytestmark = pytest.mark.skipif(find_spec("ziglang") is None, reason="links with ziglang: pip install ziglang")


def linked(folder: Path, target: str) -> bytes:
    """A library that a real linker wrote."""
    spec = find_spec("ziglang")
    assert spec is not None
    assert spec.origin is not None
    (folder / "f.c").write_text("int f(void) { return 1; }\n")
    output = folder / "f.dylib"
    command = [str(Path(spec.origin).with_name("zig")), "cc", "-target", target, "-shared", "-rtlib=none", "-O2", "-g0"]
    caches = {"ZIG_GLOBAL_CACHE_DIR": str(folder), "ZIG_LOCAL_CACHE_DIR": str(folder)}
    subprocess.run([*command, "-o", str(output), str(folder / "f.c")], check=True, env=caches)
    return output.read_bytes()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return linked(tmp_path_factory.mktemp("linked"), "aarch64-macos.11.0")


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.dylib"
    path.write_bytes(data)
    return path


def test_a_real_library_names_its_machine(tmp_path: Path, library: bytes) -> None:
    assert read_architecture(written(tmp_path, library)) == "aarch64 macOS"
    assert read_architecture(written(tmp_path, linked(tmp_path, "x86_64-macos.11.0"))) == "x86_64 macOS"


def test_a_library_for_a_mac_is_refused_here(tmp_path: Path, library: bytes) -> None:
    message = r"model\.dylib was compiled for aarch64 macOS, this machine is \w+: run `mlc compile <model folder>"
    with pytest.raises(ModelFileError, match=message):
        Library.load(written(tmp_path, library))
    with pytest.raises(ModelFileError, match=r"run `mlc compile <model folder> --device auto`$"):
        Library.load(written(tmp_path, library + b"\nmlc-device:metal\n"))  # nothing here runs Metal


def test_every_cut_is_noticed(tmp_path: Path, library: bytes) -> None:
    for kept in (4, 20, 31, 32, 64, 100, 1024, len(library) // 2, len(library) - 1):
        path = written(tmp_path, library[:kept])
        assert is_macho(path)
        with pytest.raises(ModelFileError, match=r"not a model library|is damaged"):
            read_architecture(path)


@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (0, b"MZ", "is not a model library: expected a 64-bit Mach-O"),
        (12, b"\x02", "is a Mach-O file, but not a shared library"),
        (16, b"\x00\x00", "is damaged"),  # no load commands
        (16, b"\xff\xff", "is damaged"),  # more of them than any library has
        (16, b"\x01\x00", "is damaged"),  # one, and bytes after it
        (20, b"\xff\xff\xff\x7f", "is damaged"),  # they are longer than the file
        (36, b"\x00\x00", "is damaged"),  # a command without bytes
        (36, b"\xff\xff", "is damaged"),  # one that leads out of the commands
        (32 + 48, b"\xff" * 8, "is damaged"),  # a segment beyond the end
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, library: bytes, offset: int, patch: bytes, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        read_architecture(written(tmp_path, library[:offset] + patch + library[offset + len(patch) :]))


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (struct.pack("<6I", 0x32, 24, 2, 0, 0, 0), "aarch64 iOS"),
        (struct.pack("<6I", 0x32, 24, 99, 0, 0, 0), "aarch64 platform 99"),
        (struct.pack("<4I", 0x25, 16, 0, 0), "aarch64 iOS"),
        (struct.pack("<4I", 0x24, 16, 0, 0), "aarch64 macOS"),
        (struct.pack("<4I", 0x1B, 16, 0, 0), "aarch64 Darwin"),
    ],
)
def test_systems_have_names(tmp_path: Path, command: bytes, name: str) -> None:
    header = struct.pack("<4s7I", b"\xcf\xfa\xed\xfe", 0x0100000C, 0, 6, 1, len(command), 0, 0)
    assert read_architecture(written(tmp_path, header + command)) == name


@pytest.mark.parametrize("command", [struct.pack("<2I", 0x32, 8), struct.pack("<2I", 0x19, 8)])
def test_commands_that_are_too_short_are_refused(tmp_path: Path, command: bytes) -> None:
    header = struct.pack("<4s7I", b"\xcf\xfa\xed\xfe", 0x0100000C, 0, 6, 1, len(command), 0, 0)
    with pytest.raises(ModelFileError, match="is damaged"):
        read_architecture(written(tmp_path, header + command))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert not is_macho(tmp_path / "none.dylib")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        read_architecture(tmp_path)
