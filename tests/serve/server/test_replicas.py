"""Several servers behind one address: requests as values, what they have in common, and figures of all in one text."""

import asyncio
import pickle
from contextlib import aclosing
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from pydantic_core import to_json
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from mlc_llm.serve.server.replicas import Forwarded, merged_metrics, messages, prefix_key


def forwarded(body: bytes = b"", method: str = "POST", path: str = "/echo", **scope: Any) -> Forwarded:
    headers = [(b"content-type", b"application/json"), (b"x-request-id", b"one")]
    whole = {
        "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"a=1", "root_path": "", "client": ("127.0.0.1", 5), "server": None,
        "headers": headers, "state": {"of": asyncio}, "app": object(), **scope,
    }  # fmt: skip
    return Forwarded.of(whole, body)


async def collect(app: Any, request: Forwarded) -> list[Message]:
    return [message async for message in messages(app, request)]


async def echo(http: Request) -> JSONResponse:
    said = {"id": http.headers["x-request-id"], "query": dict(http.query_params), "body": (await http.body()).decode()}
    return JSONResponse(said, 201)


def test_a_request_reaches_the_app_of_another_process_as_it_was() -> None:
    sent = pickle.loads(pickle.dumps(forwarded(b"hello")))
    start, body = asyncio.run(collect(Starlette(routes=[Route("/echo", echo, methods=["POST"])]), sent))[:2]
    assert start["status"] == 201
    assert body["body"] == b'{"id":"one","query":{"a":"1"},"body":"hello"}'


def test_the_path_is_the_one_below_the_prefix_of_the_app() -> None:
    assert forwarded(path="/llm/metrics", root_path="/llm").path == "/metrics"
    assert forwarded(path="/metrics").path == "/metrics"


def test_messages_come_while_the_app_makes_them_and_closing_ends_it() -> None:
    ended: list[str] = []

    async def endless(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            assert (await receive())["body"] == b"x"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await receive()  # as an answer does that watches for its client to hang up
        finally:
            await asyncio.sleep(0)
            ended.append("ended")

    async def hang_up() -> None:
        async with aclosing(messages(endless, forwarded(b"x"))) as sent:
            assert (await anext(sent))["status"] == 200
            assert not ended
        assert ended == ["ended"]

    asyncio.run(hang_up())


def test_what_the_app_raises_is_raised_after_what_it_sent() -> None:
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise KeyError("a bug")

    seen: list[Message] = []

    async def read() -> None:
        async for message in messages(broken, forwarded()):
            seen.append(message)

    with pytest.raises(KeyError, match="a bug"):
        asyncio.run(read())
    assert len(seen) == 1


SYSTEM = {"role": "system", "content": "You answer briefly. " * 20}
ASKED = {"role": "user", "content": "Why?"}


def key(characters: int = 256, **fields: Any) -> str | None:
    return prefix_key(to_json(fields), characters)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [SYSTEM, ASKED]}, {"messages": [SYSTEM, {"role": "user", "content": "How?"}], "n": 2}),
        (
            {"messages": [ASKED]},
            {"messages": [ASKED, {"role": "assistant", "content": "So."}, {"role": "user", "content": "And?"}]},
        ),
        ({"prompt": "a" * 300}, {"prompt": "a" * 400}),
        ({"input": "Why?", "instructions": "b" * 300}, {"input": "How?", "instructions": "b" * 300}),
        ({"input": [ASKED]}, {"input": [ASKED, {"role": "assistant", "content": "So."}]}),
        ({"messages": [ASKED], "prompt_cache_key": "mine"}, {"prompt": "else", "prompt_cache_key": "mine"}),
    ],
    ids=["system prompt", "turns", "prompt", "instructions", "input", "prompt_cache_key"],
)
def test_requests_that_begin_alike_have_one_key(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) == key(**other) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"messages": [ASKED]}, {"messages": [{"role": "user", "content": "How?"}]}),
        ({"messages": [ASKED]}, {"messages": [SYSTEM, ASKED]}),
        ({"messages": [ASKED]}, {"messages": [{"role": "user", "content": "Why? And how?"}]}),
        ({"prompt": [1, 2, 3]}, {"prompt": [1, 2, 4]}),
        ({"prompt": "a", "prompt_cache_key": "mine"}, {"prompt": "a", "prompt_cache_key": "yours"}),
    ],
)
def test_requests_that_begin_otherwise_have_other_keys(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert key(**one) != key(**other)


def test_more_characters_tell_more_requests_apart() -> None:
    other = {"role": "user", "content": "How?"}
    assert key(1000, messages=[SYSTEM, ASKED]) != key(1000, messages=[SYSTEM, other])


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b"\xff", b"{}", b'{"messages": []}', b'{"prompt": null}'])
def test_what_has_no_text_has_no_key(body: bytes) -> None:
    assert prefix_key(body, 256) is None


@pytest.mark.parametrize("message", [{"role": "user"}, {"content": 5}, {"content": [{"type": "text", "text": "a"}]}, 7])
def test_any_message_has_a_key(message: object) -> None:
    assert key(messages=[message])  # what is wrong with it the app will say


def test_figures_of_all_replicas_are_one_text_with_their_names() -> None:
    texts = {}
    for name, count in (("a", 1), ("b", 2)):
        registry = CollectorRegistry()
        Counter("asked", "Requests.", ("path",), registry=registry).labels("/v1").inc(count)
        Histogram("took", "Seconds.", buckets=(1, 2), registry=registry).observe(count)
        texts[name] = generate_latest(registry).decode()
    merged = merged_metrics(texts).decode()
    assert merged.count("# TYPE asked_total counter") == 1
    families = {family.name: family for family in text_string_to_metric_families(merged)}
    asked = {tuple(sample.labels.items()): sample.value for sample in families["asked"].samples}
    assert asked == {(("path", "/v1"), ("replica", "a")): 1, (("path", "/v1"), ("replica", "b")): 2}
    sums = {sample.labels["replica"]: sample.value for sample in families["took"].samples if sample.name == "took_sum"}
    assert sums == {"a": 1, "b": 2}
