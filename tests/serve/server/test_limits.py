"""What one request may ask for."""

from collections.abc import Iterator
from typing import Any

import pytest

from mlc_llm.serve.server.limits import RequestLimits

CHAT, TEXT, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"


LIMITS = RequestLimits(
    max_choices=4, max_output_tokens=10, max_messages=2, max_stop=2, max_logprobs=3, max_grammar_bytes=100
)
REGEX = {"type": "regex", "regex": "a" * 73}  # 100 bytes of JSON
TOOL = {"type": "function", "function": {"name": "b" * 40, "parameters": {}}}  # with its list 100 bytes too


@pytest.fixture(scope="module")
def server(running: Any) -> Iterator[Any]:
    with running(limits=LIMITS) as server:
        yield server


def chat(count: int = 1, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "a"}] * count, **fields}


@pytest.mark.parametrize(
    ("path", "body", "param", "value"),
    [
        (CHAT, chat(n=5), "n", 5),
        (CHAT, chat(3), "messages", 3),
        (CHAT, chat(max_tokens=11), "max_tokens", 11),
        (CHAT, chat(max_completion_tokens=11), "max_completion_tokens", 11),
        (TEXT, {"prompt": ["a", "b"], "n": 3}, "prompt", 6),
        (TEXT, {"prompt": "a", "n": 5}, "n", 5),
        (TEXT, {"prompt": "a", "max_tokens": 11}, "max_tokens", 11),
        (CHAT, chat(stop=["a", "b", "c"]), "stop", 3),
        (TEXT, {"prompt": "a", "stop": ["a", "b", "c"]}, "stop", 3),
        (CHAT, chat(logprobs=True, top_logprobs=4), "top_logprobs", 4),
        (TEXT, {"prompt": "a", "logprobs": 4}, "logprobs", 4),
        (CHAT, chat(response_format={**REGEX, "regex": "a" * 74}), "response_format", 101),
        (CHAT, chat(tools=[TOOL, TOOL]), "tools", 199),
        (RESPONSES, {"input": chat(3)["messages"]}, "input", 3),
        (RESPONSES, {"input": "a", "max_output_tokens": 11}, "max_output_tokens", 11),
        (RESPONSES, {"input": "a", "stop": ["a", "b", "c"]}, "stop", 3),
        (RESPONSES, {"input": "a", "include": ["message.output_text.logprobs"], "top_logprobs": 4}, "top_logprobs", 4),
        (RESPONSES, {"input": "a", "text": {"format": {**REGEX, "regex": "a" * 74}}}, "text", 129),
    ],
)
def test_more_is_a_400_with_both_numbers(path: str, body: dict[str, Any], param: str, value: int, server: Any) -> None:
    response = server.client.post(path, json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "invalid_value", param)
    assert f" {value} " in error["message"]
    assert "at most" in error["message"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, chat(2, n=4, max_tokens=10)),
        (CHAT, chat(max_completion_tokens=10)),
        (CHAT, chat(stop=["a", "b"], logprobs=True, top_logprobs=3, response_format=REGEX)),
        (CHAT, chat(tools=[TOOL])),
        (TEXT, {"prompt": ["a", "b"], "n": 2, "max_tokens": 10}),
    ],
)
def test_what_is_within_is_answered(path: str, body: dict[str, Any], server: Any) -> None:
    assert server.client.post(path, json=body).status_code == 200


def test_an_answer_without_a_limit_gets_the_servers(server: Any) -> None:
    server.client.post(CHAT, json=chat())
    assert server.engine.requests[-1].max_tokens == 10
    server.client.post(TEXT, json={"prompt": "a"})
    assert server.engine.requests[-1].max_tokens == 10
    server.client.post(CHAT, json=chat(max_completion_tokens=5))
    assert server.engine.requests[-1].max_tokens is None
