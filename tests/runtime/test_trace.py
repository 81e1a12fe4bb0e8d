"""What a scheduler did when, as a Chrome trace."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
from byte_tokenizer import byte_tokenizer
from fake_model import FakeModel

from mlc_llm.runtime.answer_text import AnswerText
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.job import Job
from mlc_llm.runtime.sampler import Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.scheduler import Scheduler
from mlc_llm.runtime.trace import Trace

Event = dict[str, Any]


class Traced:
    """A scheduler that is traced."""

    def __init__(self, most_events: int = 1000, **options: Any) -> None:
        self.model = FakeModel(**{"context_window": 512, "pages": 200, **options})
        self.scheduler = Scheduler(self.model, self.model.vocab_size)
        self.trace = Trace(most_events)
        self.scheduler.observer = self.trace.observe

    def submit(self, prompt: Sequence[int], count: int, name: str = "") -> Job:
        sampler = Sampler(SamplingParams(seed=1), self.model.vocab_size, self.model.sampling, list(prompt))
        job = Job(list(prompt), sampler, frozenset(), AnswerText(byte_tokenizer(), False, ()), count)
        job.name = name
        self.scheduler.submit(job)
        return job

    def run(self) -> None:
        while self.scheduler.busy:
            self.scheduler.step()

    def rows(self) -> dict[str, list[Event]]:
        """The events by the name of their row."""
        events = json.loads(json.dumps(self.trace.events()))
        names = {(one["pid"], one["tid"]): one["args"]["name"] for one in events if one["name"] == "thread_name"}
        rows: dict[str, list[Event]] = {name: [] for name in names.values()}
        for event in events:
            if event["ph"] != "M":
                rows[names[event["pid"], event["tid"]]].append(event)
        return rows


def stages(events: list[Event]) -> list[tuple[str, int]]:
    return [(event["name"], event["args"]["tokens"]) for event in events]


def test_an_answer_has_a_row_with_its_stages_and_the_engine_one_with_its_steps() -> None:
    traced = Traced()
    traced.submit(range(1, 101), 5, "chatcmpl-1")
    traced.run()
    rows = traced.rows()
    pieces = [one for one in rows["chatcmpl-1"] if one["name"] == "prefill"]
    assert sum(piece["args"]["tokens"] for piece in pieces) == 100
    assert stages([one for one in rows["chatcmpl-1"] if one not in pieces]) == [
        ("queued", 0), ("decode", 5), ("length", 5)
    ]  # fmt: skip
    steps = Counter(one["name"] for one in rows["steps"])
    assert (steps["prefill"], steps["decode"]) == (len(pieces), 4)


def test_times_follow_one_another_and_end_when_the_next_begins() -> None:
    traced = Traced()
    traced.submit(range(1, 101), 5, "a")
    traced.run()
    spans = traced.rows()["a"]
    ends = [span["ts"] + span.get("dur", 0) for span in spans]
    assert all(begin["ts"] >= end - 0.2 for begin, end in zip(spans[1:], ends[:-1], strict=True))
    assert [span["ph"] for span in spans] == ["X"] * (len(spans) - 1) + ["i"]
    assert all(span["dur"] >= 0 for span in spans if span["ph"] == "X")


def test_a_step_for_several_answers_counts_them() -> None:
    traced = Traced()
    for prompt in ([1, 2, 3], [4, 5, 6]):
        traced.submit(prompt, 6)
    traced.run()
    assert set(traced.rows()) == {"steps", "answer 1", "answer 2"}
    both = [step["args"] for step in traced.rows()["steps"] if step["args"]["answers"] == 2]
    assert both
    assert all(args["tokens"] == 2 for args in both)


def test_what_was_known_is_told_when_the_answer_begins() -> None:
    traced = Traced()
    for _ in range(2):
        traced.submit(range(1, 200), 2)
        traced.run()
    (first, *_), (second, *_) = traced.rows()["answer 1"], traced.rows()["answer 2"]
    assert (first["args"]["tokens"], second["args"]["tokens"] > 0) == (0, True)


def test_preempted_answers_wait_again() -> None:
    traced = Traced(pages=12)
    for prompt in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        traced.submit(prompt, 20)
    traced.run()
    assert traced.scheduler.counters.preemptions
    names = [[event["name"] for event in row] for name, row in traced.rows().items() if name != "steps"]
    preempted = [row for row in names if "preempted" in row]
    assert preempted
    for row in preempted:
        assert row.count("queued") == row.count("preempted") + 1
    assert all(row[-1] == "length" for row in names)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_answers_that_do_not_finish_end_too(end: str) -> None:
    traced = Traced()
    job = traced.submit([1, 2, 3], 100)
    traced.scheduler.step()
    if end == "cancelled":
        traced.scheduler.cancel(job)
    else:
        traced.scheduler.fail_all(EngineError("a test"))
    assert traced.rows()["answer 1"][-1]["name"] == end


def test_the_newest_events_are_kept() -> None:
    traced = Traced(most_events=10)
    traced.submit([1, 2, 3], 100)
    traced.run()
    rows = traced.rows()
    assert sum(map(len, rows.values())) == 10
    assert stages(rows["answer 1"])[-1] == ("length", 100)


def test_waiting_times_are_counted_once_an_answer() -> None:
    traced = Traced(pages=12)
    for prompt in ([1, 2, 3], [4, 5, 6], [7, 8, 9]):
        traced.submit(prompt, 20)
    assert not sum(traced.scheduler.counters.queue_seconds.counts)
    traced.run()
    assert sum(traced.scheduler.counters.queue_seconds.counts) == 3
