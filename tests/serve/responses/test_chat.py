"""A request for a response as a chat completion request, and errors on the way back."""

from typing import Any

import pytest

from mlc_llm.runtime.errors import RequestError
from mlc_llm.serve.responses.chat import chat_request, renamed
from mlc_llm.serve.responses.request import ResponsesRequest

CALL = {"type": "function_call", "call_id": "c1", "name": "f", "arguments": '{"a": 1}'}
OUTPUT = {"type": "function_call_output", "call_id": "c1", "output": "12"}
THOUGHT = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
CHAT_CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def chat(items: Any, **fields: Any) -> Any:
    return chat_request(ResponsesRequest.parse({"input": items, **fields}))[0]


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("Hi", [user("Hi")]),
        ([{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, user("c")],
         [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, user("c")]),
        ([{"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}],
         [user("ab")]),
        ([user("a"), assistant("b"), user("c")], [user("a"), assistant("b"), user("c")]),
        ([user("a"), assistant("b"), assistant("c"), user("d")], [user("a"), assistant("b\nc"), user("d")]),
        ([user("a"), THOUGHT, assistant("b"), CALL, OUTPUT],
         [user("a"), {"role": "assistant", "content": "b", "reasoning_content": "hm", "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "c1", "content": "12"}]),
        ([user("a"), CALL, OUTPUT, {**CALL, "call_id": "c2"}, {**OUTPUT, "call_id": "c2"}],
         [user("a"), {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL]},
          {"role": "tool", "tool_call_id": "c1", "content": "12"},
          {"role": "assistant", "content": None, "tool_calls": [{**CHAT_CALL, "id": "c2"}]},
          {"role": "tool", "tool_call_id": "c2", "content": "12"}]),
        ([user("a"), CALL, {**CALL, "call_id": "c2"}, OUTPUT, {**OUTPUT, "call_id": "c2"}],
         [user("a"), {"role": "assistant", "content": None, "tool_calls": [CHAT_CALL, {**CHAT_CALL, "id": "c2"}]},
          {"role": "tool", "tool_call_id": "c1", "content": "12"},
          {"role": "tool", "tool_call_id": "c2", "content": "12"}]),
        ([user("a"), {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}]}, user("b")],
         [user("a"), {"role": "assistant", "content": "", "reasoning_content": "s"}, user("b")]),
    ],
)  # fmt: skip
def test_items_become_messages(items: Any, messages: list[dict[str, Any]]) -> None:
    assert chat(items).messages == messages


def test_instructions_come_first() -> None:
    assert chat("a", instructions="b").messages == [{"role": "system", "content": "b"}, user("a")]


def test_fields_have_other_names_in_a_chat_completion() -> None:
    tool = {"type": "function", "name": "f", "description": None, "parameters": {"type": "object"}, "strict": True}
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    request = chat(
        "a", tools=[tool], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False,
        text={"format": schema}, max_output_tokens=7, include=["message.output_text.logprobs"], top_logprobs=2,
        temperature=0.5, seed=1, stop=["x"], stream=True, logit_bias={"5": 1.0},
    )  # fmt: skip
    assert request.tools == [
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": True}}
    ]
    assert request.tool_choice == {"type": "function", "function": {"name": "f"}}
    assert request.response_format == {
        "type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}, "strict": True},
    }  # fmt: skip
    assert (request.parallel_tool_calls, request.max_completion_tokens, request.max_tokens) == (False, 7, None)
    assert (request.logprobs, request.top_logprobs, request.temperature, request.seed) == (True, 2, 0.5, 1)
    assert (request.stop, request.stream, request.logit_bias) == (["x"], True, {5: 1.0})
    assert request.request_id is not None
    assert request.request_id.startswith("resp_")


def test_only_allowed_tools_are_shown() -> None:
    tools = [{"type": "function", "name": name} for name in ("f", "g", "h")]
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [tools[2], tools[0]]}
    request = chat("a", tools=tools, tool_choice=allowed)
    assert [tool["function"]["name"] for tool in request.tools] == ["f", "h"]
    assert request.tool_choice == "required"
    with pytest.raises(RequestError) as error:
        chat("a", tools=tools[:1], tool_choice=allowed)
    assert error.value.param == "tool_choice.tools[0].name"


@pytest.mark.parametrize(
    ("param", "named"),
    [
        ("messages", "input"),
        ("messages[0].content", "instructions"),
        ("messages[1].content", "input[0].content"),
        ("messages[2].tool_calls[1].function.name", "input[1]"),
        ("messages[3].tool_call_id", "input[2].call_id"),
        ("messages[4].role", "input[3].role"),
        ("tools", "tools"),
        ("tools[2].function.parameters.properties.x", "tools[2].parameters.properties.x"),
        ("tool_choice.function.name", "tool_choice.name"),
        ("response_format.type", "text.format.type"),
        ("response_format.json_schema.schema.not", "text.format.schema.not"),
        ("max_tokens", "max_output_tokens"),
        ("max_completion_tokens", "max_output_tokens"),
        ("temperature", "temperature"),
        (None, None),
    ],
)
def test_errors_name_the_fields_of_the_request(param: str | None, named: str | None) -> None:
    request = ResponsesRequest.parse({"instructions": "i", "input": [user("a"), CALL, OUTPUT, user("b")]})
    error = renamed(RequestError(f"{param} is 5", param=param, code="invalid_value"), chat_request(request)[1])
    assert (error.param, error.code, str(error)) == (named, "invalid_value", f"{named} is 5")
