"""Prompts: which is computed next, and how much of it at once.

They are cut into pieces that take about MOST_GAP while other answers are decoding, so that a long prompt delays their
next token by no more, and LONGEST_STEP otherwise, after which an interrupt or a new request is seen. The oldest prompt
and the one with the least left take turns: a short prompt does not wait for a long one, nor a long one for ever.
"""

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING

from .answer_form import FormMasks
from .embedding import EmbeddingJob, embed
from .errors import MLCError
from .events import PromptScored
from .job import EXACT, Job, Work
from .lazy_array import first_columns
from .model import LanguageModel, Logits
from .sampler import Sampled, sample_or_error

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MOST_GAP = 0.1  # seconds between two tokens of an answer that a prompt of another may add
LONGEST_STEP = 0.5  # seconds
_FEWEST_TOKENS = 16  # of a piece of a prompt
_SCORED_AT_ONCE = 64  # tokens of a prompt: their logits take 4 bytes for each token of the vocabulary


class Prefill:
    """Computes prompts, piece by piece."""

    def __init__(self, model: LanguageModel, vocab_size: int, masks: FormMasks) -> None:
        self._model, self._vocab_size, self._masks = model, vocab_size, masks
        self._oldest_first = True
        self.rate = 1000.0  # tokens per second, as measured

    def next(self, jobs: Sequence[Work]) -> Work:
        """The prompt of which a piece is due."""
        self._oldest_first = not self._oldest_first
        if self._oldest_first or len(jobs) == 1:
            return min(jobs, key=lambda job: job.number)
        return min(jobs, key=lambda job: job.uncomputed)

    def run(self, job: Work, others_decode: bool, make_room: Callable[[int], bool]) -> Sampled | MLCError | None:
        """Compute a piece of a prompt, or of texts to embed, for which `make_room` gets pages that nobody needs.

        Returns the first token of the answer behind the last piece, or what is wrong with it. Raises CacheFullError,
        before anything changes, and what the model raises.
        """
        if isinstance(job, EmbeddingJob):
            self._embed(job, others_decode, make_room)
            return None
        assert isinstance(job, Job)
        count = self._piece(job, MOST_GAP if others_decode else LONGEST_STEP)
        begin = perf_counter()
        masks = self._masks.start([job.form] if count == job.uncomputed else [])
        logits = self._pass(job, count)
        self._learn(count, begin)
        job.computed += count
        if job.uncomputed:
            return None
        if job.scores is not None:
            job.events.append(PromptScored(job.text.ranked(Sampled(job.tokens[0], 0.0)), tuple(job.scores)))
        errors = self._masks.finish(masks)
        if errors:
            return errors[0]
        mask = None if job.form is None else job.form.mask
        return sample_or_error(job.sampler, first_columns(logits, self._vocab_size), mask)

    def _embed(self, job: EmbeddingJob, others_decode: bool, make_room: Callable[[int], bool]) -> None:
        """Compute a piece of a text, or several texts."""
        count = self._piece(job, MOST_GAP if others_decode else LONGEST_STEP)
        begin, before = perf_counter(), job.uncomputed
        embed(self._model, job, count, make_room)
        self._learn(before - job.uncomputed, begin)

    def _learn(self, count: int, begin: float) -> None:
        self.rate += ((count / (perf_counter() - begin)) - self.rate) / 4

    def _piece(self, job: Work, seconds: float) -> int:
        """How many tokens of a prompt to compute at once."""
        most = self._model.prefill_chunk_size
        scored = isinstance(job, Job) and job.scores is not None
        count = _SCORED_AT_ONCE if scored else min(most, int(self.rate * seconds))
        if count < EXACT and not job.is_exact:
            count = max(count, _FEWEST_TOKENS)
        else:
            count = max(count // EXACT, 1) * EXACT
        return min(job.uncomputed, most) if job.uncomputed <= count * 5 // 4 else count  # no small rest

    def _pass(self, job: Job, count: int) -> Logits:
        """The logits after the next `count` tokens of a prompt."""
        assert job.sequence is not None
        tokens = job.tokens[job.computed : job.computed + count]
        if job.scores is None:
            return self._model.prefill(job.sequence, tokens)
        rows: list[npt.NDArray[np.float32]] = list(self._model.logits_of(job.sequence, tokens)[:, : self._vocab_size])
        following = job.tokens[job.computed + 1 : job.computed + count + 1]  # none after the last one
        job.scores += [job.text.ranked(job.sampler.score(rows[i], token)) for i, token in enumerate(following)]
        return rows[-1]
