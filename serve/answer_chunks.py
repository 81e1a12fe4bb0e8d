"""One answer's events as deltas of a stream, with the log-probabilities of their tokens beside them."""

from collections.abc import Iterable, Iterator
from typing import Literal

from ..runtime.events import Delta as TextDelta
from ..runtime.events import Finish
from ..runtime.events import TokenLogprob as GeneratedLogprob
from .protocol import Delta, FinishReason
from .tool_calls import AnswerParser, Piece, ReasoningPiece, ToolFormat
from .tool_calls.deltas import deltas

Logprobs = tuple[GeneratedLogprob, ...]


class AnswerChunks:
    """Takes one answer apart while it arrives."""

    def __init__(self, parser: AnswerParser | None, form: ToolFormat) -> None:
        """`parser` None: all text is content."""
        self._parser, self._form = parser, form
        self._waiting: Logprobs = ()  # of text that the parser holds back
        self._called = False
        self._state: Literal["before", "thinking", "answering"] = "before"
        self.reasoning_tokens = 0

    def of_text(self, event: TextDelta) -> Iterator[tuple[Delta, Logprobs]]:
        """The deltas that are certain now, each with the log-probabilities of the tokens up to its end."""
        if self._parser is None:
            yield Delta(content=event.text), event.logprobs
            return
        self._waiting += event.logprobs
        pieces = self._parser.put(event.text)
        self._count_thoughts(pieces, event.tokens)
        yield from self._deltas(pieces)

    def of_end(self) -> Iterator[tuple[Delta, Logprobs]]:
        """What was held back, after the last text."""
        if self._parser is not None:
            yield from self._deltas(self._parser.finish())
            if self._waiting:
                yield Delta(content=""), self._waiting

    def reason(self, event: Finish) -> FinishReason:
        """Why the answer ended."""
        return "tool_calls" if self._called and event.reason == "stop" else event.reason

    def _count_thoughts(self, pieces: list[Piece], tokens: int) -> None:
        """The answer has so many tokens with these pieces; those up to the end of the reasoning are of it."""
        if any(not isinstance(piece, ReasoningPiece) for piece in pieces):
            self._state = "answering"
        elif pieces and self._state == "before":
            self._state = "thinking"
        if self._state == "thinking":
            self.reasoning_tokens = tokens

    def _deltas(self, pieces: Iterable[Piece]) -> Iterator[tuple[Delta, Logprobs]]:
        for delta in deltas(pieces, self._form):
            self._called = self._called or delta.tool_calls is not None
            yield delta, self._waiting
            self._waiting = ()
