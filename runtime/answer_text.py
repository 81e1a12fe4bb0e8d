"""The text of an answer while its tokens arrive."""

from collections.abc import Sequence
from typing import Protocol

from .detokenizer import StreamingDetokenizer, TokenSource
from .events import Delta, RankedToken, TokenLogprob
from .sampler import Sampled
from .stop import StopChecker


class TextTokenizer(TokenSource, Protocol):
    """What generation needs of a tokenizer; `Tokenizer` is the one of model folders."""

    def vocab_size_within(self, limit: int) -> int: ...
    def token_bytes(self, token: int) -> bytes: ...


class AnswerText:
    """The text of one answer while its tokens arrive, cut at a stop string, with the log-probabilities in step."""

    def __init__(
        self,
        tokenizer: TextTokenizer,
        logprobs: bool,
        stop_strings: Sequence[str],
        shown_ids: frozenset[int] = frozenset(),
        min_tokens: int = 0,
    ) -> None:
        """Special tokens are no part of the text, but for `shown_ids`. Stop strings count from behind `min_tokens`."""
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer, shown_ids=shown_ids)
        self._stops = StopChecker(stop_strings)
        self._logprobs = logprobs
        self._early = min_tokens  # how many more tokens may not end the answer
        self._pending: list[tuple[int, TokenLogprob]] = []  # with the place in the text where the token begins
        self._decoded = self._released = 0  # characters

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.stopped

    def ranked(self, sampled: Sampled) -> TokenLogprob:
        """A token with its bytes, and the most likely ones in its place with theirs."""
        token_bytes = self._tokenizer.token_bytes
        top = tuple(RankedToken(token, token_bytes(token), logprob) for token, logprob in sampled.top)
        assert sampled.logprob is not None
        return TokenLogprob(sampled.token, token_bytes(sampled.token), sampled.logprob, top)

    def take(self, sampled: Sampled) -> Delta:
        """One more token. Returns what may be shown now."""
        text = self._detokenizer.put(sampled.token)
        may_stop = not self._early
        if self._early:
            self._early -= 1
        if not self._logprobs:
            return Delta(self._stops.put(text, may_stop)[0])
        self._pending.append((self._decoded, self.ranked(sampled)))
        return self._release(text, may_stop)

    def finish(self) -> Delta:
        """The tokens have ended. Returns what was held back; nothing after a stop string."""
        if self.stopped:
            return Delta("")
        delta = self._release(self._detokenizer.finish(), not self._early)
        if self.stopped:
            return delta
        rest = tuple(logprob for _, logprob in self._pending)
        self._pending = []
        return Delta(delta.text + self._stops.finish(), delta.logprobs + rest)

    def _release(self, text: str, may_stop: bool) -> Delta:
        self._decoded += len(text)
        shown, _ = self._stops.put(text, may_stop)
        self._released += len(shown)
        if not self._pending:
            return Delta(shown)
        ready = [logprob for start, logprob in self._pending if start < self._released]
        self._pending = self._pending[len(ready) :]
        return Delta(shown, tuple(ready))
