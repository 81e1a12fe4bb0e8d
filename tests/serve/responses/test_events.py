"""Chunks of a chat completion as events of a response, checked with the types of OpenAI's client."""

from collections.abc import Iterable
from typing import Any

import pytest
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from mlc_llm.serve.protocol import (
    ChatCompletionStreamResponse,
    CompletionTokensDetails,
    Delta,
    FunctionCallDelta,
    Logprobs,
    PromptTokensDetails,
    StreamChoice,
    TokenLogprob,
    ToolCallDelta,
    TopLogprob,
    Usage,
)
from mlc_llm.serve.responses.events import ResponseEvents
from mlc_llm.serve.responses.request import ResponsesRequest

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
USAGE = Usage(
    prompt_tokens=5, completion_tokens=7, total_tokens=12, prompt_tokens_details=PromptTokensDetails(cached_tokens=2)
)
BEGUN = ["created", "in_progress"]
MESSAGE_BEGINS = ["output_item.added", "content_part.added"]
MESSAGE_ENDS = ["output_text.done", "content_part.done", "output_item.done"]


def chunk(delta: Delta | None = None, usage: Usage | None = None, **fields: Any) -> ChatCompletionStreamResponse:
    choices = [] if delta is None else [StreamChoice(delta=delta, **fields)]
    return ChatCompletionStreamResponse(id="resp_1", created=1, model="m", choices=choices, usage=usage)


def call(index: int, name: str | None = None, arguments: str | None = None) -> Delta:
    """A piece of a call; the first one has its name."""
    function = FunctionCallDelta(name=name, arguments=arguments)
    identifier = None if name is None else f"call_{index}"
    return Delta(tool_calls=[ToolCallDelta(index=index, id=identifier, type="function", function=function)])


def answer(deltas: Iterable[Delta], reason: str = "stop", **fields: Any) -> list[dict[str, Any]]:
    """The events of an answer, as they are sent."""
    events = ResponseEvents(ResponsesRequest.parse({"input": "a", **fields}), "m")
    told = []
    chunks = [chunk(delta) for delta in (Delta(role="assistant", content=""), *deltas)]
    for item in (*chunks, chunk(Delta(), finish_reason=reason), chunk(usage=USAGE)):
        told += [event.model_dump() for event in events.of_chunk(item)]
    told.append(events.of_end().model_dump())
    check(told)
    return told


def check(told: list[dict[str, Any]]) -> None:
    """Each event is what OpenAI's client expects, they are counted, and a response's parts are what was streamed."""
    for event in told:
        parsed = EVENT.validate_python(event)
        assert parsed.type == event["type"]
    assert [event["sequence_number"] for event in told] == list(range(len(told)))
    items: dict[int, str] = {}
    done = []
    for event in told:
        if event["type"].endswith(".delta"):
            items[event["output_index"]] = items.get(event["output_index"], "") + event["delta"]
        elif event["type"] == "response.output_item.done":
            done.append(event["item"])
    output = told[-1]["response"]["output"]
    assert output == done
    for index, item in enumerate(output):
        text = item["arguments"] if item["type"] == "function_call" else "".join(p["text"] for p in item["content"])
        assert text == items.get(index, "")


def kinds(told: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in told]


def test_a_text() -> None:
    told = answer([Delta(content="Hello"), Delta(content=" you")])
    deltas = ["output_text.delta"] * 2
    assert kinds(told) == [*BEGUN, *MESSAGE_BEGINS, *deltas, *MESSAGE_ENDS, "completed"]
    response = told[-1]["response"]
    assert (response["id"], response["status"], response["model"]) == ("resp_1", "completed", "m")
    assert response["output"][0]["content"][0]["text"] == "Hello you"
    assert response["usage"] == {
        "input_tokens": 5, "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 7, "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 12,
    }  # fmt: skip
    assert told[0]["response"]["output"] == []
    assert told[2]["item"]["content"] == []


def test_an_empty_answer_is_an_empty_text() -> None:
    told = answer([])
    assert kinds(told) == [*BEGUN, *MESSAGE_BEGINS, *MESSAGE_ENDS, "completed"]


def test_thoughts_a_text_and_calls_are_items_in_their_order() -> None:
    told = answer(
        [Delta(reasoning_content="hm"), Delta(reasoning_content="!"), Delta(content="I look."),
         call(0, "f", ""), call(0, arguments='{"a"'), call(0, arguments=": 1}"), call(1, "g", "{}")],
        "tool_calls",
    )  # fmt: skip
    reasoning = [*MESSAGE_BEGINS, *["reasoning_text.delta"] * 2, "reasoning_text.done", *MESSAGE_ENDS[1:]]
    first = ["output_item.added", *["function_call_arguments.delta"] * 2]
    second = ["output_item.added", "function_call_arguments.delta"]
    called = ["function_call_arguments.done", "output_item.done"]
    text = [*MESSAGE_BEGINS, "output_text.delta", *MESSAGE_ENDS]
    assert kinds(told) == [*BEGUN, *reasoning, *text, *first, *called, *second, *called, "completed"]
    output = told[-1]["response"]["output"]
    assert [item["type"] for item in output] == ["reasoning", "message", "function_call", "function_call"]
    assert {item["status"] for item in output} == {"completed"}
    assert len({item["id"] for item in output}) == 4
    assert [(item["call_id"], item["name"], item["arguments"]) for item in output[2:]] == [
        ("call_0", "f", '{"a": 1}'), ("call_1", "g", "{}"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "last", [Delta(content="Hel"), Delta(reasoning_content="hm"), call(0, "f", '{"a'), call(0, "f", "")]
)
def test_an_answer_that_is_cut_off_is_incomplete(last: Delta) -> None:
    told = answer([last], "length")
    response = told[-1]["response"]
    assert told[-1]["type"] == "response.incomplete"
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert [item["status"] for item in response["output"]] == ["incomplete"]
    assert response["completed_at"] is None


def test_log_probabilities_are_those_of_the_text() -> None:
    tokens = [TokenLogprob(token=text, bytes=[1], logprob=-1.0,
                           top_logprobs=[TopLogprob(token="x", bytes=[1], logprob=-2.0)]) for text in "ab"]  # fmt: skip
    deltas = [chunk(Delta(content=token.token), logprobs=Logprobs(content=[token])) for token in tokens]
    events = ResponseEvents(ResponsesRequest.parse({"input": "a"}), "m")
    told = []
    for item in (*deltas, chunk(Delta(content=""), logprobs=Logprobs(content=tokens[:1])),
                 chunk(Delta(), finish_reason="stop"), chunk(usage=USAGE)):  # fmt: skip
        told += [event.model_dump() for event in events.of_chunk(item)]
    told.append(events.of_end().model_dump())
    check(told)
    (part,) = told[-1]["response"]["output"][0]["content"]
    assert [token["token"] for token in part["logprobs"]] == ["a", "b", "a"]
    streamed = [token for event in told if event["type"].endswith("text.delta") for token in event["logprobs"]]
    assert streamed == part["logprobs"]


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("server_error", "server_error"),
        ("overloaded_error", "rate_limit_exceeded"),
        ("invalid_request_error", "invalid_prompt"),
    ],
)
def test_an_error_in_the_middle_is_told_with_what_there_is(kind: str, code: str) -> None:
    events = ResponseEvents(ResponsesRequest.parse({"input": "a"}), "m")
    begun = list(events.of_chunk(chunk(Delta(content="Hel"))))
    error, failed = (event.model_dump() for event in events.of_failure(kind, "no", "input", "engine_error"))
    assert EVENT.validate_python(error).message == "no"
    assert error["error"] == {"message": "no", "type": kind, "param": "input", "code": "engine_error"}
    response = EVENT.validate_python(failed).response
    assert (response.status, response.error.code, response.output[0].status) == ("failed", code, "incomplete")
    assert response.output_text == "Hel"
    assert [error["sequence_number"], failed["sequence_number"]] == [len(begun), len(begun) + 1]


def test_an_error_before_the_response_stands_alone() -> None:
    events = ResponseEvents(ResponsesRequest.parse({"input": "a"}), "m")
    (error,) = events.of_failure("server_error", "no", None, None)
    assert (error.type, error.sequence_number) == ("error", 0)


def test_the_response_repeats_the_request() -> None:
    tool = {"type": "function", "name": "f", "parameters": {"type": "object"}, "description": "d", "strict": True}
    schema = {"type": "json_schema", "name": "a", "schema": {"type": "object"}, "strict": True}
    fields = {
        "instructions": "i", "max_output_tokens": 9, "max_tool_calls": 2, "metadata": {"a": "b"}, "temperature": 0.5,
        "top_p": 0.25, "parallel_tool_calls": False, "tools": [tool], "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": schema, "verbosity": "low"}, "reasoning": {"effort": "low", "summary": "auto"}, "user": "u",
        "prompt_cache_key": "k", "safety_identifier": "s", "include": ["message.output_text.logprobs"],
        "top_logprobs": 3,
    }  # fmt: skip
    response = answer([], **fields)[-1]["response"]
    del fields["include"]
    assert {name: response[name] for name in fields} == fields
    plain = answer([])[-1]["response"]
    assert (plain["tools"], plain["tool_choice"], plain["parallel_tool_calls"]) == ([], "auto", True)
    assert (plain["text"]["format"], plain["store"], plain["metadata"]) == ({"type": "text"}, False, {})
    (told,) = answer([], tools=[{"type": "function", "name": "f"}])[-1]["response"]["tools"]
    assert (told["parameters"], told["strict"]) == (None, False)


def test_thoughts_are_counted_apart() -> None:
    usage = USAGE.model_copy(update={"completion_tokens_details": CompletionTokensDetails(reasoning_tokens=4)})
    events = ResponseEvents(ResponsesRequest.parse({"input": "a"}), "m")
    for item in (chunk(Delta(reasoning_content="hm")), chunk(Delta(), finish_reason="stop"), chunk(usage=usage)):
        list(events.of_chunk(item))
    told = events.of_end().response.usage
    assert told is not None
    assert (told.output_tokens, told.output_tokens_details.reasoning_tokens) == (7, 4)
