"""/debug, which is there with --enable-debug only; with the whole engine."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import mlc_llm.serve.async_engine as module
from mlc_llm.serve import AsyncMLCEngine

PATHS = ("dump_event_trace", "dump_engine_metrics", "reset_engine", "cuda_profiler_start", "cuda_profiler_stop")


@pytest.mark.parametrize("path", PATHS)
def test_without_the_flag_there_is_no_debugging(path: str, plain: Any) -> None:
    response = plain.client.post(f"/debug/{path}", json={})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "not_found")
    assert f"/debug/{path}" not in plain.client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("path", PATHS)
def test_the_key_and_a_json_body_are_needed(path: str, serve: Callable[..., Any]) -> None:
    server = serve(debug=True, api_key="sk-1")
    assert server.client.post(f"/debug/{path}", json={}, headers={"authorization": ""}).status_code == 401
    if not path.startswith("cuda"):
        assert server.client.post(f"/debug/{path}").status_code == 415
        assert server.client.post(f"/debug/{path}", json={"model": "other"}).status_code == 404
        assert server.client.post(f"/debug/{path}", json={"modle": "tiny"}).status_code == 400


def test_figures_and_limits_as_json(serve: Callable[..., Any]) -> None:
    found = serve(debug=True).client.post("/debug/dump_engine_metrics", json={"model": "tiny"}).json()
    assert (found["generated_tokens"], found["kv_pages_total"]) == (40, 64)
    assert found["queue_seconds"]["sum"] == pytest.approx(400.0201)
    assert found["limits"] == {
        "context_window_size": 256, "kv_cache_tokens": 1024, "kv_cache_dtype": "float16", "max_num_sequence": 4
    }  # fmt: skip


def test_what_cannot_be_is_refused(serve: Callable[..., Any]) -> None:
    client = serve(debug=True).client
    for path, message in (
        ("dump_event_trace", "nothing is traced: start the server with --enable-tracing"),
        ("cuda_profiler_start", "there is no CUDA profiler: this model runs on the processor"),
        ("cuda_profiler_stop", "there is no CUDA profiler: this model runs on the processor"),
    ):
        response = client.post(f"/debug/{path}", json={})
        assert (response.status_code, response.json()["error"]["message"]) == (400, message)


@pytest.fixture
def traced(scripted: Any, running: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A server with the whole engine, whose answers are noise and do not end; its engine, too."""
    other = scripted()
    monkeypatch.setattr(module, "load_model", lambda *_: other._loaded())
    engine = AsyncMLCEngine("dist/tiny", enable_tracing=True)
    with running(engine, debug=True) as server:
        yield server
    engine.terminate()


def test_the_trace_names_answers_by_their_ids(traced: Any) -> None:
    answer = traced.chat("hello", model="dist/tiny", max_tokens=3, ignore_eos=True).json()
    events = traced.client.post("/debug/dump_event_trace", json={}).json()
    (row,) = [event["tid"] for event in events if event["ph"] == "M" and event["args"]["name"] == answer["id"]]
    names = [event["name"] for event in events if event["tid"] == row and event["pid"] == 2 and event["ph"] != "M"]
    assert (names[0], names[-1]) == ("queued", "length")
    assert {"prefill", "decode"} < set(names)


def test_reset_ends_answers_and_forgets(traced: Any) -> None:
    model, go_on = traced.engine.model.generator.model, threading.Event()
    decode = model.decode
    model.decode = lambda *given: go_on.wait(60) and decode(*given)
    with ThreadPoolExecutor(2) as beside:
        answer = beside.submit(traced.chat, "hello", model="dist/tiny", ignore_eos=True)
        while not traced.engine.metrics().running:
            time.sleep(0.001)
        reset = beside.submit(traced.client.post, "/debug/reset_engine", json={})
        while not traced.engine._thread._errands:
            time.sleep(0.001)
        go_on.set()
    assert (reset.result().status_code, reset.result().json()) == (200, None)
    assert (answer.result().status_code, answer.result().json()["error"]["message"]) == (500, "the engine was reset")
    figures = traced.client.post("/debug/dump_engine_metrics", json={}).json()
    assert figures["running"] == figures["waiting"] == figures["generated_tokens"] == figures["kv_pages_cached"] == 0
    assert traced.chat("hello", model="dist/tiny", max_tokens=2, ignore_eos=True).status_code == 200


def test_limits_are_those_that_are_loaded(traced: Any) -> None:
    limits = traced.engine.limits
    assert str(limits) == "context 256 tokens, KV cache 1024 tokens in float16, 4 answers at once"
