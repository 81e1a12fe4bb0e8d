"""What a request for a response may say, and how it is told what is wrong."""

from typing import Any

import pytest
from openai.types.responses import Response

from mlc_llm.runtime.errors import RequestError
from mlc_llm.serve.responses.chat import chat_request
from mlc_llm.serve.responses.request import ResponsesRequest

TOOL = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def said(content: Any, **fields: Any) -> dict[str, Any]:
    return {"input": [{"role": "user", "content": content, **fields}]}


@pytest.mark.parametrize(
    "fields",
    [
        {"input": "Hi"},
        {"input": [{"role": "developer", "content": "a"}, {"type": "message", "role": "user", "content": "b"}]},
        said([{"type": "input_text", "text": "Hi"}]),
        {"input": [{"id": "m", "type": "message", "role": "assistant", "status": "completed", "phase": None,
                    "content": [{"type": "output_text", "text": "a", "annotations": [], "logprobs": []}]}]},
        {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "caller": None}]},
        {"input": [{"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "1"}]}]},
        {"input": [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": None,
                    "content": [{"type": "reasoning_text", "text": "hm"}]}]},
        {"input": "a", "instructions": "b", "max_output_tokens": 5, "temperature": 0.5, "top_p": 0.5},
        {"input": "a", "tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}, "parallel_tool_calls": False},
        {"input": "a", "tools": [TOOL], "tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": [
            {"type": "function", "name": "f"}]}},
        {"input": "a", "text": {"format": {"type": "json_object"}, "verbosity": "low"}, "reasoning": {"effort": "low"}},
        {"input": "a", "include": ["message.output_text.logprobs", "reasoning.encrypted_content"], "top_logprobs": 2},
        {"input": "a", "previous_response_id": None, "conversation": None, "prompt": None, "background": False,
         "truncation": "disabled", "store": True, "service_tier": "auto", "user": "u", "max_tool_calls": 3},
        {"input": "a", "stream": True, "stream_options": {"include_obfuscation": False}},
        {"input": "a", "top_k": 5, "min_p": 0.1, "seed": 3, "stop": "x", "request_id": "mine"},
    ],
)  # fmt: skip
def test_what_may_be_said(fields: dict[str, Any]) -> None:
    request = ResponsesRequest.parse(fields)
    assert request.items


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({}, "input", "missing_field"),
        ({"input": 5}, "input", "invalid_type"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": ["Hi"]}, "input[0]", "unsupported_value"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]", "unsupported_value"),
        ({"input": [{"type": ["message"], "role": "user", "content": ""}]}, "input[0]", "unsupported_value"),
        ({"input": [{"role": "tool", "content": "1"}]}, "input[0].role", "invalid_type"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_field"),
        (said(None), "input[0].content", "missing_field"),
        (said(5), "input[0].content", "invalid_type"),
        (said("a", name="b"), "input[0].name", "unknown_field"),
        (said([{"type": "input_image", "image_url": "x"}]), "input[0].content[0].type", "unsupported_value"),
        (said([{"type": "input_text"}]), "input[0].content[0].text", "missing_field"),
        ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content", "unknown_field"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_type"),
        ({"input": "a", "tools": [{"type": "function"}]}, "tools[0].name", "missing_field"),
        ({"input": "a", "tool_choice": "all"}, "tool_choice", "invalid_type"),
        ({"input": "a", "tool_choice": {"type": "mcp"}}, "tool_choice", "unsupported_value"),
        ({"input": "a", "tool_choice": {"type": "function"}}, "tool_choice.name", "missing_field"),
        ({"input": "a", "text": {"format": "json"}}, "text.format", "invalid_type"),
        ({"input": "a", "include": ["file_search_call.results"]}, "include[0]", "invalid_type"),
        ({"input": "a", "top_logprobs": 2}, "top_logprobs", None),
        ({"input": "a", "stream_options": {}}, "stream_options", None),
        ({"input": "a", "stream": True, "stream_options": {"include_usage": True}}, "stream_options.include_usage",
         "unknown_field"),
        ({"input": "a", "max_tokens": 5}, "max_tokens", "unknown_field"),
        ({"input": "a", "n": 2}, "n", "unknown_field"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id", "unsupported_value"),
        ({"input": "a", "conversation": "conv_1"}, "conversation", "unsupported_value"),
        ({"input": "a", "prompt": {"id": "p"}}, "prompt", "unsupported_value"),
        ({"input": "a", "background": True}, "background", "unsupported_value"),
        ({"input": "a", "truncation": "auto"}, "truncation", "unsupported_value"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_its_place(fields: dict[str, Any], param: str, code: str | None) -> None:
    with pytest.raises(RequestError) as error:
        ResponsesRequest.parse(fields)
    assert (error.value.param, error.value.code) == (param, code)
    assert param in str(error.value)


def test_a_field_that_is_misspelt_is_guessed() -> None:
    with pytest.raises(RequestError, match="did you mean 'max_output_tokens'"):
        ResponsesRequest.parse({"input": "a", "max_output_token": 5})


def test_what_openais_objects_hold_may_come_back() -> None:
    """With all nulls that the client's types have."""
    call = {"type": "function_call", "id": "fc", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"}
    text = {"type": "output_text", "text": "a", "annotations": []}
    message = {"type": "message", "id": "m", "role": "assistant", "status": "completed", "content": [text]}
    thought = {"type": "reasoning", "id": "r", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    response = Response.model_validate({
        "id": "resp_1", "created_at": 1, "object": "response", "model": "m", "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [], "output": [thought, message, call],
    })  # fmt: skip
    request = ResponsesRequest.parse({"input": [item.model_dump(by_alias=True) for item in response.output]})
    assert [item.type for item in request.items] == ["reasoning", "message", "function_call"]


def test_the_effort_of_reasoning_is_the_chats() -> None:
    request = ResponsesRequest.parse({"input": "a", "reasoning": {"effort": "low"}})
    assert chat_request(request)[0].reasoning_effort == "low"
