"""Work of a scheduler, as an answer from the prompt to its end, for whoever computes it and for whoever reads it."""

from collections import deque
from typing import Literal

from .answer_form import AnswerForm
from .answer_text import AnswerText
from .errors import EngineError, MLCError
from .events import Delta, Event, Finish, TokenLogprob
from .prompt_lookup import Lookup
from .sampler import Sampled, Sampler

MOST_UNREAD = 256  # events; an answer that nobody reads is not generated further
EXACT = 64  # tokens: prompts that are cut at multiples of it give the same numbers as whole ones


class Work:
    """Something to compute: its place in the KV cache, and the events that nobody has read yet."""

    def __init__(self, tokens: list[int], prompt_tokens: int) -> None:
        """`tokens` are those of a text whose keys and values are kept for texts that begin alike."""
        self.tokens, self.prompt_tokens = tokens, prompt_tokens
        self.events: deque[Event] = deque()
        self.error: MLCError | None = None  # instead of further events
        self.over = False  # nothing more is computed
        self.number = 0  # of submission: lower is older
        self.name = ""  # for who reads a trace
        self.waits_since = 0.0  # by perf_counter
        self.sequence: int | None = None  # of the KV cache, which holds the first `computed` tokens
        self.computed = 0
        self.cached_tokens: int | None = None
        self.began = 0.0  # seconds of computing

    @property
    def is_exact(self) -> bool:
        """Whether the result must be the same to the last bit, whatever is known already or runs beside it."""
        return True

    @property
    def is_scored(self) -> bool:
        """Whether the logits of all tokens are needed still."""
        return False

    @property
    def uncomputed(self) -> int:
        """Tokens that the KV cache does not hold."""
        return len(self.tokens) - self.computed

    @property
    def needed_tokens(self) -> int:
        """Tokens that the KV cache has to hold at a time, as far as is known."""
        return len(self.tokens) + 1


class Job(Work):
    """One answer: its tokens so far, and what it is made with."""

    def __init__(
        self, tokens: list[int], sampler: Sampler, stops: frozenset[int], text: AnswerText, limit: int
    ) -> None:
        """`tokens` are the prompt's; one of `stops` ends the answer, or `limit` tokens do."""
        super().__init__(tokens, len(tokens))
        self.sampler, self.stops, self.text, self.limit = sampler, stops, text, limit
        self.count = 0  # tokens of the answer
        self.first_token = 0.0  # seconds of computing
        # A pass that checks a guess rounds in other places: with a seed, answers must not depend on what is guessed.
        self.lookup = Lookup() if sampler.seed is None else None
        self.form: AnswerForm | None = None  # None for an answer that may be any text
        self.scores: list[TokenLogprob] | None = None  # of the prompt's tokens but the first, where they are asked for

    @property
    def is_exact(self) -> bool:
        """Whether the answer must be the same to the last bit, whatever is known already or runs beside it."""
        return self.lookup is None

    @property
    def is_read(self) -> bool:
        """Whether somebody takes the events."""
        return len(self.events) < MOST_UNREAD

    @property
    def is_scored(self) -> bool:
        """Whether the logits of the prompt are needed still."""
        return self.scores is not None and not self.count

    def take(self, sampled: Sampled, now: float) -> Finish | None:
        """One more token of the answer, at `now`. Returns the end of the answer, if it is the last one.

        Raises EngineError for a token that does not fit the answer's form.
        """
        if self.form is not None and not self.form.grammar.accept(sampled.token):
            raise EngineError(f"token {sampled.token} does not fit the form of the answer")
        self.count += 1
        if self.count == 1:
            self.first_token = now
        ended = sampled.token in self.stops
        if not ended:
            self.tokens.append(sampled.token)
            self._tell(self.text.take(sampled))
            ended = self.text.stopped
        return self._finish(ended, now) if ended or self.count == self.limit else None

    def _tell(self, delta: Delta) -> None:
        if delta.text or delta.logprobs:
            self.events.append(Delta(delta.text, delta.logprobs, self.count))

    def _finish(self, ended: bool, now: float) -> Finish:
        self._tell(self.text.finish())
        reason: Literal["stop", "length"] = "stop" if ended or self.text.stopped else "length"
        seconds = self.first_token - self.began, now - self.first_token
        return Finish(reason, self.prompt_tokens, self.count, self.cached_tokens or 0, *seconds)
