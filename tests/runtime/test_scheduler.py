"""Many answers at once: each is the one that it would be alone, whatever happens to the others."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from fake_model import PAGE, FakeModel

from mlc_llm.runtime.answer_text import AnswerText
from mlc_llm.runtime.errors import EngineError, OverloadedError
from mlc_llm.runtime.events import Delta, Finish
from mlc_llm.runtime.job import MOST_UNREAD, Job
from mlc_llm.runtime.sampler import BatchSampler, Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.scheduler import Scheduler


class Bench:
    """A scheduler, and what it takes to ask it."""

    def __init__(self, tokenizer: Any, **options: Any) -> None:
        self.tokenizer = tokenizer
        self.model = FakeModel(**{"context_window": 512, "pages": 200, **options})
        self.scheduler = Scheduler(self.model, self.model.vocab_size)

    def job(self, prompt: list[int], count: int = 8, **sampling: Any) -> Job:
        params = SamplingParams(**{"seed": sum(prompt), **sampling})
        sampler = Sampler(params, self.model.vocab_size, self.model.sampling, prompt)
        return Job(list(prompt), sampler, frozenset(), AnswerText(self.tokenizer, False, params.stop), count)

    def submit(self, *arguments: Any, **options: Any) -> Job:
        job = self.job(*arguments, **options)
        self.scheduler.submit(job)
        return job

    def run(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()

    def alone(self, prompt: list[int], count: int = 8, **sampling: Any) -> list[int]:
        """The answer's tokens when nothing else runs, on a cache that holds everything."""
        other = Bench(self.tokenizer, context_window=2000, pages=2000)
        job = other.submit(prompt, count, **sampling)
        while not job.over:
            job.events.clear()
            other.scheduler.step()
        return answer(job)

    def check_nothing_is_left(self) -> None:
        assert not self.model.sequences
        assert self.scheduler.num_running == self.scheduler.num_waiting == self.scheduler.pages_in_use() == 0
        self.scheduler.forget()
        assert self.model.pages.free_pages() == self.model.pages.num_pages


def answer(job: Job) -> list[int]:
    return job.tokens[job.prompt_tokens :]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return byte_tokenizer()


def test_answers_that_run_together_share_passes(tokenizer: Any) -> None:
    bench = Bench(tokenizer)
    prompts = [[5, 6, 7], [9] * 30, [1]]
    jobs = [bench.submit(prompt) for prompt in prompts]
    bench.run()
    assert [answer(job) for job in jobs] == [bench.alone(prompt) for prompt in prompts]
    assert bench.model.batches.count(3) >= 5
    for job in jobs:
        finish = job.events[-1]
        assert isinstance(finish, Finish)
        assert (finish.reason, finish.completion_tokens, finish.cached_tokens) == ("length", 8, 0)
    bench.check_nothing_is_left()


def test_more_answers_than_sequences_take_turns(tokenizer: Any) -> None:
    bench = Bench(tokenizer, max_num_sequence=2)
    prompts = [[number, 3] for number in range(1, 8)]
    jobs = [bench.submit(prompt) for prompt in prompts]
    bench.scheduler.step()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting) == (2, 5)
    bench.run()
    assert [answer(job) for job in jobs] == [bench.alone(prompt) for prompt in prompts]


def test_a_long_prompt_is_computed_between_the_tokens_of_others(tokenizer: Any) -> None:
    bench = Bench(tokenizer, prefill_chunk_size=128)
    first = bench.submit([1, 2], 100)
    bench.scheduler.step()
    bench.scheduler.prefill.rate = 0  # as slow a machine as can be
    bench.submit([3] * 160, 2)
    bench.model.passes.clear()
    bench.scheduler.step()
    assert bench.model.passes == ["prefill", "decode"]
    assert bench.model.computed[-2] == 64
    bench.run()
    assert answer(first) == bench.alone([1, 2], 100)


def test_a_short_prompt_does_not_wait_for_a_long_one(tokenizer: Any) -> None:
    bench = Bench(tokenizer, prefill_chunk_size=16)
    long, short = bench.submit([3] * 160, 4), bench.submit([7] * 12, 4)
    for _ in range(4):
        bench.scheduler.step()
    assert answer(short)
    assert not answer(long)
    bench.run()
    assert answer(long) == bench.alone([3] * 160, 4)


def test_what_many_prompts_begin_with_is_computed_once(tokenizer: Any) -> None:
    bench = Bench(tokenizer, prefill_chunk_size=16, max_num_sequence=8)
    shared = list(range(1, 81))
    prompts = [[*shared, 100 + number] for number in range(6)]
    greedy: dict[str, Any] = {"seed": None, "temperature": 0.0}
    jobs = [bench.submit(prompt, **greedy) for prompt in prompts]
    bench.run()
    assert [answer(job) for job in jobs] == [bench.alone(prompt, **greedy) for prompt in prompts]
    assert [job.cached_tokens for job in jobs] == [0, 80, 80, 80, 80, 80]
    assert bench.scheduler.counters.cached_tokens == 400


def test_a_prefix_cache_that_is_off_keeps_nothing(tokenizer: Any) -> None:
    bench = Bench(tokenizer, prefill_chunk_size=16, pages=40)
    bench.scheduler.kv_cache.keeps = False
    prompts = [[*range(1, 61), 100 + number] for number in range(5)]
    jobs = [bench.submit(prompt) for prompt in prompts]
    bench.run()
    assert [answer(job) for job in jobs] == [bench.alone(prompt) for prompt in prompts]
    assert [job.cached_tokens for job in jobs] == [0] * 5
    assert bench.model.pages.free_pages() == bench.model.pages.num_pages


def test_an_answer_gives_its_pages_to_an_older_one_and_comes_back(tokenizer: Any) -> None:
    bench = Bench(tokenizer, pages=12)
    prompts = [[1] * 10, [2] * 10, [3] * 10]
    jobs = [bench.submit(prompt, 20) for prompt in prompts]
    bench.run()
    assert bench.scheduler.counters.preemptions > 0
    assert [answer(job) for job in jobs] == [bench.alone(prompt, 20) for prompt in prompts]
    bench.check_nothing_is_left()


def test_an_answer_that_no_cache_can_hold_fails_and_the_others_go_on(tokenizer: Any) -> None:
    bench = Bench(tokenizer, pages=6)
    short, long = bench.submit([1, 2], 4), bench.submit([3] * 15, 30)
    bench.run()
    assert answer(short) == bench.alone([1, 2], 4)
    assert "the cache is full" in str(long.error)
    bench.check_nothing_is_left()


def test_an_answer_that_nobody_reads_stops(tokenizer: Any) -> None:
    bench = Bench(tokenizer, context_window=2000, pages=2000)
    unread, read = bench.submit([1, 2], 600), bench.submit([3, 4], 600)
    for _ in range(1000):
        read.events.clear()
        bench.scheduler.step()
    assert len(unread.events) == MOST_UNREAD
    assert read.over
    assert not bench.scheduler.busy
    while not unread.over:
        unread.events.clear()
        bench.run()
    assert answer(unread) == bench.alone([1, 2], 600)


@pytest.mark.parametrize("lacks", ["sequences", "pages"])
def test_answers_that_wait_for_unread_ones_give_no_work(tokenizer: Any, lacks: str) -> None:
    bench = Bench(tokenizer, context_window=2000, pages=500, max_num_sequence=1 if lacks == "sequences" else 2)
    unread = bench.submit([1, 2], 600)
    bench.run()
    if lacks == "pages":
        bench.model.pages.num_pages = bench.scheduler.pages_in_use() + 2
    waiting = bench.submit([3] * 20)
    assert bench.scheduler.busy
    bench.run()
    assert (bench.scheduler.num_running, bench.scheduler.num_waiting, len(unread.events)) == (1, 1, MOST_UNREAD)
    bench.model.pages.num_pages = 500
    unread.events.popleft()
    assert bench.scheduler.busy
    while not unread.over:
        unread.events.clear()
        bench.run()
    assert answer(unread) == bench.alone([1, 2], 600)
    bench.run()
    assert answer(waiting) == bench.alone([3] * 20)
    bench.check_nothing_is_left()


def test_whoever_waits_for_answers_that_nobody_reads_waits_for_their_ends(tokenizer: Any) -> None:
    bench = Bench(tokenizer, context_window=2000, pages=2000, max_num_sequence=1)
    unread, wanted = bench.submit([1, 2], 600), bench.submit([3, 4])
    bench.scheduler.run_until_event([wanted])
    assert wanted.events
    assert answer(unread) == bench.alone([1, 2], 600)


def test_too_many_waiting_answers_are_refused(tokenizer: Any) -> None:
    bench = Bench(tokenizer)
    bench.scheduler.max_waiting = 2
    jobs = [bench.submit([1]), bench.submit([2])]
    with pytest.raises(OverloadedError, match="2 requests are waiting already"):
        bench.submit([3])
    bench.run()
    assert all(job.over for job in jobs)


def test_a_pass_that_fails_is_the_error_of_its_answers_only(tokenizer: Any) -> None:
    bench = Bench(tokenizer)
    job = bench.submit([1, 2])
    bench.scheduler.step()
    bench.model.fail_after = len(bench.model.passes)
    bench.scheduler.step()
    assert answer(job) == bench.alone([1, 2])[:2]  # of the first step, whose events can still be read
    bench.scheduler.run_until_event([job])
    job.events.clear()
    with pytest.raises(EngineError, match="the model failed"):
        bench.scheduler.run_until_event([job])
    bench.model.fail_after = None
    later = bench.submit([5])
    bench.run()
    assert answer(later) == bench.alone([5])
    bench.check_nothing_is_left()


@pytest.mark.parametrize("where", ["prefill", "decode", "accept"])
def test_an_interrupted_step_is_done_again(tokenizer: Any, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(tokenizer, prefill_chunk_size=16)
    prompts = [[1, 2], [3, 4, 5], [6] * 60]
    jobs = [bench.submit(prompt) for prompt in prompts]
    target = BatchSampler if where == "accept" else bench.model

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    for _ in range(6):
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(target, where, interrupt)
            bench.scheduler.step()
        bench.scheduler.step()
    bench.run()
    assert [answer(job) for job in jobs] == [bench.alone(prompt) for prompt in prompts]
    bench.check_nothing_is_left()


@pytest.mark.parametrize("seed", range(8))
def test_whatever_happens_answers_are_what_they_are_alone(tokenizer: Any, seed: int) -> None:
    """Answers come, are given up and read at random, on a cache that is too small for all of them."""
    chance = random.Random(seed)
    bench = Bench(tokenizer, max_num_sequence=chance.randint(1, 5), pages=chance.randint(30, 60), prefill_chunk_size=16)
    running: list[tuple[Job, list[int], int]] = []
    for _ in range(150):
        if chance.random() < 0.4:
            prompt = [chance.randint(1, 2) for _ in range(chance.randint(1, 60))]
            count = chance.randint(1, 40)
            running.append((bench.submit(prompt, count, temperature=chance.choice([0.0, 1.0])), prompt, count))
        if running and chance.random() < 0.1:
            bench.scheduler.cancel(running.pop(chance.randrange(len(running)))[0])
        bench.scheduler.step()
    bench.run()
    for job, prompt, count in running:
        sampled = {"temperature": 0.0} if job.sampler.cuts.temperature == 0 else {"temperature": 1.0}
        assert job.error is None
        assert answer(job) == bench.alone(prompt, count, **sampled)
        text = "".join(event.text for event in job.events if isinstance(event, Delta))
        assert len(text) <= count * 4
    bench.check_nothing_is_left()


def test_threads_that_wait_for_events_share_the_steps(tokenizer: Any) -> None:
    bench = Bench(tokenizer, max_num_sequence=4)
    prompts = [[number, number + 1] for number in range(1, 9)]
    barrier = threading.Barrier(len(prompts))

    def read(job: Job) -> list[int]:
        while True:
            bench.scheduler.run_until_event([job])
            if isinstance(job.events.popleft(), Finish):
                return answer(job)

    def read_two(prompt: list[int]) -> list[list[int]]:
        """One that all threads have asked for before the first step, and one that comes during the others' steps."""
        first = bench.submit(prompt, 60)
        barrier.wait()
        return [read(first), read(bench.submit(prompt[:1], 30))]

    with ThreadPoolExecutor(len(prompts)) as executor:
        expected = [[bench.alone(prompt, 60), bench.alone(prompt[:1], 30)] for prompt in prompts]
        assert list(executor.map(read_two, prompts)) == expected
    assert max(bench.model.batches) > 1
    bench.check_nothing_is_left()


def test_pages_are_shared_with_the_text_of_an_answer(tokenizer: Any) -> None:
    bench = Bench(tokenizer)
    first = bench.submit([1, 2, 3], 30, seed=None)
    bench.run()
    second = bench.submit([*first.tokens, 4], 2, seed=None)
    bench.run()
    assert second.cached_tokens == (len(first.tokens) - 1) // PAGE * PAGE


def test_with_a_seed_only_what_gives_the_same_bits_is_shared(tokenizer: Any) -> None:
    """Prompts give the same numbers when they are cut at multiples of 64 tokens; decoding gives others."""
    bench = Bench(tokenizer)
    first = bench.submit([*range(1, 151)], 100, seed=1)
    bench.run()
    for seed, cached in ((1, 128), (None, 248)):
        again = bench.submit([*first.tokens, 4], 2, seed=seed)
        bench.run()
        assert again.cached_tokens == cached


def test_with_a_seed_prompts_are_cut_where_it_makes_no_difference(tokenizer: Any) -> None:
    bench = Bench(tokenizer)
    running = bench.submit([1], 400, seed=1)
    bench.scheduler.step()
    bench.scheduler.prefill.rate = 900
    for _ in range(3):
        bench.scheduler.forget()
        bench.model.computed.clear()
        bench.submit([*range(1, 250)], 1, seed=3)
        while bench.scheduler.num_running + bench.scheduler.num_waiting > 1:
            running.events.clear()
            bench.scheduler.step()
        pieces = [count for count in bench.model.computed if count > 1]
        assert sum(pieces) == 249
        assert all(count % 64 == 0 for count in pieces[:-1])
