"""Kernels as code generators write them, kept for those who want to read them (`mlc compile --debug-dump`)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

_FOLDER_NAME = "kernels"
_MARK = "// Function: "  # before each kernel in the text of TVM's code generators, followed by its name

_folder: ContextVar[Path | None] = ContextVar("folder", default=None)


@contextmanager
def sources_kept(folder: Path | None) -> Iterator[None]:
    """What code generators write inside goes to `folder/kernels`, a file for each kernel where they are apart; None:
    nowhere."""
    before = _folder.set(None if folder is None else folder / _FOLDER_NAME)
    try:
        yield
    finally:
        _folder.reset(before)


def keep(name: str, content: str | bytes) -> None:
    """Write a file, if anybody wants it. Raises OSError."""
    folder = _folder.get()
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


def keeping(build: Callable[..., Any], suffix: str) -> Callable[..., Any]:
    """TVM's hook that makes a module of text, which is kept: one file for each kernel, called as that and `suffix`."""

    def kept(module: Any, target: Any) -> Any:
        made = build(module, target)
        if _folder.get() is not None:
            for part in str(made.inspect_source("")).split(_MARK)[1:]:
                name, _, text = part.partition("\n")
                keep(f"{name.strip()}{suffix}", text)
        return made

    return kept
