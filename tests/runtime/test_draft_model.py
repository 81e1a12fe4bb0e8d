"""Guesses of a draft model: whatever it says, answers are those of the large model alone."""

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from byte_tokenizer import byte_tokenizer
from fake_model import FakeModel
from numpy_sampling import NumpySampling, sample

from mlc_llm.runtime.answer_text import AnswerText
from mlc_llm.runtime.distribution import distribution, drawn
from mlc_llm.runtime.draft_model import DraftModel
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.guess import Guess, chosen_tokens
from mlc_llm.runtime.job import Job
from mlc_llm.runtime.sampler import Sampled, Sampler
from mlc_llm.runtime.sampling_kernels import Cuts
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.scheduler import Scheduler

Floats = npt.NDArray[Any]
TOKENIZER = byte_tokenizer()
CUTS = [
    {},
    {"temperature": 0.5},
    {"top_k": 3},
    {"top_p": 0.75},
    {"min_p": 0.2, "temperature": 1.5},
    {"temperature": 0.8, "top_k": 4, "top_p": 0.9, "min_p": 0.05},
]


def softmax(logits: Floats) -> Floats:
    weights = np.exp(np.asarray(logits, np.float64))
    return np.asarray(weights / weights.sum())


@pytest.mark.parametrize("fields", CUTS)
@pytest.mark.parametrize("seed", range(4))
def test_the_distribution_is_that_of_the_kernels(fields: dict[str, Any], seed: int) -> None:
    logits = np.random.default_rng(seed).standard_normal(9).astype(np.float32) * 2
    logits[4] = logits[7]  # equals rank by token
    cuts = Cuts(**{"temperature": 1.0, **fields})
    draws = [sample(logits, cuts, (step + 0.5) / 2000) for step in range(2000)]
    found = distribution(logits, cuts)
    np.testing.assert_allclose(found, np.bincount(draws, minlength=9) / 2000, atol=1.01e-3)
    again = [drawn(found, (step + 0.5) / 2000) for step in range(2000)]
    assert sum(one != other for one, other in zip(again, draws, strict=True)) < 9  # at the borders of shares


@pytest.mark.parametrize("fields", [*CUTS, {"logit_bias": {0: 1.5, 3: -100}}, {"temperature": 0.0}])
def test_guesses_leave_the_distribution_as_it_is(fields: dict[str, Any]) -> None:
    """Frequencies of pairs of tokens against their probabilities, with drafts that differ much from the model."""
    generator = np.random.default_rng(1)
    first, second, draft = generator.standard_normal((3, 5)).astype(np.float32) * 1.5
    params, count = SamplingParams(seed=1, **fields), 6000
    sampler = Sampler(params, 5, NumpySampling())
    job: Any = SimpleNamespace(sampler=sampler, stops=frozenset())
    rows, found = [first, second, second], np.zeros((5, 5))
    for _ in range(count):
        guess = Guess()
        for _ in range(2):
            q = distribution(draft, sampler.cuts) if sampler.cuts.temperature else np.eye(5)[draft.argmax()]
            guess.tokens.append(drawn(q, sampler.spend()))
            guess.probabilities += [q] if sampler.cuts.temperature else []
        tokens: list[Any] = chosen_tokens(job, rows, guess)
        while len(tokens) < 2:  # the pass after a wrong guess
            tokens += chosen_tokens(job, [second], Guess())
        found[tokens[0].token, tokens[1].token] += 1 / count
    if sampler.cuts.temperature:
        p, q = (distribution(np.asarray(sampler.adjusted(row)), sampler.cuts) for row in (first, second))
    else:
        p, q = np.eye(5)[first.argmax()], np.eye(5)[second.argmax()]
    expected = np.outer(p, q)
    assert np.all(np.abs(found - expected) <= 4 * np.sqrt(expected * (1 - expected) / count) + 1e-12)


def test_a_guess_that_the_model_would_make_itself_always_stays() -> None:
    logits = np.random.default_rng(3).standard_normal(50).astype(np.float32)
    sampler = Sampler(SamplingParams(seed=2), 50, NumpySampling())
    q = distribution(logits, sampler.cuts)
    job: Any = SimpleNamespace(sampler=sampler, stops=frozenset())
    for token in range(50):
        tokens = chosen_tokens(job, [logits] * 2, Guess([token], [q]))
        assert len(tokens) == 2
        assert isinstance(tokens[0], Sampled)
        assert tokens[0].token == token


def test_logits_that_are_not_finite_are_an_error() -> None:
    sampler = Sampler(SamplingParams(seed=2), 4, NumpySampling())
    job: Any = SimpleNamespace(sampler=sampler, stops=frozenset())
    (error,) = chosen_tokens(job, [np.full(4, np.nan, np.float32)] * 2, Guess([1], [np.full(4, 0.25)]))
    assert isinstance(error, EngineError)


def similar(tokens: tuple[int, ...]) -> Any:
    """Logits of a model that mostly says what `FakeModel` says."""
    return FakeModel()._hashed(tokens) + np.random.default_rng([*tokens, 1]).standard_normal(259).astype(np.float32)


class Bench:
    """A scheduler whose answers are guessed by a draft model, all of them and always."""

    def __init__(self, draft: FakeModel | None, **options: Any) -> None:
        self.model = FakeModel(**{"context_window": 512, "pages": 300, **options})
        self.scheduler = Scheduler(self.model, self.model.vocab_size)
        self.draft = draft
        self.speculation = self.scheduler.speculation
        self.speculation.guesser = None if draft is None else DraftModel(draft, self.model.vocab_size)
        self.speculation.length = 3

    def submit(self, prompt: list[int], count: int, **fields: Any) -> Job:
        params = SamplingParams(**{"temperature": 0.0, **fields})
        stops = frozenset(params.stop_token_ids)
        sampler = Sampler(params, self.model.vocab_size, self.model.sampling, prompt, stops)
        job = Job(list(prompt), sampler, stops, AnswerText(TOKENIZER, params.logprobs, params.stop), count)
        self.scheduler.submit(job)
        return job

    def run(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()
        assert not self.model.sequences
        if self.draft is not None:
            assert not self.draft.sequences
            self.scheduler.forget()
            assert self.draft.pages.free_pages() == self.draft.pages.num_pages


def alone(prompt: list[int], count: int, **fields: Any) -> list[int]:
    bench = Bench(None)
    job = bench.submit(prompt, count, **fields)
    bench.run()
    return job.tokens[len(prompt) :]


def test_a_draft_that_is_the_model_itself_is_always_right() -> None:
    bench = Bench(FakeModel(context_window=512, pages=300))
    prompts = [[1, 2, 3], [4] * 40, [5]]
    jobs = [bench.submit(prompt, 41) for prompt in prompts]
    bench.run()
    assert [job.tokens[job.prompt_tokens :] for job in jobs] == [alone(prompt, 41) for prompt in prompts]
    assert bench.speculation.right_tokens == bench.speculation.guessed_tokens > 80
    assert bench.model.passes.count("decode") < 12


@pytest.mark.parametrize("seed", range(6))
def test_answers_that_a_draft_guesses_are_those_of_the_model(seed: int) -> None:
    """Several at once, which come and are given up at random, with caches that are too small for all of them."""
    chance = random.Random(seed)
    draft = FakeModel(similar, context_window=chance.choice([60, 512]), pages=chance.choice([20, 300]),
                      max_num_sequence=chance.randint(1, 4))  # fmt: skip
    bench = Bench(draft, pages=chance.choice([50, 300]), prefill_chunk_size=64)
    running = []
    for _ in range(60):
        if chance.random() < 0.3:
            prompt = [chance.randint(1, 2) for _ in range(chance.randint(1, 50))]
            fields: dict[str, Any] = {"stop_token_ids": chance.choice([(), (7, 8, 9)])}
            count = chance.randint(1, 30)
            running.append((bench.submit(prompt, count, **fields), prompt, count, fields))
        if running and chance.random() < 0.1:
            bench.scheduler.cancel(running.pop()[0])
        bench.scheduler.step()
    bench.run()
    for job, prompt, count, fields in running:
        assert job.error is None
        assert job.tokens[len(prompt) :] == alone(prompt, count, **fields)
    assert seed or bench.speculation.guessed_tokens > bench.speculation.right_tokens > 0


def test_sampled_answers_are_guessed_and_seeded_ones_are_not() -> None:
    for fields, guessed in (({"temperature": 1.0}, True), ({"temperature": 1.0, "seed": 1}, False)):
        bench = Bench(FakeModel(similar, context_window=512, pages=300))
        job = bench.submit([1, 2], 40, **fields)
        bench.run()
        assert len(job.tokens) == 42
        assert (bench.speculation.guessed_tokens > 0) == guessed


def test_a_turn_that_follows_is_not_read_again_by_the_draft() -> None:
    draft = FakeModel(context_window=512, pages=300)
    bench = Bench(draft)
    first = bench.submit([3] * 100, 8)
    while bench.scheduler.busy:
        bench.scheduler.step()
    draft.computed.clear()
    bench.submit([*first.tokens, 5], 8)
    bench.run()
    assert sum(draft.computed) < 30


def test_a_draft_that_fails_is_the_error_of_the_answers_that_it_was_for() -> None:
    draft = FakeModel(context_window=512, pages=300)
    bench = Bench(draft)
    job = bench.submit([1, 2], 40)
    bench.scheduler.step()
    draft.fail_after = len(draft.passes)
    bench.run()
    assert str(job.error) == "the model failed"
    draft.fail_after = None
    again = bench.submit([1, 2], 10)
    bench.run()
    assert again.tokens[2:] == alone([1, 2], 10)


def test_an_interrupted_guess_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    draft = FakeModel(context_window=512, pages=300)
    bench = Bench(draft)
    job = bench.submit([1, 2], 30)
    for name in ("decode", "verify", "prefill") * 3:
        with monkeypatch.context() as patch:
            patch.setattr(draft, name, interrupted)
            try:
                bench.scheduler.step()
            except KeyboardInterrupt:
                continue
    bench.run()
    assert job.tokens[2:] == alone([1, 2], 30)


def interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_a_draft_that_never_pays_is_seldom_asked() -> None:
    bench = Bench(FakeModel(lambda tokens: np.eye(259, dtype=np.float32)[0], context_window=512, pages=300))
    bench.speculation.length = 0
    costs = bench.speculation.costs(1)
    costs.time(0, 1.0)
    costs.time = lambda *_: None  # type: ignore[method-assign]
    job = bench.submit([1, 2], 300)
    while bench.scheduler.busy:
        job.events.clear()
        bench.scheduler.step()
    assert 0 < bench.speculation.guessed_tokens < 60
