"""What an answer took: for the log's line and the histograms of /metrics."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import Request

from ..protocol import Usage

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Histograms:
    """What is measured of requests and answers; `registry` has all of it."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mlc_http_requests", "Requests by path and status.", ("path", "status"), registry=self.registry
        )
        self.first_token = self._seconds("mlc_time_to_first_token", "From a request to the first token of its answer.")
        self.between_tokens = self._seconds("mlc_inter_token", "Between the pieces of an answer.")
        self.end_to_end = self._seconds("mlc_request", "From a request to the end of its whole answer.")

    def _seconds(self, name: str, meaning: str) -> Histogram:
        return Histogram(f"{name}_seconds", meaning, buckets=_SECONDS, registry=self.registry)


class Watch:
    """Follows one answer from the arrival of its request."""

    def __init__(self, histograms: Histograms) -> None:
        self._histograms = histograms
        self.begun = time.monotonic()
        self.first: float | None = None
        self.last: float | None = None
        self.usage: Usage | None = None

    def saw(self, chunk: Any) -> None:
        """A chunk of the answer came: with a piece of it, with its end, or with the usage."""
        now = time.monotonic()
        if chunk.usage is not None:
            self.usage = chunk.usage
            self._histograms.end_to_end.observe(now - self.begun)
            return
        if not any(map(_is_piece, chunk.choices)):
            return
        if self.first is None or self.last is None:
            self.first = now
            self._histograms.first_token.observe(now - self.begun)
        else:
            self._histograms.between_tokens.observe(now - self.last)
        self.last = now

    def __str__(self) -> str:
        """For the log: "12+40 tokens, first after 0.085 s, 31.2 tok/s"; what is not known yet is left out."""
        parts = []
        if self.usage is not None:
            parts.append(f"{self.usage.prompt_tokens}+{self.usage.completion_tokens} tokens")
        if self.first is not None and self.last is not None:
            parts.append(f"first after {self.first - self.begun:.3f} s")
            if self.usage is not None and self.last > self.first:
                rate = (self.usage.completion_tokens - 1) / (self.last - self.first)
                parts.append(f"{rate:.1f} tok/s")
        return ", ".join(parts)


def _is_piece(choice: Any) -> bool:
    """Whether there is something of the answer in it; a chunk may also only begin or end one."""
    delta = getattr(choice, "delta", None)
    return choice.finish_reason is None and (delta is None or delta.role is None)


def watch_of(http: Request) -> Watch:
    """The watch of the answer to this request."""
    watch = http.state.watch
    assert isinstance(watch, Watch)
    return watch
