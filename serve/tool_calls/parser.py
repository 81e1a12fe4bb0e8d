"""Takes an answer apart into content and calls of tools while it is generated."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import Mark, ToolFormat
from .json_call import JsonCallReader
from .parameter_values import value_kinds
from .pieces import CallArguments, CallEnd, CallStart, ContentPiece, Piece
from .python_reader import PythonReader
from .text_steps import MAX_SPACE, EndOfTextError, Steps, TextSteps, overlap
from .xml_call import XmlCallReader, XmlTags

MAX_HELD = 64 << 10  # characters of what may become a call; what stays open for longer than that is content
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_MISTRAL_HEADER = re.compile(r"\s*([a-zA-Z0-9_-]{1,64})\s*(?:\[CALL_ID\][^\[\]{}]*)?(?:\[ARGS\])?\s*")
_DEEPSEEK_HEADER = re.compile(r"\s*([a-zA-Z0-9_-]{1,64})\s*(?:\n\s*(?:```(?:json)?)?\s*)?")
_SEP, _CALL, _CALL_END, _CALLS_END = (f"<｜tool▁{word}｜>" for word in ("sep", "call▁begin", "call▁end", "calls▁end"))


class ToolCallParser(TextSteps):
    """Finds the calls in one answer. However its text is split, the pieces add up to the same.

    What looks like a call and is none becomes content, with nothing lost; white space around calls is dropped. The
    arguments of a call in JSON stream: where the model does not finish them, or goes on with what is not JSON, they are
    what it wrote. A call in Python comes whole, so that its arguments are always JSON.
    """

    def __init__(self, form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> None:
        """`tools` are the tools of the request, as OpenAI has them."""
        super().__init__()
        self._form = form
        self._parameters = {tool["function"]["name"]: _parameter_names(tool["function"]) for tool in tools}
        self._kinds = {tool["function"]["name"]: value_kinds(tool["function"].get("parameters")) for tool in tools}
        self._tags = XmlTags.of(form) if form.parameter else None
        self._pieces: list[Piece] = []
        self._calls = 0  # that have begun
        self._in_call = False
        self._closing = False  # what is held has been read as the end of calls
        self._steps = self._answer()
        next(self._steps)

    def put(self, text: str) -> list[Piece]:
        """Take more of the answer. Returns what is certain now."""
        if text:
            self._text += text
            next(self._steps)
        return self._take_pieces()

    def finish(self) -> list[Piece]:
        """The answer has ended: returns the rest of it."""
        self._final = True
        try:
            next(self._steps)
        except EndOfTextError:
            rest, self._held, self._text = self._held + self._text, "", ""
            if self._in_call:
                self._add_arguments(rest)
                self._end_call()
            elif not self._closing:
                self._add_content(rest)
        return self._take_pieces()

    # The answer as a whole: content, calls, content, ...

    def _answer(self) -> Steps[None]:
        if self._form.bare:
            yield from self._hold_space()
            if (yield from self._bare_call_begins()):
                yield from self._calls_behind(Mark("", python=self._form.python, known_only=True))
        while True:
            if self._held:
                self._add_content(self._held)
                self._held = ""
            elif self._calls:
                yield from self._drop_space()
            mark = yield from self._content_until_mark()
            yield from self._calls_behind(mark)

    def _content_until_mark(self) -> Steps[Mark]:
        """Let content through up to a mark, which is held with the white space before it."""
        while True:
            found = self._first_mark()
            end = found[0] if found else len(self._text) - self._begun_mark()
            space = self._text[max(0, end - MAX_SPACE) : end]
            end -= len(space) - len(space.rstrip())
            self._add_content(self._text[:end])
            self._text = self._text[end:]
            if found:
                self._take(found[0] - end + len(found[1].open))
                return found[1]
            yield from self._more()

    def _first_mark(self) -> tuple[int, Mark] | None:
        places = [(self._text.find(mark.open), mark) for mark in self._form.marks]
        return min((place for place in places if place[0] >= 0), key=lambda place: place[0], default=None)

    def _begun_mark(self) -> int:
        """How many characters at the end of the text may be the beginning of a mark."""
        return max((overlap(self._text, mark.open) for mark in self._form.marks), default=0)

    def _bare_call_begins(self) -> Steps[bool]:
        first = yield from self._peek()
        return first == "{" or (self._form.python and (first == "[" or (yield from self._known_name_follows())))

    def _known_name_follows(self) -> Steps[bool]:
        """Whether a call of one of the tools follows, in Python."""
        while not self._text or (_NAME.fullmatch(self._text) and self._begins_a_name(self._text)):
            yield from self._more()
        found = _NAME.match(self._text)
        return found is not None and found[0] in self._parameters and self._text[found.end() :][:1] == "("

    def _begins_a_name(self, text: str) -> bool:
        return any(name.startswith(text) for name in self._parameters)

    # Calls behind a mark. Text that is no call is left in `_held`.

    def _calls_behind(self, mark: Mark) -> Steps[None]:
        before = self._calls
        if mark.body == "deepseek":
            yield from self._deepseek_calls(mark)
        else:
            yield from self._any_calls(mark)
        if self._calls > before:
            self._put_back(len(self._held))
            if mark.close is not None:
                yield from self._close(mark.close)

    def _close(self, close: str) -> Steps[None]:
        self._closing = True
        while len(self._held) < MAX_SPACE and (yield from self._peek()) in " \t\r\n}":  # models repeat braces
            self._take(1)
        if (yield from self._accept(close)):
            self._held = ""
        self._put_back(len(self._held))
        self._closing = False

    def _any_calls(self, mark: Mark) -> Steps[None]:
        yield from self._hold_space()
        first = yield from self._peek()
        if first == "{":
            yield from self._json_calls(mark)
        elif first == "[" and (yield from self._peek_inside()) == "{":
            yield from self._json_list(mark)
        elif self._tags is not None:
            reader = XmlCallReader(self._tags, self._kinds)
            if mark.open == self._tags.before_name:
                reader.put(mark.open)
            yield from self._call(reader, mark)
        elif mark.python:
            yield from self._python_calls(mark)
        elif mark.body == "mistral":
            header = yield from self._until("{")
            if header is not None and (found := _MISTRAL_HEADER.fullmatch(header)):
                self._take(len(header))
                yield from self._json_call(mark, found[1])

    def _json_calls(self, mark: Mark) -> Steps[None]:
        """Objects one after another; Llama's models put semicolons between them."""
        while (yield from self._json_call(mark)):
            self._closing = True
            while len(self._held) < MAX_SPACE and (yield from self._peek()) in " \t\r\n;,":
                self._take(1)
            another = (yield from self._peek()) == "{"
            self._closing = False
            if not another:
                return

    def _json_list(self, mark: Mark) -> Steps[None]:
        self._take(1)
        yield from self._hold_space()
        while (yield from self._json_call(mark)):
            self._closing = True
            yield from self._hold_space()
            if (yield from self._accept("]")):
                self._held = ""
            elif (yield from self._accept(",")):
                yield from self._hold_space()
                yield from self._peek()
                self._closing = False
                continue
            self._closing = False
            return

    def _json_call(self, mark: Mark, name: str | None = None) -> Steps[bool]:
        """One object, or the arguments alone of the call of `name`. Returns whether it was a call."""
        return (yield from self._call(JsonCallReader(name), mark))

    def _call(self, reader: JsonCallReader | XmlCallReader, mark: Mark) -> Steps[bool]:
        closed = False
        while True:
            kind, text = reader.next()
            if kind == "more":
                if not (yield from self._feed(reader, hold=not self._in_call and not closed)):
                    return False
            elif kind == "begin" and self._acceptable(text, mark):
                self._begin_call(text)
            elif kind == "arguments":
                self._add_arguments(text)
            elif kind == "close":
                self._end_call()
                closed = True
            elif self._in_call:
                self._text = reader.rest + self._text
                yield from self._broken_arguments(_CALL_END if mark.body == "deepseek" else mark.close)
                return True
            elif closed:
                self._text = reader.rest + self._text
                return True
            else:
                self._put_back(len(reader.rest))
                return False

    def _broken_arguments(self, close: str | None) -> Steps[None]:
        """The model went on with what is not JSON: what it wrote, up to where the call is closed."""
        while True:
            place = -1 if close is None else self._text.find(close)
            end = len(self._text) - (0 if close is None else overlap(self._text, close)) if place < 0 else place
            self._add_arguments(self._text[:end])
            self._text = self._text[end:]
            if place >= 0:
                self._end_call()
                return
            yield from self._more()

    def _python_calls(self, mark: Mark) -> Steps[None]:
        """A list of calls, or calls one after another."""
        while (yield from self._python_call_or_list(mark)):
            self._closing = True
            while len(self._held) < MAX_SPACE and (yield from self._peek()) in " \t\r\n;,":
                self._take(1)
            another = yield from self._known_name_follows()
            self._closing = False
            if not another:
                return

    def _python_call_or_list(self, mark: Mark) -> Steps[bool]:
        reader = PythonReader(self._parameters)
        while True:
            kind, name, arguments = reader.next()
            if kind == "more":
                if not (yield from self._feed(reader, hold=True)):
                    return False
            elif kind == "call" and self._acceptable(name, mark):
                self._begin_call(name)
                self._add_arguments(arguments)
                self._end_call()
                self._held = reader.rest
            elif kind == "end":
                self._put_back(len(reader.rest))
                self._held = ""
                return True
            else:
                self._put_back(len(reader.rest))
                return False

    def _deepseek_calls(self, mark: Mark) -> Steps[None]:
        """`function<sep>name`, JSON in a fence; or since V3.1 `name<sep>` and JSON."""
        if mark.open != _CALL:
            yield from self._hold_space()
            if not (yield from self._accept(_CALL)):
                return
        while (header := (yield from self._until(_SEP))) is not None:
            self._take(len(header) + len(_SEP))
            behind = yield from self._until("{")
            found = _DEEPSEEK_HEADER.fullmatch(header if behind is None or behind.isspace() or not behind else behind)
            if behind is None or found is None:
                return
            self._take(len(behind))
            if not (yield from self._json_call(mark, found[1])):
                return
            self._closing = True
            for text in ("```", _CALL_END, _CALLS_END):
                yield from self._hold_space()
                yield from self._accept(text)
            another = yield from self._accept(_CALL)
            self._held = _CALL if another else ""
            self._closing = False
            if not another:
                return

    def _feed(self, reader: JsonCallReader | XmlCallReader | PythonReader, hold: bool) -> Steps[bool]:
        """Give a reader more text; False where too much of it would be held."""
        if hold and len(self._held) >= MAX_HELD:
            return False
        while not self._text:
            if self._final and self._in_call:  # between tags, what is there yet of a value or tag is no JSON
                self._held = reader.rest if isinstance(reader, JsonCallReader) else ""
            yield from self._more()
        text = self._text[: MAX_HELD - len(self._held)] if hold else self._text
        reader.put(text)
        if hold:
            self._take(len(text))
        else:
            self._text = ""
        return True

    # Pieces

    def _acceptable(self, name: str, mark: Mark) -> bool:
        return name in self._parameters if mark.known_only else _NAME.fullmatch(name) is not None

    def _begin_call(self, name: str) -> None:
        self._held = ""
        self._in_call = True
        self._pieces.append(CallStart(self._calls, name))
        self._calls += 1

    def _add_arguments(self, text: str) -> None:
        if text:
            self._pieces.append(CallArguments(self._calls - 1, text))

    def _end_call(self) -> None:
        self._in_call = False
        self._pieces.append(CallEnd(self._calls - 1))

    def _add_content(self, text: str) -> None:
        if text:
            self._pieces.append(ContentPiece(text))

    def _take_pieces(self) -> list[Piece]:
        """The new pieces, neighbours of one kind joined."""
        joined: list[Piece] = []
        for piece in self._pieces:
            last = joined[-1] if joined else None
            if isinstance(piece, ContentPiece) and isinstance(last, ContentPiece):
                joined[-1] = ContentPiece(last.text + piece.text)
            elif isinstance(piece, CallArguments) and isinstance(last, CallArguments):
                joined[-1] = CallArguments(piece.index, last.text + piece.text)
            else:
                joined.append(piece)
        self._pieces = []
        return joined


def _parameter_names(function: Mapping[str, Any]) -> tuple[str, ...]:
    properties = (function.get("parameters") or {}).get("properties")
    return tuple(properties) if isinstance(properties, dict) else ()
