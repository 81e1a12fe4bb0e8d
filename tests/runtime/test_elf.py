"""Files that are no shared libraries, or not whole ones, are refused before the loader sees them."""

import platform
from pathlib import Path

import pytest
from pydantic_core import _pydantic_core as extension

from mlc_llm.runtime.elf import read_architecture
from mlc_llm.runtime.errors import ModelFileError


@pytest.fixture(scope="module")
def shared_object() -> bytes:
    """A shared library that a real linker wrote."""
    return Path(extension.__file__).read_bytes()


def written(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.so"
    path.write_bytes(data)
    return path


def test_a_real_library_names_its_architecture(tmp_path: Path, shared_object: bytes) -> None:
    assert read_architecture(written(tmp_path, shared_object)) == platform.machine()


def test_every_cut_is_noticed(tmp_path: Path, shared_object: bytes) -> None:
    for kept in (0, 3, 20, 63, 64, 100, 4096, len(shared_object) // 2, len(shared_object) - 1):
        with pytest.raises(ModelFileError, match=r"not a model library|is damaged"):
            read_architecture(written(tmp_path, shared_object[:kept]))


@pytest.mark.parametrize(
    ("offset", "patch", "message"),
    [
        (0, b"MZ", "is not a model library: expected a 64-bit ELF"),
        (4, b"\x01", "is not a model library: expected a 64-bit ELF"),
        (16, b"\x01\x00", "is an ELF file, but not a shared object"),
        (32, b"\xff" * 8, "is damaged"),  # the segments are beyond the end
        (54, b"\x07\x00", "is damaged"),  # segments of an odd size
        (56, b"\x00\x00", "is damaged"),  # no segments
        (56, b"\xff\xff", "is damaged"),  # more segments than any library has
    ],
)
def test_a_header_that_lies_is_refused(
    tmp_path: Path, shared_object: bytes, offset: int, patch: bytes, message: str
) -> None:
    data = shared_object[:offset] + patch + shared_object[offset + len(patch) :]
    with pytest.raises(ModelFileError, match=message):
        read_architecture(written(tmp_path, data))


@pytest.mark.parametrize(("machine", "name"), [(183, "aarch64"), (9999, "machine 9999")])
def test_foreign_architectures_have_names(tmp_path: Path, shared_object: bytes, machine: int, name: str) -> None:
    data = shared_object[:18] + machine.to_bytes(2, "little") + shared_object[20:]
    assert read_architecture(written(tmp_path, data)) == name


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.so is missing: expected a model library"):
        read_architecture(tmp_path / "none.so")
    with pytest.raises(ModelFileError, match="cannot be read: Is a directory"):
        read_architecture(tmp_path)
