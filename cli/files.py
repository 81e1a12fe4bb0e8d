"""Files that a chat reads and writes: saved conversations, and text put into a message. All bounded and checked."""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..runtime.errors import UsageError
from .session import ChatSession, Message
from .settings import Value, check_setting

FORMAT_VERSION = 1
MAX_CONVERSATION_BYTES = 16 << 20
MAX_ATTACHMENT_BYTES = 256 << 10


def read_text(path: Path, max_bytes: int) -> str:
    """The text of a UTF-8 file of at most `max_bytes` bytes. Raises UsageError."""
    try:
        if not path.is_file():
            raise UsageError(f"{path} is {'not a file' if path.exists() else 'missing'}: expected a text file")
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if len(data) > max_bytes:
        raise UsageError(f"{path} has {path.stat().st_size} bytes: at most {max_bytes} are read")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): expected a text file") from None
    if "\0" in text:
        raise UsageError(f"{path} holds null bytes: expected a text file")
    return text


def attachment(path: Path) -> str:
    """A text file as it goes into a message: its name, then its content fenced."""
    text = read_text(path, MAX_ATTACHMENT_BYTES).rstrip("\n")
    if not text.strip():
        raise UsageError(f"{path} is empty")
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{path.name}:\n{fence}\n{text}\n{fence}"


def save_conversation(session: ChatSession, path: Path) -> None:
    """Write the conversation as JSON; `path` holds either its old content or all of the new. Raises UsageError."""
    content = {
        "version": FORMAT_VERSION,
        "model": session.model,
        "system": session.system,
        "settings": session.settings,
        "messages": session.messages,
    }
    temporary = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False,
                                         encoding="utf-8") as file:  # fmt: skip
            temporary = file.name
            json.dump(content, file, indent=2, ensure_ascii=False)
            file.write("\n")
        Path(temporary).replace(path)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise UsageError(f"{path} cannot be written: {error.strerror}") from None


def load_conversation(session: ChatSession, path: Path) -> None:
    """Take system message, settings and messages from a file. Raises UsageError, then nothing has changed."""
    try:
        content = json.loads(read_text(path, MAX_CONVERSATION_BYTES))
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is not JSON: expected a conversation that /save wrote") from None
    try:
        system, settings, messages = _checked(content)
    except UsageError as error:
        raise UsageError(f"{path} is not a saved conversation: {error}") from None
    session.system, session.settings, session.messages = system, settings, messages
    session.attachments.clear()


def _checked(content: Any) -> tuple[str | None, dict[str, Value], list[Message]]:
    """The parts of a saved conversation, each of the right type, the messages in turns."""
    if not isinstance(content, Mapping) or content.get("version") != FORMAT_VERSION:
        raise UsageError(f"expected an object with version {FORMAT_VERSION}")
    system, settings, messages = content.get("system"), content.get("settings", {}), content.get("messages")
    if system is not None and not isinstance(system, str):
        raise UsageError("system is not a text")
    if not isinstance(settings, Mapping):
        raise UsageError("settings is not an object")
    if not isinstance(messages, list) or len(messages) % 2:
        raise UsageError("messages is not a list of pairs of user and assistant messages")
    for index, message in enumerate(messages):
        role = "assistant" if index % 2 else "user"
        if (
            not isinstance(message, Mapping)
            or message.get("role") != role
            or not isinstance(message.get("content"), str)
            or set(message) != {"role", "content"}
        ):
            raise UsageError(f"messages[{index}] is not a message of the {role}")
    return (
        system,
        {name: check_setting(name, value) for name, value in settings.items()},
        [dict(message) for message in messages],
    )
