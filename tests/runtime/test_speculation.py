"""Guesses come from the text, pay or are not made, and never change an answer."""

import random
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from fake_model import FakeModel

from mlc_llm.runtime.answer_text import AnswerText
from mlc_llm.runtime.job import Job
from mlc_llm.runtime.prompt_lookup import Lookup
from mlc_llm.runtime.sampler import Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.scheduler import Scheduler
from mlc_llm.runtime.speculation import Costs

TOKENIZER = byte_tokenizer()


def test_what_followed_the_last_tokens_before_is_the_guess() -> None:
    lookup = Lookup()
    assert list(lookup.guess([1, 2, 3, 4, 5, 1, 2, 3], 2)) == [4, 5]
    assert list(lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3], 3)) == [9, 1, 2]  # the last time counts
    assert list(lookup.guess([1, 2, 3, 4, 5, 1, 2, 3, 9, 1, 2, 3, 7], 3)) == []
    assert list(Lookup().guess([1, 1], 3)) == []


def test_a_guess_that_comes_true_makes_the_next_more_likely() -> None:
    lookup, text = Lookup(), [1, 2, 3, 4] * 3
    for end in range(4, 12):
        lookup.watch(text[:end])
    assert lookup.chance > 0.6
    before = lookup.chance
    lookup.watch([*text, 1])
    lookup.watch([*text, 1, 9])
    assert lookup.chance < before


def test_long_guesses_pay_where_they_are_cheap_and_right() -> None:
    costs = Costs()
    assert costs.best_length(1.0) == 0  # nothing is known yet
    costs.time(0, 1.0)
    assert costs.best_length(1.0) == 7
    assert costs.best_length(0.05) == 0
    for length in (2, 4, 7):
        costs.time(length, 1.0 + 2 * length)
    assert costs.best_length(1.0) == 0
    for _ in range(30):
        costs.time(2, 1.1)
    assert costs.best_length(0.5) == 2


def repeating(tokens: tuple[int, ...]) -> Any:
    """Logits of a model that mostly goes round in a circle of 8 tokens."""
    logits = FakeModel()._hashed(tokens[-3:])
    logits[tokens[-1] % 8 + 1] += 14
    return logits


def answer(speculates: bool, prompt: list[int], **fields: Any) -> tuple[list[int], FakeModel, Scheduler]:
    model = FakeModel(repeating, context_window=400, pages=fields.pop("pages", 200))
    scheduler = Scheduler(model, model.vocab_size)
    if not speculates:
        scheduler.speculation.guesser = None
    params = SamplingParams(**fields)
    stops = frozenset(params.stop_token_ids)
    sampler = Sampler(params, model.vocab_size, model.sampling, prompt, stops)
    job = Job(
        list(prompt), sampler, stops, AnswerText(TOKENIZER, params.logprobs, params.stop), params.max_tokens or 60
    )
    job.lookup = Lookup() if speculates else None
    costs = scheduler.speculation.costs(1)
    costs.time(0, 1.0)
    costs.time = lambda *_: None  # type: ignore[method-assign]  # every guess pays
    scheduler.submit(job)
    while scheduler.busy:
        scheduler.step()
    assert job.error is None
    assert not model.sequences
    scheduler.forget()
    assert model.pages.free_pages() == model.pages.num_pages
    return job.tokens[len(prompt) :], model, scheduler


@pytest.mark.parametrize("seed", range(12))
def test_answers_are_the_same_with_and_without_guesses(seed: int) -> None:
    chance = random.Random(seed)
    fields: dict[str, Any] = {
        "seed": seed,
        "temperature": chance.choice([0.0, 0.7, 1.0]),
        "max_tokens": chance.randint(1, 80),
        "stop": chance.choice([(), ("\x05\x06",)]),
        "stop_token_ids": chance.choice([(), (100,)]),
        "frequency_penalty": chance.choice([0.0, 0.5]),
        "logprobs": chance.random() < 0.3,
        "min_tokens": chance.choice([0, 1]),
    }
    prompt = [chance.randint(1, 8) for _ in range(chance.randint(1, 40))]
    without, plain, _ = answer(False, prompt, **fields)
    guessed, quick, scheduler = answer(True, prompt, **fields)
    assert guessed == without
    assert scheduler.counters.generated_tokens >= len(guessed)
    if len(guessed) > 40 and not fields["frequency_penalty"]:
        assert quick.passes.count("decode") < plain.passes.count("decode")
        assert scheduler.speculation.right_tokens > 0


def test_a_cache_without_room_for_guesses_does_without() -> None:
    prompt = [1, 2, 3, 4, 5, 6, 7, 8] * 4
    without, _, _ = answer(False, prompt, seed=1, max_tokens=30, temperature=0.0, pages=17)
    guessed, _, _ = answer(True, prompt, seed=1, max_tokens=30, temperature=0.0, pages=17)
    assert guessed == without


def test_an_answer_with_a_seed_is_not_guessed() -> None:
    model = FakeModel()
    for seed, guessed in ((1, False), (None, True)):
        sampler = Sampler(SamplingParams(seed=seed), model.vocab_size, model.sampling)
        job = Job([1], sampler, frozenset(), AnswerText(TOKENIZER, False, ()), 1)
        assert (job.lookup is not None) == guessed
