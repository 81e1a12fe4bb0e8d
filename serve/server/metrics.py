"""GET /metrics, for Prometheus. https://prometheus.io/docs/instrumenting/exposition_formats/"""

from collections.abc import Iterator
from itertools import accumulate

from fastapi import APIRouter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.histogram import Histogram
from ..metrics import EngineMetrics
from .openapi import ERRORS
from .service import Service, service_of

router = APIRouter()

# What an engine says: its name here, the field of EngineMetrics, and what it means.
_GAUGES = (
    ("mlc_requests_running", "running", "Answers that the model works on."),
    ("mlc_requests_waiting", "waiting", "Answers that wait for their turn."),
    ("mlc_kv_cache_pages_used", "kv_pages_used", "Pages of the KV cache that running answers need."),
    ("mlc_kv_cache_pages_cached", "kv_pages_cached", "Pages kept for texts that begin alike."),
    ("mlc_kv_cache_pages", "kv_pages_total", "Pages of the KV cache."),
)
_COUNTERS = (
    ("mlc_prompt_tokens", "prompt_tokens", "Tokens of prompts."),
    ("mlc_prompt_tokens_cached", "cached_tokens", "Tokens of prompts that were not computed again."),
    ("mlc_generated_tokens", "generated_tokens", "Tokens of answers."),
    ("mlc_preemptions", "preemptions", "Answers that had to make room and were resumed."),
    ("mlc_guessed_tokens", "guessed_tokens", "Tokens that were guessed and checked by the model."),
    ("mlc_guessed_tokens_right", "right_tokens", "Tokens that were guessed and kept."),
)


class EngineCollector(Collector):
    """Asks the engine for its figures when they are asked for."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def collect(self) -> Iterator[Metric]:
        if not self._service.has_engine:
            return
        figures: EngineMetrics = self._service.engine.metrics()
        labels, values = ("model",), (self._service.model_name,)
        for name, field, meaning in _GAUGES:
            gauge = GaugeMetricFamily(name, meaning, labels=labels)
            gauge.add_metric(values, getattr(figures, field))
            yield gauge
        for name, field, meaning in _COUNTERS:
            counter = CounterMetricFamily(name, meaning, labels=labels)
            counter.add_metric(values, getattr(figures, field))
            yield counter
        histogram = HistogramMetricFamily(
            "mlc_queue_time_seconds", "From a request to the begin of computing its answer.", labels=labels
        )
        histogram.add_metric(values, _buckets(figures.queue_seconds), figures.queue_seconds.sum)
        yield histogram


def _buckets(histogram: Histogram) -> list[tuple[str, float]]:
    """Prometheus' buckets: each counts what the ones before it do, too."""
    bounds = [*map(str, histogram.bounds), "+Inf"]
    return list(zip(bounds, accumulate(histogram.counts), strict=True))


@router.get("/metrics", summary="Figures for Prometheus", responses=ERRORS, response_class=Response)
async def metrics(http: Request) -> Response:
    """Counters, gauges and histograms in Prometheus' text format."""
    return Response(generate_latest(service_of(http).histograms.registry), media_type=CONTENT_TYPE_LATEST)
