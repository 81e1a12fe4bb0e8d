"""Embeddings beside answers: each is the one that its text has alone, and nothing is left of it."""

from typing import Any

import numpy as np
import pytest
from byte_tokenizer import byte_tokenizer
from fake_model import PAGE, FakeModel

from mlc_llm.runtime.embedding import EmbeddingJob, Pooling, embed
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.events import Finish
from mlc_llm.runtime.generation import Generator
from mlc_llm.runtime.sampling_params import SamplingParams

LENGTHS = (5, 1, 9, 150, 4, 2, 70)
TEXTS = [np.random.default_rng(length).integers(0, 250, length).tolist() for length in LENGTHS]


class Bench:
    """A generator of a fake model."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.model = FakeModel(**{"context_window": 512, "pages": 400, "prefill_chunk_size": 128, **options})
        self.generator = Generator(self.model, tokenizer)
        self.scheduler = self.generator.scheduler

    def embed(self, texts: list[list[int]] = TEXTS, pooling: Pooling | None = None) -> EmbeddingJob:
        job = self.generator.embedding_job(texts, pooling or Pooling("mean"))
        self.scheduler.submit(job)
        return job

    def answer(self, length: int, count: int) -> Any:
        params = SamplingParams(max_tokens=count, seed=1, temperature=1.0)
        job = self.generator.job(list(range(length)), params)
        self.scheduler.submit(job)
        return job

    def run(self, *jobs: Any) -> None:
        while not all(job.over for job in jobs):
            self.scheduler.step()

    def check_nothing_is_left(self) -> None:
        assert not self.model.sequences
        assert self.scheduler.num_running == self.scheduler.num_waiting == 0
        self.scheduler.forget()
        assert self.model.pages.free_pages() == self.model.pages.num_pages


@pytest.fixture
def bench() -> Any:
    tokenizer = byte_tokenizer()
    return lambda **options: Bench(tokenizer, **options)


def expected(model: FakeModel, text: list[int], pooling: Pooling) -> Any:
    rows = [model._logits(tuple(text[: end + 1]))[: model.hidden_size] for end in range(len(text))]
    states = np.array(rows, np.float64)
    vector = {"cls": states[0], "mean": states.mean(0), "last": states[-1]}[pooling.strategy]
    return vector / np.linalg.norm(vector) if pooling.normalize else vector


def check(model: FakeModel, job: EmbeddingJob) -> None:
    assert len(job.vectors) == len(job.texts)
    for text, vector in zip(job.texts, job.vectors, strict=True):
        assert vector.dtype == np.float32
        np.testing.assert_allclose(vector, expected(model, list(text), job.pooling), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("strategy", ["cls", "mean", "last"])
def test_every_pooling_equals_numpy(bench: Any, strategy: Any, normalize: bool) -> None:
    made = bench()
    job = made.embed(pooling=Pooling(strategy, normalize))
    made.run(job)
    check(made.model, job)
    (event,) = job.events
    assert isinstance(event, Finish)
    assert (event.prompt_tokens, event.completion_tokens) == (sum(LENGTHS), 0)
    made.check_nothing_is_left()


def test_texts_are_computed_together_and_long_ones_in_pieces(bench: Any) -> None:
    model, job = bench().model, EmbeddingJob(TEXTS, Pooling("mean"))
    while job.uncomputed:
        embed(model, job, 128, lambda missing: False)
    assert model.embedded == [[5, 1, 9], [128], [22, 4, 2], [70]]
    check(model, job)


def test_answers_go_on_beside_embeddings_and_are_what_they_are_alone(bench: Any) -> None:
    alone = bench()
    text = alone.answer(7, 30)
    alone.run(text)
    made = bench(prefill_chunk_size=64)
    job, answer = made.embed(TEXTS * 3), made.answer(7, 30)
    while not answer.count:
        made.scheduler.step()
    while not job.over and not answer.over:
        before = answer.count
        made.scheduler.step()
        assert answer.count > before
    made.run(job, answer)
    check(made.model, job)
    assert answer.tokens == text.tokens
    made.check_nothing_is_left()


def test_requests_wait_for_their_turn(bench: Any) -> None:
    made = bench(max_num_sequence=1)
    jobs = [made.embed(TEXTS[:4]), made.answer(9, 3), made.embed(TEXTS[4:])]
    made.run(*jobs)
    check(made.model, jobs[0])
    check(made.model, jobs[2])
    made.check_nothing_is_left()


def test_with_little_room_fewer_texts_are_taken_at_a_time(bench: Any) -> None:
    model = bench(pages=2 * 60 // PAGE).model
    job = EmbeddingJob([[token] * 60 for token in range(7)], Pooling("last"))
    while job.uncomputed:
        embed(model, job, 1000, lambda missing: False)
    assert model.embedded == [[60]] * 5 + [[60, 60]]
    check(model, job)


def test_what_is_only_kept_makes_room(bench: Any) -> None:
    made = bench(pages=-(-max(LENGTHS) // PAGE) + 1)
    made.run(made.answer(40, 8))  # of which pages are kept
    job = made.embed()
    made.run(job)
    check(made.model, job)
    made.check_nothing_is_left()


def test_answers_and_embeddings_share_a_cache_that_is_too_small_for_all(bench: Any) -> None:
    made = bench(pages=60, context_window=200, prefill_chunk_size=64)
    jobs = [made.answer(100, 60), made.embed(TEXTS), made.answer(30, 90), made.embed(TEXTS[::-1], Pooling("last"))]
    made.run(*jobs)
    assert [job.error for job in jobs] == [None] * 4
    check(made.model, jobs[1])
    check(made.model, jobs[3])
    made.check_nothing_is_left()


def test_what_is_cancelled_frees_its_pages_at_once(bench: Any) -> None:
    made = bench(prefill_chunk_size=64)
    job = made.embed([TEXTS[3]])
    made.scheduler.step()
    assert made.model.sequences
    made.scheduler.cancel(job)
    made.check_nothing_is_left()
    assert not job.vectors


def test_a_model_that_fails_ends_the_request_and_no_other(bench: Any) -> None:
    made = bench()
    made.model.fail_after = 3
    job = made.embed()
    made.scheduler.step()
    assert isinstance(job.error, EngineError)
    made.model.fail_after = None
    other = made.embed(TEXTS[:2])
    made.run(other)
    check(made.model, other)
    made.check_nothing_is_left()


def test_numbers_that_are_not_finite_are_an_error(bench: Any) -> None:
    made = bench(logits=lambda tokens: np.full(259, np.nan, np.float32))
    job = made.embed(TEXTS[:1])
    made.scheduler.step()
    assert "not finite" in str(job.error)
    made.check_nothing_is_left()
