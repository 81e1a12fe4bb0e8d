"""The line editor of the interactive chat: prompt_toolkit with a history file, several lines and bracketed paste."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from .commands import COMMANDS

if TYPE_CHECKING:
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

QUOTES = '"""'
MAX_HISTORY_BYTES = 1 << 20


def line_editor() -> Callable[[], str]:
    """A line editor on the terminal: history, completion of commands, several lines, bracketed paste."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter

    editor: PromptSession[str] = PromptSession(
        ">>> ",
        multiline=True,
        prompt_continuation="... ",
        key_bindings=_key_bindings(),
        history=_history(),
        completer=WordCompleter(list(COMMANDS), sentence=True),
        complete_while_typing=False,
        enable_open_in_editor=True,
    )
    return editor.prompt


def unquoted(text: str) -> str:
    '''The message inside a pair of """; any other text as it is.'''
    stripped = text.strip()
    if len(stripped) >= 2 * len(QUOTES) and stripped.startswith(QUOTES) and stripped.endswith(QUOTES):
        return stripped[len(QUOTES) : -len(QUOTES)].strip("\n")
    return text


def is_complete(text: str) -> bool:
    '''Whether Enter sends `text`: not while a """ that begins it waits for its partner.'''
    stripped = text.strip()
    return not stripped.startswith(QUOTES) or (len(stripped) >= 2 * len(QUOTES) and stripped.endswith(QUOTES))


def _key_bindings() -> "KeyBindings":
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: "KeyPressEvent") -> None:
        if is_complete(event.current_buffer.text):
            event.current_buffer.validate_and_handle()
        else:
            event.current_buffer.insert_text("\n")

    @bindings.add("escape", "enter")
    def alt_enter(event: "KeyPressEvent") -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def history_path() -> Path | None:
    """Where entered lines are kept: `chat_history` in XDG's state folder; None when MLC_NO_HISTORY is set."""
    if os.environ.get("MLC_NO_HISTORY"):
        return None
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "mlc_llm" / "chat_history"


def _history() -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    if path is None:
        return InMemoryHistory()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        path.touch(mode=0o600)
        trim_history(path)
    except OSError as error:
        print(f"the history is not kept: {path}: {error.strerror}", file=sys.stderr)
        return InMemoryHistory()
    return FileHistory(str(path))


def trim_history(path: Path) -> None:
    """Keep the newer half of a history that has grown past its bound. Entries are separated by empty lines."""
    if path.stat().st_size <= MAX_HISTORY_BYTES:
        return
    with path.open("rb") as file:
        file.seek(-MAX_HISTORY_BYTES // 2, os.SEEK_END)
        tail = file.read()
    temporary = path.with_name(path.name + ".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(tail[tail.find(b"\n\n") + 1 :])
    temporary.replace(path)
