"""POST /v1/completions, as OpenAI's client sees it."""

import json
from typing import Any

import openai
import pytest
from fake_async_engine import TIMEOUT
from openai.types import Completion


@pytest.fixture
def client(plain: Any, openai_client: Any) -> openai.OpenAI:
    made: openai.OpenAI = openai_client(plain)
    return made


def test_openais_client_gets_a_whole_text(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tiny", prompt="hello world")
    Completion.model_validate(answer.model_dump(), strict=True)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("hello world ", "stop")
    assert answer.usage.total_tokens == 7


def test_openais_client_gets_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.completions.create(model="tiny", prompt="hello world", stream=True))
    assert [chunk.choices[0].text for chunk in chunks] == ["hello ", "world ", ""]
    assert {chunk.id for chunk in chunks} == {"cmpl-1"}


def test_the_usage_comes_last_when_it_is_asked_for(plain: Any) -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    with plain.client.stream("POST", "/v1/completions", json=body) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert [json.loads(event)["usage"] is None for event in events[:-1]] == [True, True, False]
    assert events[-1] == "[DONE]"


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({}, 400, "missing_field", "prompt"),
        ({"prompt": "a", "model": "other"}, 404, "model_not_found", "model"),
        ({"prompt": "a", "suffix": "b"}, 400, "unsupported_value", "suffix"),
        ({"prompt": "a", "messages": []}, 400, "unknown_field", "messages"),
        ({"prompt": "<refuse>"}, 400, "context_length_exceeded", "messages"),
        ({"prompt": "<refuse>", "stream": True}, 400, "context_length_exceeded", "messages"),
        ({"prompt": "<overload>"}, 503, "overloaded", None),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], status: int, code: str, param: str | None, plain: Any) -> None:
    response = plain.client.post("/v1/completions", json=fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)


def test_a_client_that_hangs_up_ends_its_text(plain_server: Any) -> None:
    raw = plain_server.post_raw({"prompt": "hello <wait> world"}, path="/v1/completions")
    assert plain_server.engine.waiting.get(timeout=TIMEOUT)
    raw.close()
    assert plain_server.engine.ended.get(timeout=TIMEOUT) == "aborted"
