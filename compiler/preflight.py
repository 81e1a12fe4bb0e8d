"""What is looked at before any work, and how an operating system's errors become one line."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..runtime.errors import EngineError

# The order in which tvm.support.cc looks for one; $CXX and $CC come first.
_COMPILERS = ("g++", "gcc", "clang++", "clang", "c++", "cc")


def require_c_compiler() -> str:
    """The compiler that links model libraries. Raises EngineError where there is none."""
    for variable in ("CXX", "CC"):
        if command := os.environ.get(variable):
            if shutil.which(command) is None:
                raise EngineError(f"${variable} is {command!r}, and there is no such program: unset it or correct it")
            return command
    for name in _COMPILERS:
        if path := shutil.which(name):
            return path
    raise EngineError(
        "no C compiler found: cc, gcc or clang on PATH is needed to link the model library: install one "
        "(Debian and Ubuntu: apt install gcc; Fedora: dnf install gcc; macOS: xcode-select --install)"
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn an OSError while `path` is being written into one line. Raises EngineError."""
    try:
        yield
    except OSError as error:
        where = error.filename or path
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise EngineError(f"{where}: disk full: make room, or choose another place with -o") from None
        raise EngineError(f"{where}: cannot be written: {error.strerror or error}") from None
