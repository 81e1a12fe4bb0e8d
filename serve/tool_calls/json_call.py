"""A call as a JSON object, `{"name": ..., "arguments": {...}}`, that arrives in parts."""

import json
from collections.abc import Generator
from typing import Literal

from .json_reader import JsonReader

_ARGUMENTS = ("arguments", "parameters")
_KEYS = (*_ARGUMENTS, "name", "id", "type")  # an object without arguments that has others is no call

CallKind = Literal["begin", "arguments", "close", "end", "more", "bad"]
CallEvent = tuple[CallKind, str]


class JsonCallReader:
    """Reads one call. Give it text with `put`, then ask for events with `next` until it says "more".

    Events are ("begin", name), ("arguments", a part of their JSON text)..., ("close", ""), then ("end", "") behind the
    object; or ("bad", "") where the text is no call, or no longer JSON. `rest` is the text that is not read yet.
    """

    def __init__(self, name: str | None = None) -> None:
        """With a `name`, the text is the arguments alone."""
        self._reader = JsonReader()
        if name is not None:
            self._reader.put('{"arguments": ')
        self._events = self._call(name)
        self._last: CallEvent = ("more", "")

    @property
    def rest(self) -> str:
        """The text that is not read yet."""
        return self._reader.rest

    def put(self, text: str) -> None:
        """Take more text."""
        self._reader.put(text)

    def next(self) -> CallEvent:
        """The next event; after "end" and "bad" always the same."""
        if self._last[0] not in ("end", "bad"):
            self._last = next(self._events)
        return self._last

    def _call(self, name: str | None) -> Generator[CallEvent, None, None]:
        alone = name is not None
        key, value, arguments = "", "", None
        streams = closed = strange = False
        while True:
            kind, text = self._reader.next()
            if kind == "more":
                yield ("more", "")
            elif kind == "key":
                key, value = text, ""
                strange = strange or key not in _KEYS
            elif kind == "value" and streams:
                yield ("arguments", text)
            elif kind == "value" and not closed:
                value += text
                # One character behind the brace is awaited: prose has braces too.
                if name is not None and key in _ARGUMENTS and value[0] == "{" and value[1:].strip():
                    streams = True
                    yield ("begin", name)
                    yield ("arguments", value)
            elif kind == "value_end" and streams:
                streams, closed = False, True
                yield ("close", "")
                if alone:
                    yield ("end", "")
            elif kind == "value_end" and not closed:
                if key == "name":
                    name = _string(value)
                elif key in _ARGUMENTS:
                    arguments = _object_text(value)
                if (key == "name" and name is None) or (key in _ARGUMENTS and arguments is None) or alone:
                    yield ("bad", "")
                if name is not None and arguments is not None:
                    closed = True
                    yield from _whole(name, arguments)
            elif kind == "end":
                if not closed and name is not None and not strange:
                    yield from _whole(name, "{}")
                    closed = True
                yield ("end" if closed else "bad", "")
            elif kind == "bad":
                yield ("bad", "")


def _whole(name: str, arguments: str) -> Generator[CallEvent, None, None]:
    yield ("begin", name)
    yield ("arguments", arguments)
    yield ("close", "")


def _string(value: str) -> str | None:
    text = json.loads(value)
    return text if isinstance(text, str) else None


def _object_text(value: str) -> str | None:
    """The text of an object. Models trained on OpenAI's interface write it as a string now and then; null is none."""
    if value[0] == '"':
        value = json.loads(value).strip()
        reader = JsonReader()
        reader.put(value)
        while (event := reader.next()[0]) not in ("end", "bad", "more"):
            pass
        if value and (event != "end" or reader.rest):
            return None
    if value in ("", "null"):
        return "{}"
    return value if value[0] == "{" else None
