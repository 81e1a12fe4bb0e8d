"""Guessing the next tokens of an answer from its own text, and whether it pays to have the model check the guess.

Answers often repeat what the prompt or they themselves say: code that is edited, names, quotations, lists. Where the
last tokens stood in the text before, what followed them is a guess (prompt lookup, as in
https://github.com/apoorvumang/prompt-lookup-decoding). The model checks all of its tokens in one pass, which takes less
time than as many passes, as its weights are read once. Tokens are chosen from the same logits by the same numbers as
without a guess; it only decides how many of them one pass gives.
"""

from collections.abc import Sequence

_MATCHED = 3  # tokens that have to agree
_LENGTHS = (2, 4, 7)  # of guesses that are tried
_LEAST_GAIN = 1.1  # in tokens per second
_FIRST_CHANCE = 0.5  # that a guessed token is right, before anything is known
_COST_OF_TOKEN = 0.25  # of a guess, in passes, before one was timed


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


class Costs:
    """How long passes take, by the length of the guess that they check, and what length pays."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def time(self, length: int, seconds: float) -> None:
        """A pass with a guess of that length, 0 for none, took `seconds`."""
        known = self._seconds.get(length, seconds)
        self._seconds[length] = known + (seconds - known) / 4

    def best_length(self, chance: float) -> int:
        """The length of guess that gives the most tokens per second when each token is right with that chance."""
        single = self._seconds.get(0)
        if single is None:
            return 0
        best, most = 0, _LEAST_GAIN
        for length in _LENGTHS:
            tokens = sum(chance**right for right in range(length + 1))
            cost = self._seconds.get(length, single * (1 + _COST_OF_TOKEN * length)) / single
            if tokens / cost > most:
                best, most = length, tokens / cost
        return best
