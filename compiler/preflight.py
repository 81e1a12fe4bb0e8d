"""Room on the disk before any work, and how an operating system's errors become one line."""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import EngineError

_WORKSPACE = ".tmp-"


@contextmanager
def explained(path: Path, needs: str = "") -> Iterator[None]:
    """Turn an OSError while `path` is being written into one line that names it, and what it `needs` of the disk.

    Raises EngineError.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            full = f"disk full: {needs}" if needs else "disk full"
            raise EngineError(f"{path}: {full}: make room, or choose another place with -o") from None
        # a parent that is a file: mkdir says of it that it exists
        reason = "Not a directory" if isinstance(error, FileExistsError) else error.strerror or error
        raise EngineError(f"{path} cannot be written: {reason}: choose another place with -o") from None


@contextmanager
def workspace(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, gone after the block, for what is written until `output` is whole."""
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}{_WORKSPACE}") as folder:
        yield Path(folder)


def remove_leftovers(output: Path) -> None:
    """Remove the workspaces of `output` that killed processes left; the caller holds its lock."""
    for left in output.parent.iterdir():
        if left.name.startswith(f".{output.name}{_WORKSPACE}"):
            shutil.rmtree(left, ignore_errors=True)


def reserve(path: Path, nbytes: int) -> None:
    """Make `path` a file of `nbytes` whose blocks are allocated. Raises OSError where the disk has no room for them.

    LLVM ends the whole process when it cannot write, so the room is made sure of before it writes.
    """
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            try:
                os.posix_fallocate(file.fileno(), 0, nbytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                    raise
