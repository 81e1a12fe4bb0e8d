"""The one path on which text is generated: tokens in, events out."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple, Protocol

from .detokenizer import StreamingDetokenizer, TokenSource
from .errors import RequestError
from .model import LanguageModel
from .prefix_cache import Lease, PrefixCache
from .sampler import Sampled, Sampler
from .sampling_params import SamplingParams
from .stop import StopChecker


class TextTokenizer(TokenSource, Protocol):
    """What generation needs of a tokenizer; `Tokenizer` is the one of model folders."""

    def vocab_size_within(self, limit: int) -> int: ...
    def token_bytes(self, token: int) -> bytes: ...


@dataclass(frozen=True)
class RankedToken:
    """A token, the bytes that it stands for, and its log-probability."""

    token: int
    bytes: bytes
    logprob: float


@dataclass(frozen=True)
class TokenLogprob(RankedToken):
    """A token of the answer, with the most likely ones in its place."""

    top: tuple[RankedToken, ...] = ()


class Delta(NamedTuple):
    """More of the answer. `logprobs` are those of the tokens that `text` is made of, where they were asked for."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finish:
    """The end of an answer: why, what it took, and the seconds of computing."""

    reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int  # with the one that ended the answer
    cached_tokens: int  # of the prompt, those whose keys and values were there already
    prefill_seconds: float
    decode_seconds: float

    @property
    def prefill_tokens_per_second(self) -> float:
        """Prompt tokens that were computed, by the time up to the first token of the answer."""
        return (self.prompt_tokens - self.cached_tokens) / max(self.prefill_seconds, 1e-9)

    @property
    def decode_tokens_per_second(self) -> float:
        """Tokens of the answer after the first, by the time that they took."""
        return (self.completion_tokens - 1) / max(self.decode_seconds, 1e-9)


Event = Delta | Finish


class Generator:
    """Generates answers with one model, any number of them at a time. Safe to use from several threads."""

    def __init__(self, model: LanguageModel, tokenizer: TextTokenizer, eos_token_ids: Collection[int] = ()) -> None:
        """`eos_token_ids` end an answer unless a request ignores them."""
        self._model = model
        self._tokenizer = tokenizer
        self._eos = frozenset(eos_token_ids)
        self._cache = PrefixCache(model)
        self.vocab_size = tokenizer.vocab_size_within(model.vocab_size)

    @property
    def context_window(self) -> int:
        """Tokens that a prompt and its answer may have together."""
        return self._model.context_window

    def generate(
        self, prompt_ids: Sequence[int], params: SamplingParams, *, stop_strings: Sequence[str] = ()
    ) -> Iterator[Event]:
        """The answer to a prompt: deltas, then one `Finish`. `stop_strings` are the template's, beside those of params.

        The request is checked at once: raises RequestError for an empty prompt, one that fills the context (code
        "context_length_exceeded"), or invalid params. The events raise EngineError when the model fails. Closing the
        iterator early is fine; what has been computed is kept for prompts that begin alike.
        """
        if not prompt_ids:
            raise RequestError("the prompt is empty: at least one token is needed", param="messages")
        context = self.context_window
        if len(prompt_ids) >= context:
            raise RequestError(
                f"the prompt has {len(prompt_ids)} tokens; the context holds {context}, the answer included: "
                "shorten the messages",
                param="messages",
                code="context_length_exceeded",
            )
        sampler = Sampler(params, self.vocab_size, self._model.sampling, prompt_ids)
        stops = frozenset(params.stop_token_ids) | (frozenset() if params.ignore_eos else self._eos)
        answer = _Answer(self._tokenizer, params.logprobs, (*params.stop, *stop_strings))
        limit = context - len(prompt_ids)
        if params.max_tokens is not None:
            limit = min(limit, params.max_tokens)
        return self._events(list(prompt_ids), sampler, stops, answer, limit)

    def _events(
        self, tokens: list[int], sampler: Sampler, stops: frozenset[int], answer: "_Answer", limit: int
    ) -> Iterator[Event]:
        cut = self.vocab_size < self._model.vocab_size  # models pad their vocabulary
        prompt_tokens, seconds = len(tokens), [0.0, 0.0]
        count, ended = 0, False
        lease = Lease()
        try:
            while not ended and count < limit:
                start = perf_counter()
                logits = self._cache.advance(lease, tokens)
                sampled = sampler.sample(logits[: self.vocab_size] if cut else logits)
                count += 1
                seconds[count > 1] += perf_counter() - start
                ended = sampled.token in stops
                if not ended:
                    tokens.append(sampled.token)
                    delta = answer.take(sampled)
                    ended = answer.stopped
                    if delta.text or delta.logprobs:
                        yield delta
            delta = answer.finish()
            if delta.text or delta.logprobs:
                yield delta
            reason: Literal["stop", "length"] = "stop" if ended or answer.stopped else "length"
            yield Finish(reason, prompt_tokens, count, lease.cached_tokens or 0, *seconds)
        finally:
            self._cache.close(lease)


class _Answer:
    """The text of one answer while its tokens arrive, cut at a stop string, with the log-probabilities in step."""

    def __init__(self, tokenizer: TextTokenizer, logprobs: bool, stop_strings: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._detokenizer = StreamingDetokenizer(tokenizer)
        self._stops = StopChecker(stop_strings)
        self._logprobs = logprobs
        self._pending: list[tuple[int, TokenLogprob]] = []  # with the place in the text where the token begins
        self._decoded = self._released = 0  # characters

    @property
    def stopped(self) -> bool:
        """Whether a stop string has been found."""
        return self._stops.stopped

    def take(self, sampled: Sampled) -> Delta:
        """One more token. Returns what may be shown now."""
        text = self._detokenizer.put(sampled.token)
        if not self._logprobs:
            return Delta(self._stops.put(text)[0])
        self._pending.append((self._decoded, self._ranked(sampled)))
        return self._release(text)

    def finish(self) -> Delta:
        """The tokens have ended. Returns what was held back; nothing after a stop string."""
        if self.stopped:
            return Delta("")
        delta = self._release(self._detokenizer.finish())
        if self.stopped:
            return delta
        rest = tuple(logprob for _, logprob in self._pending)
        self._pending = []
        return Delta(delta.text + self._stops.finish(), delta.logprobs + rest)

    def _release(self, text: str) -> Delta:
        self._decoded += len(text)
        shown, _ = self._stops.put(text)
        self._released += len(shown)
        if not self._pending:
            return Delta(shown)
        ready = [logprob for start, logprob in self._pending if start < self._released]
        self._pending = self._pending[len(ready) :]
        return Delta(shown, tuple(ready))

    def _ranked(self, sampled: Sampled) -> TokenLogprob:
        token_bytes = self._tokenizer.token_bytes
        top = tuple(RankedToken(token, token_bytes(token), logprob) for token, logprob in sampled.top)
        assert sampled.logprob is not None
        return TokenLogprob(sampled.token, token_bytes(sampled.token), sampled.logprob, top)
