"""What is looked at before any work, and what is left after it."""

import errno
import os
from pathlib import Path

import pytest

from mlc_llm.compiler.preflight import explained, remove_leftovers, reserve, workspace
from mlc_llm.runtime.errors import EngineError


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
