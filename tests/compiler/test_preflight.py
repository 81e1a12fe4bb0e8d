"""What is looked at before any work: a compiler, room on the disk; and how a failed linker is told."""

import errno
import os
from pathlib import Path

import pytest

from mlc_llm.compiler import library
from mlc_llm.compiler.preflight import explained, remove_leftovers, require_c_compiler, reserve, workspace
from mlc_llm.compiler.target.cpu import native_triple
from mlc_llm.runtime.errors import EngineError


def program(path: Path) -> Path:
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def _no_compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs are found in `tmp_path` only."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)


def test_another_machine_needs_a_linker_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gcc = program(tmp_path / "gcc")
    assert require_c_compiler(native_triple()) == str(gcc)
    with pytest.raises(EngineError, match=r"^no C compiler found for s390x-linux-gnu: s390x-linux-gnu-gcc on PATH is"):
        require_c_compiler("s390x-linux-gnu")
    cross = program(tmp_path / "s390x-linux-gnu-gcc")
    assert require_c_compiler("s390x-linux-gnu") == str(cross)
    monkeypatch.setenv("CC", str(gcc))
    assert require_c_compiler("s390x-linux-gnu") == str(gcc)


def test_a_workspace_goes_and_so_do_those_of_killed_processes(tmp_path: Path) -> None:
    output = tmp_path / "x.so"
    with workspace(output) as folder:
        assert folder.parent == tmp_path
        reserve(folder / "room", 1 << 20)
        assert (folder / "room").stat().st_size == 1 << 20
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".x.so.tmp-abc").mkdir()
    (tmp_path / ".x.so.tmp-abc" / "lib0.o").touch()
    (tmp_path / ".y.so.tmp-abc").mkdir()
    remove_leftovers(output)
    assert [path.name for path in tmp_path.iterdir()] == [".y.so.tmp-abc"]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_reserve_is_used_all_the_same(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    reserve(tmp_path / "room", 1 << 20)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, "full"), "x: disk full: make room, or choose another place with -o"),
        (OSError(errno.EDQUOT, "full"), "x: disk full: make room, or choose another place with -o"),
        (OSError(errno.EACCES, "No", "tmp123"), "x cannot be written: No: choose another place with -o"),
        (FileExistsError(errno.EEXIST, "exists"), "x cannot be written: Not a directory: choose another place with -o"),
    ],
)
def test_an_operating_systems_error_is_one_line(error: OSError, line: str) -> None:
    with pytest.raises(EngineError) as caught, explained(Path("x")):
        raise error
    assert str(caught.value) == line


class Unlinkable:
    """An executable whose linker fails, as TVM reports it."""

    def __init__(self, output: str) -> None:
        self._output = output

    def export_library(self, path: str, **options: object) -> None:
        raise RuntimeError(f"Compilation error:\n{self._output}\nCommand line: g++ -shared -o {path}")


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("", "it gave no reason"),
        ("ld: warning: odd\nld: lib0.o: error adding symbols\ncollect2: error: 1", "ld: lib0.o: error adding symbols"),
        ("ld: final link failed: No space left on device\ncollect2: error: ld returned 1",
         "ld: final link failed: No space left on device"),
    ],
)  # fmt: skip
def test_a_failed_linker_gives_its_reason_and_the_old_library_stays(output: str, reason: str, tmp_path: Path) -> None:
    old = tmp_path / "x.so"
    old.write_text("old")
    with workspace(old) as folder, pytest.raises(EngineError) as caught:
        library._link(Unlinkable(output), folder, old, "g++")
    assert str(caught.value) == f"{old} could not be linked by g++ ({reason}): $CC names another compiler"
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x.so"]
