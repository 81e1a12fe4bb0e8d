"""A conversation with an engine: its messages, settings and figures. Knows nothing of terminals."""

import time
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..runtime.errors import UsageError
from ..runtime.events import Finish
from .settings import Value, sampling_fields

Message = dict[str, str]


class AnswerStats(NamedTuple):
    """Figures of one answer; times in seconds, measured where the text arrives."""

    prompt_tokens: int
    cached_tokens: int  # of the prompt, known from earlier turns and not computed again
    completion_tokens: int
    first_token_time: float
    total_time: float
    finish_reason: str | None  # None: interrupted

    @property
    def prefill_speed(self) -> float | None:
        """Prompt tokens computed a second, until the first token came."""
        computed = self.prompt_tokens - self.cached_tokens
        return computed / self.first_token_time if computed > 0 and self.first_token_time > 0 else None

    @property
    def decode_speed(self) -> float | None:
        """Tokens a second after the first one."""
        decode_time = self.total_time - self.first_token_time
        return (self.completion_tokens - 1) / decode_time if self.completion_tokens > 1 and decode_time > 0 else None


@dataclass
class SessionTotals:
    """What this session has asked of the engine so far."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclass
class ChatSession:
    """Messages in, pieces of text out; the conversation is only ever changed by whole turns."""

    engine: Any  # MLCEngine, or whatever else has `generate` and chat.completions.create
    model: str
    device: str
    context_size: int
    system: str | None = None
    settings: dict[str, Value] = field(default_factory=dict)
    messages: list[Message] = field(default_factory=list)
    attachments: list[str] = field(default_factory=list)  # text that goes before the next message
    last: AnswerStats | None = None
    totals: SessionTotals = field(default_factory=SessionTotals)

    def ask(self, text: str) -> Generator[str]:
        """Send a message and yield the answer piece by piece (a piece may be empty).

        Closing the iterator early keeps what was answered so far as the answer. If the engine refuses
        (MLCError), the message and its attachments are as if they had never been sent.
        """
        attached, turns = self.attachments, len(self.messages)
        self.attachments = []
        try:
            yield from self._answer({"role": "user", "content": "\n\n".join([*attached, text])})
        finally:
            if len(self.messages) == turns:  # refused, or stopped before it began
                self.attachments = attached

    def regenerate(self) -> Generator[str]:
        """Ask for another last answer, which takes the old one's place. Raises UsageError when there is none."""
        if not self.messages:
            raise UsageError("there is no answer to regenerate yet")
        return self._answer(self.messages[-2], keep=len(self.messages) - 2)

    def undo(self) -> None:
        """Forget the last message and its answer. Raises UsageError when there is none."""
        if not self.messages:
            raise UsageError("there is nothing to undo")
        del self.messages[-2:]

    def reset(self) -> None:
        """Start a new conversation; system message and settings stay."""
        self.messages.clear()
        self.attachments.clear()

    def conversation(self, messages: list[Message]) -> list[Message]:
        """Messages with the system message before them, where there is one."""
        return [{"role": "system", "content": self.system}, *messages] if self.system else messages

    def _answer(self, question: Message, keep: int | None = None) -> Generator[str]:
        """Generate the answer to `question` after the first `keep` messages (all of them by default)."""
        kept = self.messages[:keep]
        pieces: list[str] = []
        finish_reason = None
        prompt_tokens = cached_tokens = completion_tokens = 0
        start = time.perf_counter()
        first = latest = 0.0
        try:
            events = self.engine.generate(self.conversation([*kept, question]), **sampling_fields(self.settings))
            for event in events:
                latest = time.perf_counter() - start
                if isinstance(event, Finish):
                    prompt_tokens, completion_tokens = event.prompt_tokens, event.completion_tokens
                    cached_tokens, finish_reason = event.cached_tokens, event.reason
                else:
                    first = first or latest
                    pieces.append(event.text)
                    yield event.text
        except GeneratorExit:
            events.close()
            completion_tokens = len(pieces)  # the figures never came: about a token a piece
        answer = "".join(pieces)
        if answer or finish_reason:
            self.messages = [*kept, question, {"role": "assistant", "content": answer}]
        self.last = AnswerStats(prompt_tokens, cached_tokens, completion_tokens, first or latest, latest, finish_reason)
        self.totals.requests += 1
        self.totals.prompt_tokens += prompt_tokens
        self.totals.completion_tokens += completion_tokens
        self.totals.seconds += latest
