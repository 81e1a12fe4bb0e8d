"""GET /metrics, read by Prometheus' own parser, and the log's line of a request."""

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families


def figures(server: Any) -> dict[str, float]:
    """The samples by name and labels."""
    response = server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    families = list(text_string_to_metric_families(response.text))
    assert all(family.documentation and family.type != "unknown" for family in families)
    return {
        " ".join([sample.name, *sample.labels.values()]): sample.value
        for family in families
        for sample in family.samples
    }


def test_the_engine_tells_its_figures(serve: Callable[..., Any]) -> None:
    found = figures(serve())
    assert found["mlc_requests_running tiny"] == 0
    assert found["mlc_requests_waiting tiny"] == 2
    assert found["mlc_kv_cache_pages_used tiny"] == 3
    assert found["mlc_kv_cache_pages_cached tiny"] == 4
    assert found["mlc_kv_cache_pages tiny"] == 64
    assert found["mlc_prompt_tokens_total tiny"] == 100
    assert found["mlc_prompt_tokens_cached_total tiny"] == 60
    assert found["mlc_generated_tokens_total tiny"] == 40
    assert found["mlc_preemptions_total tiny"] == 1
    assert found["mlc_guessed_tokens_total tiny"] == 9
    assert found["mlc_guessed_tokens_right_total tiny"] == 7
    queued = {name.split()[1]: value for name, value in found.items() if name.startswith("mlc_queue_time_seconds_b")}
    assert (queued["0.001"], queued["0.01"], queued["0.025"], queued["300.0"], queued["+Inf"]) == (1, 1, 2, 2, 3)
    assert found["mlc_queue_time_seconds_sum tiny"] == pytest.approx(400.0201)


def test_answers_are_measured(serve: Callable[..., Any]) -> None:
    server = serve()
    server.chat("one two three")
    with server.stream("one two") as response:
        response.read()
    server.chat("<refuse>")
    found = figures(server)
    assert found["mlc_time_to_first_token_seconds_count"] == 2
    assert found["mlc_inter_token_seconds_count"] == 3
    assert found["mlc_request_seconds_count"] == 2
    assert found["mlc_time_to_first_token_seconds_bucket +Inf"] == 2


def test_requests_are_counted_by_route_and_status(serve: Callable[..., Any]) -> None:
    server = serve(api_key="sk-1")
    server.chat()
    server.chat("<refuse>")
    server.client.get("/v1/models/tiny")
    for path in ("/a", "/b"):
        server.client.get(path)
    server.client.get("/v1/models", headers={"authorization": ""})
    found = figures(server)
    assert found["mlc_http_requests_total /v1/chat/completions 200"] == 1
    assert found["mlc_http_requests_total /v1/chat/completions 400"] == 1
    assert found["mlc_http_requests_total /v1/models/{model:path} 200"] == 1
    assert found["mlc_http_requests_total other 404"] == 2
    assert found["mlc_http_requests_total other 401"] == 1


def test_a_server_that_loads_has_figures_of_its_own(serve: Callable[..., Any]) -> None:
    assert "mlc_time_to_first_token_seconds_count" in figures(serve(loaded=False))


def test_the_log_has_a_line_with_what_an_answer_took(
    serve: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    server = serve()
    with caplog.at_level(logging.INFO, logger="mlc_llm.serve.server"):
        server.chat("one secret three")
        server.client.get("/health", headers={"x-request-id": "mine"})
    first, second = [record.getMessage() for record in caplog.records if "server.access" in record.name][:2]
    assert re.fullmatch(
        r"POST /v1/chat/completions 200 [\d.]+ s, 5\+3 tokens, first after [\d.]+ s, [\d.]+ tok/s req-\w+", first
    )
    assert re.fullmatch(r"GET /health 200 [\d.]+ s mine", second)
    assert "secret" not in caplog.text
