"""Answers: the next token of each, all of them in one pass; or several of one, where they can be guessed."""

from collections.abc import Sequence
from time import perf_counter

from .answer_form import FormMasks
from .errors import MLCError
from .job import Job
from .lazy_array import first_columns
from .model import LanguageModel
from .sampler import BatchSampler, Sampled
from .speculation import Speculation

Tokens = Sequence[Sampled | MLCError]


class Decode:
    """Computes and chooses the next tokens of answers."""

    def __init__(self, model: LanguageModel, vocab_size: int, masks: FormMasks, speculation: Speculation) -> None:
        self._model, self._vocab_size, self._masks = model, vocab_size, masks
        self._speculation = speculation
        self._batch: Sequence[Job] = ()  # of `_sampler`
        self._sampler: BatchSampler | None = None

    def run(self, jobs: Sequence[Job]) -> Sequence[Tokens]:
        """The next tokens of each answer, at least one, or what is wrong with them.

        Raises CacheFullError, before anything changes, and what the model raises.
        """
        several = self._speculation.run(jobs)
        if several is not None:
            return several
        begin = perf_counter()
        tokens = self._one_each(jobs)
        for job in jobs:
            job.computed += 1
        self._speculation.watch(jobs, perf_counter() - begin)
        return [(one,) for one in tokens]

    def forget(self) -> None:
        """Hold on to no answers."""
        self._batch, self._sampler = (), None

    def _one_each(self, jobs: Sequence[Job]) -> Tokens:
        if self._sampler is None or self._batch != jobs:
            self._batch, self._sampler = jobs, BatchSampler([job.sampler for job in jobs])
        sampler, tokens = self._sampler, [job.tokens[-1] for job in jobs]
        sequences: list[int] = [job.sequence for job in jobs]  # type: ignore[misc]
        masks = self._masks.start([job.form for job in jobs])
        if sampler.plain and not masks:
            chosen = self._model.decode_and_sample(sequences, tokens, sampler.draws, sampler.uniforms())
            return sampler.accept(chosen)
        try:
            logits = self._model.decode(sequences, tokens)
        finally:
            errors = self._masks.finish(masks)
        wanted = [None if job.form is None else job.form.mask for job in jobs] if masks else []
        sampled = sampler.sample(first_columns(logits, self._vocab_size), wanted)
        return [errors.get(index) or one for index, one in enumerate(sampled)]
