"""One writer at a time for each folder and each library, among all processes of the machine."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, what: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock file `path` while the block runs; it is gone afterwards. Waits, with a note, for another holder.

    Raises OSError where the file cannot be made.
    """
    handle = _acquire(path, what, note)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # before it is let go: who waits for it sees that it is not the file any more
        os.close(handle)


def _acquire(path: Path, what: Path, note: Callable[[str], None]) -> int:
    waiting = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waiting:
                    note(f"another process is writing {what}: waiting for it to end")
                    waiting = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):  # a file system without locks
                    raise
            if _is_file_at(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_file_at(handle: int, path: Path) -> bool:
    """Whether the lock just taken is still the file of that name, and not one that its holder has removed."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
