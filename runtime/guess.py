"""Guessed tokens of an answer, and which of them stay.

A token x that was drawn with probability q(x) stays with probability min(1, p(x) / q(x)), where p is the distribution
of the answer's next token; else one is drawn in proportion to max(0, p - q). So the answer has the distribution that it
has without guesses (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192, algorithm 1). For a guess that is no draw,
q(x) is 1, and drawing from p and comparing does the same.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from .distribution import Probabilities, distribution, drawn
from .errors import EngineError
from .lazy_array import LazyArray
from .model import Logits
from .sampler import Sampled, Sampler, sample_or_error

if TYPE_CHECKING:
    from .job import Job


@dataclass
class Guess:
    """Tokens that may follow a text."""

    tokens: list[int] = field(default_factory=list)
    probabilities: list[Probabilities] = field(default_factory=list)  # each was drawn from; empty: no draws


class Guesser(Protocol):
    """Who guesses for the answers of a step, and how well."""

    def is_ready(self, jobs: "Sequence[Job]") -> bool:
        """Whether `guess` may be called for these answers; may do a part of what it takes first."""
        ...

    def guess(self, jobs: "Sequence[Job]", length: int) -> list[Guess] | None:
        """At most `length` tokens for each answer; None where there are none."""
        ...

    def chance(self, jobs: "Sequence[Job]") -> float:
        """How likely a guessed token is right."""
        ...

    def learn(self, job: "Job", right: int, wrong: int) -> None:
        """`right` guessed tokens were chosen, and `wrong` ones were not."""
        ...

    def watch(self, jobs: "Sequence[Job]") -> None:
        """The answers get their next tokens without a guess."""
        ...

    def release(self, job: "Job") -> None:
        """An answer is over, or waits."""
        ...

    def forget(self) -> None:
        """Keep nothing of answers that are over."""
        ...


def chosen_tokens(job: "Job", logits: Sequence[Logits], guess: Guess) -> list[Sampled | EngineError]:
    """The next tokens, by the logits after the text and after each token of the guess: up to the first that is another
    one, or ends the answer."""
    chosen: list[Sampled | EngineError] = []
    for place in range(len(guess.tokens) + 1):
        if guess.probabilities and place < len(guess.tokens):
            sampled = _kept_or_another(job.sampler, logits[place], guess.tokens[place], guess.probabilities[place])
        else:
            sampled = sample_or_error(job.sampler, logits[place])
        chosen.append(sampled)
        if isinstance(sampled, EngineError) or sampled.token in job.stops:
            break
        if place == len(guess.tokens) or sampled.token != guess.tokens[place]:
            break
    return chosen


def _kept_or_another(sampler: Sampler, logits: Logits, token: int, q: Probabilities) -> Sampled | EngineError:
    """A drawn token, or one in its place. It never is the same one: what replaces a token is likelier than q has it."""
    import numpy as np

    adjusted = sampler.adjusted(logits)
    values = adjusted.numpy() if isinstance(adjusted, LazyArray) else adjusted
    best = int(values.argmax())
    if not math.isfinite(values[best]):
        chosen = -1 - best
    else:
        p = distribution(values, sampler.cuts)
        stays, others = min(1.0, float(p[token] / q[token])), np.maximum(p - q, 0)
        if sampler.uniform < stays or not others.any():
            chosen = token
        else:  # what is left of the number is one of [0, 1) again
            chosen = drawn(others, (sampler.uniform - stays) / (1 - stays))
    try:
        return sampler.take(chosen, values, logits)
    except EngineError as error:
        return error
