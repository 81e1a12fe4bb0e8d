"""What generation tells: pieces of an answer, then its end."""

from dataclasses import dataclass
from typing import Literal, NamedTuple


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


class PromptScored(NamedTuple):
    """The tokens of a prompt with their log-probabilities; the first one has none to compare."""

    first: RankedToken
    rest: tuple[TokenLogprob, ...]


class Delta(NamedTuple):
    """More of the answer. `logprobs` are those of the tokens that `text` is made of, where they were asked for; the
    answer had so many `tokens` when it came."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: int = 0


class Finish(NamedTuple):
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


Event = PromptScored | Delta | Finish
