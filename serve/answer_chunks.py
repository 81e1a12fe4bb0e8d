"""One answer's events as deltas of a stream, with the log-probabilities of their tokens beside them."""

from collections.abc import Iterable, Iterator

from ..runtime.events import Delta as TextDelta
from ..runtime.events import Finish
from ..runtime.events import TokenLogprob as GeneratedLogprob
from .protocol import Delta, FinishReason
from .tool_calls import AnswerParser, Piece, ToolFormat
from .tool_calls.deltas import deltas

Logprobs = tuple[GeneratedLogprob, ...]


class AnswerChunks:
    """Takes one answer apart while it arrives."""

    def __init__(self, parser: AnswerParser | None, form: ToolFormat) -> None:
        """`parser` None: all text is content."""
        self._parser, self._form = parser, form
        self._waiting: Logprobs = ()  # of text that the parser holds back
        self._called = False

    def of_text(self, event: TextDelta) -> Iterator[tuple[Delta, Logprobs]]:
        """The deltas that are certain now, each with the log-probabilities of the tokens up to its end."""
        if self._parser is None:
            yield Delta(content=event.text), event.logprobs
            return
        self._waiting += event.logprobs
        yield from self._deltas(self._parser.put(event.text))

    def of_end(self) -> Iterator[tuple[Delta, Logprobs]]:
        """What was held back, after the last text."""
        if self._parser is not None:
            yield from self._deltas(self._parser.finish())
            if self._waiting:
                yield Delta(content=""), self._waiting

    def reason(self, event: Finish) -> FinishReason:
        """Why the answer ended."""
        return "tool_calls" if self._called and event.reason == "stop" else event.reason

    def _deltas(self, pieces: Iterable[Piece]) -> Iterator[tuple[Delta, Logprobs]]:
        for delta in deltas(pieces, self._form):
            self._called = self._called or delta.tool_calls is not None
            yield delta, self._waiting
            self._waiting = ()
