"""Calls written as Python that arrive in parts: `f(a=1, b=["x"])`, alone or in a list.

Only literals are read and nothing is evaluated. JSON's words and strings are read as well as Python's, as models mix
them. Positional arguments get their names from the tool's schema.
"""

import json
import math
import re
from collections.abc import Generator, Mapping, Sequence
from typing import Any, Literal

MAX_DEPTH = 64
_MAX_NUMBER = 400  # characters
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}
_TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>[rRuU]?(?:\"{3}[^\"\\]*(?:(?:\\.|\"{1,2}(?!\"))[^\"\\]*)*\"{3}
        |'{3}[^'\\]*(?:(?:\\.|'{1,2}(?!'))[^'\\]*)*'{3}
        |\"(?!\"\")[^\"\\]*(?:\\.[^\"\\]*)*\"
        |'(?!'')[^'\\]*(?:\\.[^'\\]*)*'))
  | (?P<number>[-+]?\.?[0-9](?:[eE][-+]|[0-9a-zA-Z_.])*)
  | (?P<name>[A-Za-z_][A-Za-z0-9_.-]*(?![A-Za-z0-9_.\-"']))
  | (?P<mark>\*\*|[()\[\]{},:=])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {
    "\n": "", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t",
    "v": "\v",
}  # fmt: skip
_BEGUN = re.compile(r"\s*(?:[rRuU]?(?:[\"'].*)?|[-+.]|\*)", re.DOTALL)  # what may become a token with more text

PythonKind = Literal["call", "end", "more", "bad"]
PythonEvent = tuple[PythonKind, str, str]
_MORE: PythonEvent = ("more", "", "")
_Token = tuple[str, str]


class _NotACallError(Exception):
    """The text is no call of a function with literal arguments."""


class PythonReader:
    """Reads one call, or a list of calls. Give it text with `put`, then ask for events with `next` until "more".

    Events are ("call", name, JSON text of its arguments)..., then ("end", "", ""); or ("bad", "", "") where the text is
    no call. `rest` is the text that is not read yet. `parameters` are the names of the parameters of
    each tool, in order.
    """

    def __init__(self, parameters: Mapping[str, Sequence[str]]) -> None:
        self._parameters = parameters
        self._text = ""
        self._at = 0
        self._events = self._calls()
        self._last: PythonEvent = _MORE

    @property
    def rest(self) -> str:
        """The text that is not read yet."""
        return self._text[self._at :]

    def put(self, text: str) -> None:
        """Take more text."""
        self._text += text

    def next(self) -> PythonEvent:
        """The next event; after "end" and "bad" always the same."""
        if self._last[0] not in ("end", "bad"):
            try:
                self._last = next(self._events)
            except _NotACallError:
                self._last = ("bad", "", "")
        return self._last

    def _calls(self) -> Generator[PythonEvent, None, None]:
        if (yield from self._next_is("[")):
            while True:
                yield (yield from self._call_or_text())
                if (yield from self._next_is(",")):
                    continue
                yield from self._expected("]")
                break
        else:
            yield (yield from self._call())
        yield ("end", "", "")

    def _call_or_text(self) -> Generator[PythonEvent, None, PythonEvent]:
        """A call of a list; Gorilla's models also write it as a string."""
        kind, text = yield from self._peek()
        if kind != "string":
            return (yield from self._call())
        yield from self._token()
        inner = PythonReader(self._parameters)
        inner.put(_string(text) + " ")
        event = inner.next()
        if event[0] != "call" or inner.next()[0] != "end" or inner.rest.strip():
            raise _NotACallError
        return event

    def _call(self) -> Generator[PythonEvent, None, PythonEvent]:
        kind, name = yield from self._token()
        if kind != "name":
            raise _NotACallError
        yield from self._expected("(")
        positional: list[Any] = []
        arguments: dict[str, Any] = {}
        while not (yield from self._next_is(")")):
            yield from self._argument(positional, arguments)
            if not (yield from self._next_is(",")):
                yield from self._expected(")")
                break
        names = self._parameters.get(name, ())
        if len(positional) > len(names):
            raise _NotACallError
        given = dict(zip(names, positional, strict=False))
        if given.keys() & arguments.keys():
            raise _NotACallError
        return ("call", name, json.dumps({**given, **arguments}, ensure_ascii=False))

    def _argument(self, positional: list[Any], arguments: dict[str, Any]) -> Generator[PythonEvent, None, None]:
        kind, text = yield from self._peek()
        if kind == "name" and text not in _WORDS:
            yield from self._token()
            yield from self._expected("=")
            new = {text: (yield from self._literal(1))}
        elif text == "**":
            yield from self._token()
            new = yield from self._literal(1)
        else:
            positional.append((yield from self._literal(1)))
            if arguments:
                raise _NotACallError
            return
        if not isinstance(new, dict) or new.keys() & arguments.keys():
            raise _NotACallError
        arguments.update(new)

    def _literal(self, depth: int) -> Generator[PythonEvent, None, Any]:
        kind, text = yield from self._token()
        if kind == "string":
            value = _string(text)
            while (yield from self._peek())[0] == "string":  # adjacent strings are one, as in Python
                value += _string((yield from self._token())[1])
            return value
        if kind == "number":
            return _number(text)
        if kind == "name" and text in _WORDS:
            return _WORDS[text]
        if kind != "mark" or text not in "([{" or depth == MAX_DEPTH:
            raise _NotACallError
        if text == "{":
            return (yield from self._dict(depth))
        return (yield from self._list(")" if text == "(" else "]", depth))

    def _list(self, close: str, depth: int) -> Generator[PythonEvent, None, Any]:
        items: list[Any] = []
        while not (yield from self._next_is(close)):
            items.append((yield from self._literal(depth + 1)))
            if not (yield from self._next_is(",")):
                yield from self._expected(close)
                return items[0] if close == ")" and len(items) == 1 else items
        return items

    def _dict(self, depth: int) -> Generator[PythonEvent, None, dict[str, Any]]:
        items: dict[str, Any] = {}
        while not (yield from self._next_is("}")):
            key = yield from self._literal(depth + 1)
            if not isinstance(key, str):
                raise _NotACallError
            yield from self._expected(":")
            items[key] = yield from self._literal(depth + 1)
            if not (yield from self._next_is(",")):
                yield from self._expected("}")
                break
        return items

    def _expected(self, mark: str) -> Generator[PythonEvent, None, None]:
        if not (yield from self._next_is(mark)):
            raise _NotACallError

    def _next_is(self, mark: str) -> Generator[PythonEvent, None, bool]:
        if (yield from self._peek()) != ("mark", mark):
            return False
        yield from self._token()
        return True

    def _peek(self) -> Generator[PythonEvent, None, _Token]:
        """The next token. One that reaches to the end of the text could still grow, unless it is a bracket."""
        while True:
            found = _TOKEN.match(self._text, self._at)
            if found is None:
                if not _BEGUN.fullmatch(self._text, self._at):
                    raise _NotACallError
            elif found.end() < len(self._text) or found["mark"] in (")", "]", "}"):
                kind = str(found.lastgroup)
                return kind, found[kind]
            yield _MORE

    def _token(self) -> Generator[PythonEvent, None, _Token]:
        kind, text = yield from self._peek()
        found = _TOKEN.match(self._text, self._at)
        assert found is not None
        self._at = found.end()
        return kind, text


def _string(token: str) -> str:
    """What a string token says: by JSON's rules where it is JSON; Python reads some escapes otherwise."""
    value = _json_string(token) if token.startswith('"') else None
    if value is None:
        raw = token[0] in "rR"
        body = token.lstrip("rRuU")
        quote = 3 if len(body) >= 6 and body[:3] == body[0] * 3 else 1
        body = body[quote:-quote]
        value = body if raw else _ESCAPE.sub(_unescaped, body)
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise _NotACallError
    return value


def _json_string(token: str) -> str | None:
    try:
        value = json.loads(token, strict=False)
    except ValueError:
        return None
    return value if isinstance(value, str) else None


def _unescaped(escape: "re.Match[str]") -> str:
    text = escape[1]
    if text[0] in "xuU" and len(text) > 1:
        code = int(text[1:], 16)
    elif text[0] in "01234567":
        code = int(text, 8)
    else:
        return _ESCAPED.get(text, "\\" + text)  # Python leaves the escapes that it does not know
    return chr(code) if code <= 0x10FFFF else "\\" + text


def _number(token: str) -> int | float:
    text = token.replace("_", "")
    if len(text) > _MAX_NUMBER:
        raise _NotACallError
    try:
        value = float(text) if any(mark in text for mark in ".eE") else int(text)
    except ValueError:
        raise _NotACallError from None
    if not math.isfinite(value):
        raise _NotACallError
    return value
