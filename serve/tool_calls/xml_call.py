"""A call whose parameters stand between tags, that arrives in parts; its arguments become JSON.

    <function=weather><parameter=city>Paris</parameter></function>           Qwen3-Coder
    weather<arg_key>city</arg_key><arg_value>Paris</arg_value></tool_call>   GLM-4.5

White space may stand between the tags. A value is text where the tool's schema says so; else JSON, or text where it is
none.
"""

import json
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass

from .formats import ToolFormat
from .json_call import CallEvent
from .json_reader import JsonReader
from .parameter_values import ValueKind
from .text_steps import overlap

_MAX_HELD = 64 << 10  # characters of a value that is no text; what is longer is text
_MAX_NAME, _MAX_KEY = 64, 256
_NAME = re.compile(rf"[a-zA-Z0-9_-]{{1,{_MAX_NAME}}}")
_NULL, _MAX_NULL = ("null", "None"), 5  # characters, with a line break

_Events = Generator[CallEvent, None, None]
_MORE: CallEvent = ("more", "")


@dataclass(frozen=True)
class XmlTags:
    """The texts around name, keys and values, without white space at their ends."""

    before_name: str
    after_name: str
    before_key: str
    after_key: tuple[str, ...]
    after_value: str
    ends: tuple[str, ...]  # behind the parameters; the last one also closes the mark, and is not the call's
    on_lines: bool  # whether a value has a line break before and behind it

    @classmethod
    def of(cls, form: ToolFormat) -> "XmlTags":
        """Those of a family."""
        before_name, after_name, ends = re.split("%name%|%parameters%", form.call.removeprefix(form.marks[0].open))
        before_key, after_key, after_value = re.split("%key%|%value%", form.parameter)
        return cls(
            before_name.strip(),
            after_name.strip(),
            before_key.strip(),
            tuple(after_key.split()),
            after_value.strip(),
            tuple(ends.split()),
            after_value.startswith("\n"),
        )


class _NoCallError(Exception):
    """The text is no call, or no longer one."""


class XmlCallReader:
    """Reads one call. Give it text with `put`, then ask for events with `next`: they are those of `JsonCallReader`."""

    def __init__(self, tags: XmlTags, kinds: Mapping[str, Mapping[str, ValueKind]]) -> None:
        """`kinds` are those of the values of each tool's parameters; others are "json"."""
        self._tags, self._kinds = tags, kinds
        self._text = ""
        self._events = self._call()
        self._last: CallEvent = _MORE

    @property
    def rest(self) -> str:
        """The text that is not read yet."""
        return self._text

    def put(self, text: str) -> None:
        """Take more text."""
        self._text += text

    def next(self) -> CallEvent:
        """The next event; after "end" and "bad" always the same."""
        if self._last[0] not in ("end", "bad"):
            try:
                self._last = next(self._events)
            except _NoCallError:
                self._last = ("bad", "")
        return self._last

    def _call(self) -> _Events:
        tags = self._tags
        yield from self._expected(tags.before_name)
        yield from self._skip_space()
        while (found := _NAME.match(self._text)) and found.end() == len(self._text) <= _MAX_NAME:
            yield _MORE
        if found is None:
            raise _NoCallError
        name = self._take(found.end())
        yield from self._expected(tags.after_name)
        # It begins where parameters or the end do, not before: prose has tags too.
        tag = yield from self._one_of((tags.before_key, *tags.ends))
        yield ("begin", name)
        kinds, text = self._kinds.get(name, {}), "{"
        while tag == tags.before_key:
            self._take(len(tag))
            key = yield from self._key()
            yield ("arguments", f"{text}{json.dumps(key, ensure_ascii=False)}: ")
            yield from self._value(kinds.get(key, "json"))
            tag, text = (yield from self._one_of((tags.before_key, *tags.ends))), ", "
        if tag != tags.ends[-1]:
            self._take(len(tag))
        yield ("arguments", "{}" if text == "{" else "}")
        yield ("close", "")
        yield ("end", "")

    def _key(self) -> Generator[CallEvent, None, str]:
        first, *more = self._tags.after_key
        while (place := self._text.find(first)) < 0 and len(self._text) < _MAX_KEY + len(first):
            yield _MORE
        if not 0 < place <= _MAX_KEY:
            raise _NoCallError
        key = self._take(place)
        self._take(len(first))
        for tag in more:
            yield from self._expected(tag)
        return key.strip()

    def _value(self, kind: ValueKind) -> _Events:
        """The value and its closing tag: text as it comes, what may be something else as a whole."""
        if self._tags.on_lines:
            yield from self._some(1)
            if self._text[0] == "\n":
                self._take(1)
        end = None
        if kind == "json":
            end = yield from self._end_of_json()
        elif kind == "nullable":
            yield from self._some(_MAX_NULL + len(self._tags.after_value))
            place = self._text.find(self._tags.after_value, 0, _MAX_NULL + len(self._tags.after_value))
            end = place if place >= 0 and self._text[:place].strip() in _NULL else None
        value = None if end is None else _as_json(self._text[:end])
        if end is None or value is None:
            yield from self._streamed()
        else:
            self._take(end + len(self._tags.after_value))
            yield ("arguments", value)

    def _some(self, count: int) -> _Events:
        """Wait for that many characters, or for the closing tag."""
        while len(self._text) < count and self._tags.after_value not in self._text:
            yield _MORE

    def _end_of_json(self) -> Generator[CallEvent, None, int | None]:
        """Where the closing tag stands, which JSON may also have in its strings; None where that is too far away."""
        reader, read = JsonReader(), 0
        reader.put('{"value": ')
        while True:
            place = self._text.find(self._tags.after_value, read, _MAX_HELD)
            if place >= 0:
                # The tag's first character is read too: it belongs to a string, or to no JSON.
                reader.put(self._text[read : place + 1])
                read = place + 1
                if not _is_unfinished(reader):
                    return place
            elif len(self._text) >= _MAX_HELD:
                return None
            else:
                yield _MORE

    def _streamed(self) -> _Events:
        close = self._tags.after_value
        yield ("arguments", '"')
        while (place := self._text.find(close)) < 0:
            held = overlap(self._text, close)
            if self._tags.on_lines:
                held = max(held, overlap(self._text, f"\n{close}"))
            if text := self._take(len(self._text) - held):
                yield ("arguments", _escaped(text))
            yield _MORE
        text = self._take(place)
        self._take(len(close))
        yield ("arguments", _escaped(text.removesuffix("\n") if self._tags.on_lines else text) + '"')

    def _skip_space(self) -> _Events:
        while not (text := self._text.lstrip()):
            self._text = ""
            yield _MORE
        self._text = text

    def _expected(self, tag: str) -> _Events:
        if tag:
            yield from self._one_of((tag,))
            self._take(len(tag))

    def _one_of(self, tags: tuple[str, ...]) -> Generator[CallEvent, None, str]:
        """The tag that is next, behind white space. It is not read."""
        yield from self._skip_space()
        while True:
            for tag in tags:
                if self._text.startswith(tag):
                    return tag
            if not any(tag.startswith(self._text) for tag in tags):
                raise _NoCallError
            yield _MORE

    def _take(self, count: int) -> str:
        text, self._text = self._text[:count], self._text[count:]
        return text


def _escaped(text: str) -> str:
    """Text as it stands between the quotes of JSON."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _is_unfinished(reader: JsonReader) -> bool:
    """Whether JSON may go on behind what was read."""
    while (kind := reader.next()[0]) not in ("end", "bad", "more"):
        pass
    return kind == "more"


def _as_json(text: str) -> str | None:
    """The JSON that a text is; None where it is none."""
    reader = JsonReader()
    reader.put(f'{{"value": {text}}}')
    events = []
    while (event := reader.next())[0] not in ("end", "bad", "more"):
        events.append(event)
    if event[0] != "end" or reader.rest or sum(kind == "key" for kind, _ in events) != 1:
        return None
    return "".join(part for kind, part in events if kind == "value")
