"""Guessing the next tokens of an answer from its own text.

Answers often repeat what the prompt or they themselves say: code that is edited, names, quotations, lists. Where the
last tokens stood in the text before, what followed them is a guess (prompt lookup, as in
https://github.com/apoorvumang/prompt-lookup-decoding).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .guess import Guess

if TYPE_CHECKING:
    from .job import Job

_MATCHED = 3  # tokens that have to agree
_FIRST_CHANCE = 0.5  # that a guessed token is right, before anything is known


class Lookup:
    """The guesses for one text, and how often they are right."""

    def __init__(self) -> None:
        self.chance = _FIRST_CHANCE
        self._followed: dict[tuple[int, ...], int] = {}  # where the tokens of a key were followed by others last
        self._seen = _MATCHED
        self._watched: tuple[int, int] | None = None  # a place in the text, and the token that was guessed for it

    def guess(self, tokens: Sequence[int], count: int) -> Sequence[int]:
        """At most `count` tokens that may follow; none where the last tokens are new."""
        for place in range(self._seen, len(tokens)):
            self._followed[tuple(tokens[place - _MATCHED : place])] = place
        self._seen = max(self._seen, len(tokens))
        place = self._followed.get(tuple(tokens[-_MATCHED:]), len(tokens))
        return tokens[place : place + count]

    def watch(self, tokens: Sequence[int]) -> None:
        """Remember what would be guessed to follow `tokens`, and learn from whether the last time was right."""
        if self._watched is not None and self._watched[0] < len(tokens):
            place, token = self._watched
            self.learn(tokens[place] == token, tokens[place] != token)
        guess = self.guess(tokens, 1)
        self._watched = (len(tokens), guess[0]) if guess else None

    def learn(self, right: int, wrong: int) -> None:
        """`right` guessed tokens were chosen, and `wrong` ones were not."""
        for outcome in (*[1.0] * right, *[0.0] * wrong):
            self.chance += (outcome - self.chance) / 8


class PromptLookup:
    """A `Guesser` for an answer that runs alone."""

    def is_ready(self, jobs: "Sequence[Job]") -> bool:
        return len(jobs) == 1

    def guess(self, jobs: "Sequence[Job]", length: int) -> list[Guess] | None:
        tokens = list(_lookup(jobs[0]).guess(jobs[0].tokens, length))
        return [Guess(tokens)] if tokens else None

    def chance(self, jobs: "Sequence[Job]") -> float:
        return _lookup(jobs[0]).chance

    def learn(self, job: "Job", right: int, wrong: int) -> None:
        _lookup(job).learn(right, wrong)

    def watch(self, jobs: "Sequence[Job]") -> None:
        if len(jobs) == 1 and jobs[0].lookup is not None:
            jobs[0].lookup.watch(jobs[0].tokens)

    def release(self, job: "Job") -> None:
        """There is nothing to give back."""

    def forget(self) -> None:
        """Nothing is kept."""


def _lookup(job: "Job") -> Lookup:
    assert job.lookup is not None
    return job.lookup
