"""A record of what an engine did when, for chrome://tracing and https://ui.perfetto.dev.

The format: https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU. The engine's steps are one
row, and each answer has a row of its own: queued, the pieces of its prompt, decoding, and how it ended.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, NamedTuple

from .job import Job, Work

MOST_EVENTS = 100_000  # about 30 MB; older ones are dropped

# What a scheduler tells: what happened to which answers, since when (perf_counter), and to how many tokens.
Observer = Callable[[str, Sequence[Work], float, int], None]

_ENGINE, _ANSWERS = 1, 2  # the groups of rows
_STEPS = 1  # the row of the engine's steps


class _Span(NamedTuple):
    what: str
    begin: float
    end: float | None  # None for a moment
    number: int  # of the answer; 0 for a step
    name: str
    tokens: int
    answers: int


class Trace:
    """Collects what a scheduler tells; may be read by any thread."""

    def __init__(self, most_events: int = MOST_EVENTS) -> None:
        self._spans: deque[_Span] = deque(maxlen=most_events)
        self._since: dict[int, float] = {}  # when decoding began, or could, by the number of a running answer
        self._start = perf_counter()
        self._lock = threading.Lock()

    def observe(self, what: str, jobs: Sequence[Work], since: float, tokens: int) -> None:
        """An `Observer`.

        "queued": an answer was begun, or resumed, that waited since then, with so many tokens that were known already.
        "prefill", "decode": a step is done. "preempted": it has to wait again. Anything else is how an answer ended.
        """
        now = perf_counter()
        with self._lock:
            if what == "decode":
                self._spans.append(_Span(what, since, now, 0, "", tokens, len(jobs)))
                return
            (job,) = jobs
            if what in ("queued", "prefill"):
                self._since[job.number] = now
                self._add(what, job, since, now, tokens)
                if what == "prefill":
                    self._spans.append(_Span(what, since, now, 0, "", tokens, 1))
                return
            begun = self._since.pop(job.number, None)
            if begun is not None and isinstance(job, Job) and job.count and job.uncomputed <= 1:
                self._add("decode", job, begun, now, job.count)
            self._add(what, job, now, None, job.count if isinstance(job, Job) else 0)

    def _add(self, what: str, job: Work, begin: float, end: float | None, tokens: int) -> None:
        self._spans.append(_Span(what, begin, end, job.number, job.name, tokens, 1))

    def events(self) -> list[dict[str, Any]]:
        """The record as the events of a Chrome trace, with times in microseconds."""
        with self._lock:
            spans = list(self._spans)
        rows = {span.number: span.name or f"answer {span.number}" for span in spans if span.number}
        names = [
            _name("process_name", _ENGINE, 0, "engine"),
            _name("thread_name", _ENGINE, _STEPS, "steps"),
            _name("process_name", _ANSWERS, 0, "answers"),
            *(_name("thread_name", _ANSWERS, number, name) for number, name in rows.items()),
        ]
        return names + [self._event(span) for span in spans]

    def _event(self, span: _Span) -> dict[str, Any]:
        row = {"pid": _ANSWERS, "tid": span.number} if span.number else {"pid": _ENGINE, "tid": _STEPS}
        counts = {"tokens": span.tokens} if span.number else {"tokens": span.tokens, "answers": span.answers}
        event = {"name": span.what, "cat": "mlc", **row, "ts": self._microseconds(span.begin - self._start)}
        if span.end is None:
            return {**event, "ph": "i", "s": "t", "args": counts}
        return {**event, "ph": "X", "dur": self._microseconds(span.end - span.begin), "args": counts}

    @staticmethod
    def _microseconds(seconds: float) -> float:
        return round(seconds * 1e6, 1)


def _name(kind: str, pid: int, tid: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": pid, "tid": tid, "args": {"name": name}}
