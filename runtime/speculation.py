"""Having the model check guesses of the next tokens of answers, where that pays.

The model checks all tokens of a guess in one pass, which takes less time than as many passes, as its weights are read
once. Answers keep their distribution (guess.py); a guess only decides how many tokens one pass gives.
"""

from collections.abc import Sequence
from time import perf_counter

from .errors import EngineError
from .guess import Guess, Guesser, chosen_tokens
from .job import Job
from .kv_cache import CacheFullError
from .lazy_array import first_columns
from .model import LanguageModel, Logits
from .sampler import Sampled

_LENGTHS = (2, 4, 7)  # of guesses that are tried
_LEAST_GAIN = 1.1  # in tokens per second
_COST_OF_TOKEN = 0.25  # of a guess, in passes, before one was timed
_FORGETTING = 256  # passes after which a time that was measured once is doubted


class Speculation:
    """Several tokens of answers in one pass."""

    def __init__(self, model: LanguageModel, vocab_size: int, guesser: Guesser | None) -> None:
        self._model, self._vocab_size = model, vocab_size
        self.guesser = guesser
        self.length = 0  # of all guesses; 0: the one that pays most
        self.guessed_tokens = self.right_tokens = 0
        self._costs: dict[int, Costs] = {}

    def costs(self, answers: int) -> "Costs":
        """How long passes for so many answers take."""
        return self._costs.setdefault(answers, Costs())

    def run(self, jobs: Sequence[Job]) -> list[list[Sampled | EngineError]] | None:
        """The next tokens of each answer, or what is wrong. None where guesses do not pay, or have no room.

        Raises what the models raise.
        """
        guesser = self.guesser
        if guesser is None or not all(job.lookup is not None and job.form is None for job in jobs):
            return None
        length = self.length or self.costs(len(jobs)).best_length(guesser.chance(jobs))
        length = min(length, max(job.limit - job.count for job in jobs) - 1)
        if length < 1 or len(jobs) * (1 + length) > self._model.prefill_chunk_size or not guesser.is_ready(jobs):
            return None
        begin = perf_counter()
        guesses = guesser.guess(jobs, length)
        if guesses is None:
            return None
        for job, guess in zip(jobs, guesses, strict=True):
            del guess.tokens[job.limit - job.count - 1 :]
        try:
            logits = self._model.verify(
                [job.sequence for job in jobs],  # type: ignore[misc]
                [[job.tokens[-1], *guess.tokens] for job, guess in zip(jobs, guesses, strict=True)],
            )
        except CacheFullError:
            return None
        for job, guess in zip(jobs, guesses, strict=True):
            job.computed += 1 + len(guess.tokens)
        logits, start, chosen = first_columns(logits, self._vocab_size), 0, []
        for job, guess in zip(jobs, guesses, strict=True):
            rows = [logits[start + place] for place in range(1 + len(guess.tokens))]
            chosen.append(self._settle(job, guess, rows))
            start += len(rows)
        self.costs(len(jobs)).time(max(len(guess.tokens) for guess in guesses), perf_counter() - begin)
        return chosen

    def watch(self, jobs: Sequence[Job], seconds: float) -> None:
        """A pass without guesses for answers whose next tokens are not chosen yet took that long."""
        if self.guesser is not None:
            self.costs(len(jobs)).time(0, seconds)
            self.guesser.watch(jobs)

    def release(self, job: Job) -> None:
        """An answer is over, or waits."""
        if self.guesser is not None:
            self.guesser.release(job)

    def forget(self) -> None:
        """Keep nothing of answers that are over."""
        if self.guesser is not None:
            self.guesser.forget()

    def _settle(self, job: Job, guess: Guess, logits: Sequence[Logits]) -> list[Sampled | EngineError]:
        """The next tokens of an answer whose guess was checked; the others are taken back."""
        assert job.sequence is not None
        assert self.guesser is not None
        chosen = chosen_tokens(job, logits, guess)
        wrong = 1 + len(guess.tokens) - len(chosen)
        self._model.pop(job.sequence, wrong)
        job.computed -= wrong
        right = len(chosen) - 1
        self.guesser.learn(job, right, int(right < len(guess.tokens)))
        self.guessed_tokens += len(guess.tokens)
        self.right_tokens += right
        return chosen


class Costs:
    """How long passes take, by the length of the guess that they check, and what length pays."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}

    def time(self, length: int, seconds: float) -> None:
        """A pass with a guess of that length, 0 for none, took `seconds`."""
        known = self._seconds.get(length, seconds)
        self._seconds[length] = known + (seconds - known) / 4
        if not length:  # what did not pay once is tried again one day
            for other in self._seconds.keys() - {0}:
                self._seconds[other] += (self._expected(other) - self._seconds[other]) / _FORGETTING

    def best_length(self, chance: float) -> int:
        """The length of guess that gives the most tokens per second when each token is right with that chance."""
        single = self._seconds.get(0)
        if single is None:
            return 0
        best, most = 0, _LEAST_GAIN
        for length in _LENGTHS:
            tokens = sum(chance**right for right in range(length + 1))
            cost = self._seconds.get(length, self._expected(length)) / single
            if tokens / cost > most:
                best, most = length, tokens / cost
        return best

    def _expected(self, length: int) -> float:
        return self._seconds[0] * (1 + _COST_OF_TOKEN * length)
