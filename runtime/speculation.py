"""Having the model check a guess of the next tokens of an answer, where that pays.

The model checks all tokens of a guess in one pass, which takes less time than as many passes, as its weights are read
once. Tokens are chosen from the same logits by the same numbers as without a guess; it only decides how many of them
one pass gives.
"""

from collections.abc import Sequence
from time import perf_counter

from .errors import EngineError
from .job import Job
from .kv_cache import CacheFullError
from .lazy_array import first_columns
from .model import LanguageModel, Logits
from .sampler import Sampled, sample_or_error

_LENGTHS = (2, 4, 7)  # of guesses that are tried
_LEAST_GAIN = 1.1  # in tokens per second
_COST_OF_TOKEN = 0.25  # of a guess, in passes, before one was timed


class Speculation:
    """Several tokens of an answer in one pass."""

    def __init__(self, model: LanguageModel, vocab_size: int) -> None:
        self._model, self._vocab_size = model, vocab_size
        self.enabled = True
        self.costs = Costs()
        self.guessed_tokens = self.right_tokens = 0

    def run(self, jobs: Sequence[Job]) -> list[list[Sampled | EngineError]] | None:
        """The next tokens of an answer that runs alone, or what is wrong. None where a guess does not pay, or has no
        room.

        Raises what the model raises.
        """
        job = jobs[0]
        if not self.enabled or len(jobs) > 1 or job.lookup is None or job.form is not None:
            return None
        length = min(self.costs.best_length(job.lookup.chance), job.limit - job.count - 1)
        guess = list(job.lookup.guess(job.tokens, length)) if length > 0 else []
        if not guess:
            return None
        assert job.sequence is not None
        begin = perf_counter()
        try:
            logits = self._model.verify(job.sequence, [job.tokens[-1], *guess])
        except CacheFullError:
            return None
        self.costs.time(len(guess), perf_counter() - begin)
        job.computed += 1 + len(guess)
        chosen = self._choose(job, first_columns(logits, self._vocab_size), guess)
        self._model.pop(job.sequence, 1 + len(guess) - len(chosen))
        job.computed -= 1 + len(guess) - len(chosen)
        right = len(chosen) - 1
        job.lookup.learn(right, right < len(guess))
        self.guessed_tokens += len(guess)
        self.right_tokens += right
        return [chosen]

    def watch(self, jobs: Sequence[Job], seconds: float) -> None:
        """A pass without guesses for answers whose next tokens are not chosen yet took that long."""
        if self.enabled and len(jobs) == 1:
            self.costs.time(0, seconds)
            if (lookup := jobs[0].lookup) is not None:
                lookup.watch(jobs[0].tokens)

    def _choose(self, job: Job, logits: Logits, guess: Sequence[int]) -> list[Sampled | EngineError]:
        """The tokens after a guess was checked: up to the first that is another one, or ends the answer."""
        chosen: list[Sampled | EngineError] = []
        for place in range(len(guess) + 1):
            sampled = sample_or_error(job.sampler, logits[place])
            chosen.append(sampled)
            if isinstance(sampled, EngineError) or sampled.token in job.stops or sampled.token != (*guess, -1)[place]:
                break
        return chosen


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
