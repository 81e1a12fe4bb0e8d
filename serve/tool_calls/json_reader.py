"""A JSON object that arrives in parts, read member by member while every character is checked.

Models write almost JSON now and then. Where there is one thing that they can mean, the text is put right: control
characters inside strings are escaped, Python's True, False and None become JSON's words.
"""

import json
import re
from collections.abc import Generator
from typing import Literal

MAX_DEPTH = 200  # levels, of a frame or two each; a form may let values nest without end
_MAX_SCALAR = 400  # characters of a number
_PLAIN = re.compile(r'[^"\\\x00-\x1f]+')
_SPACES = " \t\n\r"
_SCALAR = re.compile(r"[-+.0-9a-zA-Z]*")
_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
_WORDS = {"true": "true", "false": "false", "null": "null", "True": "true", "False": "false", "None": "null"}
_ESCAPE = re.compile(r'["\\/bfnrt]|u[0-9a-fA-F]{4}')
_PART_OF_ESCAPE = re.compile(r"(u[0-9a-fA-F]{0,3})?")

Kind = Literal["key", "value", "value_end", "end", "more", "bad"]
Event = tuple[Kind, str]
_MORE: Event = ("more", "")
_Events = Generator[Event, None, None]


class _BadJsonError(Exception):
    """The text is not JSON from here on."""


class JsonReader:
    """Reads one object. Give it text with `put`, then ask for events with `next` until it says "more".

    Events are ("key", name), ("value", a part of the text)..., ("value_end", "") for each member of the object itself,
    then ("end", ""); or ("bad", "") where the text stops being JSON.
    """

    def __init__(self) -> None:
        self._text = ""
        self._at = 0
        self._events = self._object_members()
        self._last: Event = _MORE

    @property
    def rest(self) -> str:
        """The text that is not read yet."""
        return self._text[self._at :]

    def put(self, text: str) -> None:
        """Take more text."""
        self._text, self._at = self.rest + text, 0

    def next(self) -> Event:
        """The next event; after "end" and "bad" always the same."""
        if self._last[0] not in ("end", "bad"):
            try:
                self._last = next(self._events)
            except _BadJsonError:
                self._last = ("bad", "")
        return self._last

    def _object_members(self) -> _Events:
        yield from self._expected("{")
        if (yield from self._after_space()) == "}":
            self._take(1)
            yield ("end", "")
            return
        while True:
            key = [text for _, text in (yield from self._collected(self._string()))]
            yield ("key", json.loads("".join(key)))
            yield from self._after_space()
            yield from self._expected(":")
            yield from self._after_space()
            yield from self._value(1)
            yield ("value_end", "")
            if (yield from self._after_space()) == "}":
                self._take(1)
                yield ("end", "")
                return
            yield from self._expected(",")
            yield from self._after_space()

    def _collected(self, events: _Events) -> Generator[Event, None, list[Event]]:
        """Pass on only that more text is needed; return the other events."""
        found = []
        for event in events:
            if event == _MORE:
                yield event
            else:
                found.append(event)
        return found

    def _value(self, depth: int) -> _Events:
        character = yield from self._peek()
        if character == '"':
            yield from self._string()
        elif character in "{[":
            if depth == MAX_DEPTH:
                raise _BadJsonError
            yield from self._container(depth)
        else:
            yield ("value", (yield from self._scalar()))

    def _container(self, depth: int) -> _Events:
        """An object or array inside the object, with all of its text."""
        opened = self._take(1)
        close = "}" if opened == "{" else "]"
        yield ("value", opened)
        yield from self._space()
        if (yield from self._peek()) == close:
            yield ("value", self._take(1))
            return
        while True:
            if opened == "{":
                yield from self._string()
                yield from self._space()
                yield from self._expected(":")
                yield ("value", ":")
                yield from self._space()
            yield from self._value(depth + 1)
            yield from self._space()
            if (yield from self._peek()) == close:
                yield ("value", self._take(1))
                return
            yield from self._expected(",")
            yield ("value", ",")
            yield from self._space()

    def _string(self) -> _Events:
        yield from self._expected('"')
        yield ("value", '"')
        while True:
            character = yield from self._peek()
            if plain := _PLAIN.match(self._text, self._at):
                yield ("value", self._take(plain.end() - self._at))
            elif character == '"':
                yield ("value", self._take(1))
                return
            elif character == "\\":
                yield ("value", (yield from self._escape()))
            else:
                yield ("value", json.dumps(self._take(1))[1:-1])

    def _escape(self) -> Generator[Event, None, str]:
        while (found := _ESCAPE.match(self._text, self._at + 1)) is None:
            if not _PART_OF_ESCAPE.fullmatch(self._text, self._at + 1):
                raise _BadJsonError
            yield _MORE
        return self._take(found.end() - self._at)

    def _scalar(self) -> Generator[Event, None, str]:
        while (found := _SCALAR.match(self._text, self._at)) is None or found.end() == len(self._text):
            if len(self._text) - self._at > _MAX_SCALAR:
                raise _BadJsonError
            yield _MORE
        text = found[0]
        if text not in _WORDS and not (len(text) <= _MAX_SCALAR and _NUMBER.fullmatch(text)):
            raise _BadJsonError
        self._take(len(text))
        return _WORDS.get(text, text)

    def _space(self) -> _Events:
        while (yield from self._peek()) in _SPACES:
            yield ("value", self._take(1))

    def _after_space(self) -> Generator[Event, None, str]:
        """The character behind white space, which is dropped."""
        while (character := (yield from self._peek())) in _SPACES:
            self._take(1)
        return character

    def _expected(self, character: str) -> _Events:
        if (yield from self._peek()) != character:
            raise _BadJsonError
        self._take(1)

    def _peek(self) -> Generator[Event, None, str]:
        while self._at == len(self._text):
            yield _MORE
        return self._text[self._at]

    def _take(self, count: int) -> str:
        self._at += count
        return self._text[self._at - count : self._at]
