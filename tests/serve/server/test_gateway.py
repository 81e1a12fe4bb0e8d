"""The gateway's path, by the contract of its documentation."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

PATH = "/api/v1/compatibility/openai/v1/chat/completions"
HI = {"messages": [{"role": "user", "content": "Hello!"}]}


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[Any]:
    with running(gateway=True) as server:
        yield server


def with_part(kind: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": kind, kind: {}}]}]


def post(server: Any, **fields: Any) -> Any:
    return server.client.post(PATH, json={**HI, **fields})


def test_the_examples_of_its_documentation_are_answered(server: Any) -> None:
    messages = [{"content": "You are a helpful assistant.", "role": "system"}, {"content": "Hello!", "role": "user"}]
    answer = post(server, messages=messages, model="tiny").json()
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"]["content"] == "Hello! "
    assert set(answer["usage"]) >= {"completion_tokens", "prompt_tokens", "total_tokens"}


def test_the_temperature_is_0_unless_it_is_given(server: Any) -> None:
    post(server)
    assert server.engine.requests[-1].temperature == 0
    post(server, temperature=2, n=3, stop=["a"], max_tokens=1, seed=4)
    request = server.engine.requests[-1]
    assert (request.temperature, request.n, request.stop, request.max_tokens, request.seed) == (2, 3, ["a"], 1, 4)


def test_a_stream_ends_with_the_usage_when_it_is_asked_for(server: Any) -> None:
    with server.client.stream(
        "POST", PATH, json={**HI, "stream": True, "stream_options": {"include_usage": True}}
    ) as got:
        *_, usage, end = [line for line in got.iter_lines() if line]
    assert json.loads(usage.removeprefix("data: "))["usage"]["total_tokens"] == 6
    assert end == "data: [DONE]"


def test_messages_keep_what_they_have(server: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "1", "tool_call_id": "1"},
        {"role": "user", "content": "go on"},
    ]
    post(server, messages=messages)
    assert server.engine.requests[-1].messages == messages


@pytest.mark.parametrize(
    ("fields", "loc", "word"),
    [
        ({"messages": []}, ["messages"], "at least 1 item"),
        ({"messages": None}, ["messages"], "valid list"),
        ({"temperature": -0.1}, ["temperature"], "greater than or equal to 0"),
        ({"temperature": 2.1}, ["temperature"], "less than or equal to 2"),
        ({"n": 0}, ["n"], "greater than or equal to 1"),
        ({"max_tokens": 0}, ["max_tokens"], "greater than or equal to 1"),
        ({"stop": []}, ["stop"], "at least 1 item"),
        ({"stop": "a"}, ["stop"], "valid list"),
        ({"top_q": 1}, ["top_q"], "not permitted"),
        ({"messages": with_part("image_url")}, ["messages", 0, "content"], "image parts"),
        ({"messages": with_part("input_audio")}, ["messages", 0, "content"], "audio parts"),
        ({"messages": [{"content": "a"}]}, ["messages", 0, "role"], "required"),
        ({"tools": [{"type": "function", "function": {}}]}, ["tools", 0, "function", "function", "name"], "required"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_422_with_its_place(fields: dict[str, Any], loc: list[Any], word: str, server: Any) -> None:
    response = post(server, **fields)
    assert response.status_code == 422
    first = response.json()["detail"][0]
    assert set(first) == {"loc", "msg", "type"}
    assert first["loc"] == ["body", *loc]
    assert word in first["msg"]


def test_all_that_is_wrong_is_listed(server: Any) -> None:
    detail = post(server, temperature=3, n=0, max_tokens=0).json()["detail"]
    assert [problem["loc"][1] for problem in detail] == ["temperature", "n", "max_tokens"]


@pytest.mark.parametrize("stream", [False, True])
def test_what_the_engine_refuses_is_a_422_too(stream: bool, server: Any) -> None:
    response = post(server, messages=[{"role": "user", "content": "<refuse>"}], stream=stream)
    assert response.status_code == 422
    assert response.json()["detail"] == [
        {
            "loc": ["body", "messages"],
            "msg": "the prompt has 9 tokens, the context 8",
            "type": "context_length_exceeded",
        }
    ]


def test_another_model_is_a_404(server: Any) -> None:
    response = post(server, model="other")
    assert response.status_code == 404
    assert "other" in response.json()["detail"]


def test_no_json_is_a_422_and_another_type_a_415(server: Any) -> None:
    assert server.client.post(PATH, content=b"{", headers={"content-type": "application/json"}).status_code == 422
    assert server.client.post(PATH, content=b"{}").status_code == 415


def test_a_model_that_is_loaded_yet_is_a_400(serve: Callable[..., Any]) -> None:
    response = serve(gateway=True, loaded=False).client.post(PATH, json=HI)
    assert response.status_code == 400
    assert "being loaded" in response.json()["detail"]


def test_the_path_is_there_only_when_it_is_asked_for(plain: Any, server: Any) -> None:
    assert plain.client.post(PATH, json=HI).status_code == 404
    assert PATH not in plain.client.get("/openapi.json").json()["paths"]
    assert "422" in server.client.get("/openapi.json").json()["paths"][PATH]["post"]["responses"]


def test_the_key_covers_it(serve: Callable[..., Any]) -> None:
    server = serve(gateway=True, api_key="sk-1")
    assert post(server).status_code == 200
    assert server.client.post(PATH, json=HI, headers={"authorization": "x"}).status_code == 401
