"""POST /v1/responses, as OpenAI's client sees it."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from fake_async_engine import FAILURES, TIMEOUT
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from mlc_llm.serve.server.limits import RequestLimits

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
PATH = "/v1/responses"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object", "properties": {"city": {"type": "string", "maxLength": 8}}, "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}  # fmt: skip
ROOM = {"context_window": 2000, "pages": 2000}


class Verdict(BaseModel):
    answer: Literal["yes", "no"]


def client_of(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)


@pytest.fixture
def client(plain: Any) -> openai.OpenAI:
    return client_of(plain)


def data(lines: Iterator[str]) -> list[dict[str, Any]]:
    """The events of a stream, each of which has its type as its name too."""
    events, name = [], None
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            events.append(json.loads(line.removeprefix("data: ")))
            assert events[-1]["type"] == name
    return events


def streamed(server: Any, text: str, **fields: Any) -> list[dict[str, Any]]:
    with server.client.stream("POST", PATH, json={"input": text, "stream": True, **fields}) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        return data(response.iter_lines())


def test_openais_client_gets_a_response(client: openai.OpenAI) -> None:
    response = client.responses.create(model="tiny", input="hello world")
    assert (response.output_text, response.status) == ("hello world ", "completed")
    assert (response.usage.total_tokens, response.usage.input_tokens_details.cached_tokens) == (7, 3)
    assert response._request_id.startswith("req-")


def test_openais_client_gets_a_stream(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="tiny", input="hello world", stream=True))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == "hello world "
    assert events[-1].type == "response.completed"
    with client.responses.stream(model="tiny", input="hello world") as stream:
        assert [event.type for event in stream][:2] == ["response.created", "response.in_progress"]
        assert stream.get_final_response().output_text == "hello world "


def test_a_response_and_its_events_are_openais_objects(plain: Any) -> None:
    whole = plain.client.post(PATH, json={"input": "hello world"}).json()
    Response.model_validate(whole, strict=True)
    events = streamed(plain, "hello world")
    for event in events:
        assert EVENT.validate_python(event).type == event["type"]
    last = events[-1]["response"]
    for response in (whole, last):
        del response["output"][0]["id"], response["completed_at"]
    assert last == whole


def test_items_and_instructions_are_the_conversation(plain: Any) -> None:
    items = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    plain.client.post(PATH, json={"instructions": "i", "input": items, "max_output_tokens": 4})
    request = plain.engine.requests[-1]
    assert request.messages == [{"role": "system", "content": "i"}, *items]
    assert request.max_completion_tokens == 4


def test_openais_client_reads_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.responses.create(model="other", input="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as too_long:
            client.responses.create(model="tiny", input="<refuse>", stream=stream)
        assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "input")
    with pytest.raises(openai.APIError, match="context 8"):
        list(client.responses.create(model="tiny", input="a <refuse>", stream=True))
    with pytest.raises(openai.BadRequestError) as stateful:
        client.responses.create(model="tiny", input="a", previous_response_id="resp_1")
    assert (stateful.value.code, stateful.value.param) == ("unsupported_value", "previous_response_id")


@pytest.mark.parametrize(("word", "status", "code", "kind"), FAILURES)
def test_an_error_has_its_status_or_is_an_event_in_the_middle(
    word: str, status: int, code: str, kind: str, plain: Any
) -> None:
    for stream in (False, True):
        response = plain.client.post(PATH, json={"input": word, "stream": stream})
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (status, code, kind)
    *_, error, failed = streamed(plain, f"some text {word}")
    assert (error["type"], error["code"], error["error"]["type"]) == ("error", code, kind)
    assert (failed["type"], failed["response"]["status"]) == ("response.failed", "failed")
    assert failed["response"]["output"][0]["content"][0]["text"] == "some text "
    assert failed["sequence_number"] == error["sequence_number"] + 1


def test_an_error_after_a_comment_is_an_event(serve: Callable[..., Any]) -> None:
    server = serve(keep_alive_interval=0.01)
    with server.client.stream("POST", PATH, json={"input": "<wait> <refuse>", "stream": True}) as response:
        lines = response.iter_lines()
        assert next(lines) == ": keep-alive"
        server.engine.release()
        (event,) = data(lines)
    assert (event["type"], event["code"], event["param"]) == ("error", "context_length_exceeded", "input")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_ends_its_response(stream: bool, plain_server: Any) -> None:
    raw = plain_server.post_raw({"input": "hello <wait> world", "stream": stream}, path=PATH)
    assert plain_server.engine.waiting.get(timeout=TIMEOUT)
    raw.close()
    assert plain_server.engine.ended.get(timeout=TIMEOUT) == "aborted"


def test_a_response_without_a_limit_gets_the_servers(serve: Callable[..., Any]) -> None:
    server = serve(limits=RequestLimits(max_output_tokens=10))
    response = server.client.post(PATH, json={"input": "a"}).json()
    assert response["max_output_tokens"] == server.engine.requests[-1].max_completion_tokens == 10


def test_the_model_is_called_as_the_operator_calls_it(serve: Callable[..., Any]) -> None:
    server = serve(model_name="mine", api_key="sk-1")
    assert server.client.post(PATH, json={"input": "a", "model": "tiny"}).json()["model"] == "mine"
    assert {event["response"]["model"] for event in streamed(server, "a") if "response" in event} == {"mine"}
    assert server.client.post(PATH, json={"input": "a"}, headers={"authorization": "x"}).status_code == 401


def test_what_it_took_is_measured(serve: Callable[..., Any]) -> None:
    server = serve()
    streamed(server, "hello world")
    server.client.post(PATH, json={"input": "hello world"})
    figures = server.client.get("/metrics").text
    assert 'mlc_http_requests_total{path="/v1/responses",status="200"} 2.0' in figures
    assert "mlc_request_seconds_count 2.0" in figures
    assert "mlc_time_to_first_token_seconds_count 2.0" in figures


def test_a_response_that_is_cut_off_is_incomplete(start: Callable[..., Any]) -> None:
    server = start("Yes, I can.")
    client = client_of(server)
    response = client.responses.create(model="dist/tiny", input="Hello!", max_output_tokens=2, store=False)
    assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert response.output[0].status == "incomplete"
    assert response.usage.output_tokens == 2
    *_, last = client.responses.create(model="dist/tiny", input="Hello!", max_output_tokens=2, stream=True)
    assert last.type == "response.incomplete"


def test_what_the_engine_refuses_is_named_as_in_the_request(start: Callable[..., Any]) -> None:
    server = start("Yes.")
    for fields, param in (
        ({"input": "word " * 500}, "input"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "a", "schema": {"not": {}}}}},
         "text.format.schema.not"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format.type"),
        ({"input": "a", "tools": [{"type": "function", "name": "a b"}]}, "tools[0].name"),
        ({"input": "a", "tools": [WEATHER], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name"),
        ({"input": "a", "tool_choice": "required"}, "tool_choice"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": ""}]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "input[1].role"),
        ({"input": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}, "input[1].role"),
    ):  # fmt: skip
        response = server.client.post(PATH, json=fields)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert not re.search(r"messages\[|response_format|max_completion|the messages", error["message"])


def test_a_schema_is_kept_and_parsed(start: Callable[..., Any]) -> None:
    """The model says noise; the grammar makes an object of it."""
    client = client_of(start(**ROOM))
    response = client.responses.parse(model="dist/tiny", input="Is it?", text_format=Verdict, temperature=1.0)
    assert response.output_parsed.answer in ("yes", "no")
    with client.responses.stream(model="dist/tiny", input="Is it?", text_format=Verdict) as stream:
        assert stream.get_final_response().output_parsed.answer in ("yes", "no")
    again = client.responses.create(
        model="dist/tiny", input=[{"role": "user", "content": "Is it?"}, *response.output,
                                  {"role": "user", "content": "Sure?"}], max_output_tokens=1,
    )  # fmt: skip
    assert again.usage.output_tokens == 1


def test_a_call_is_answered_in_the_next_request(start: Callable[..., Any], tokenizer: Any) -> None:
    server = start(f"I look. {CALL}", **ROOM)
    client = client_of(server)
    question = {"role": "user", "content": "Weather in Paris?"}
    response = client.responses.create(model="dist/tiny", input=[question], tools=[WEATHER])
    Response.model_validate(response.to_dict(), strict=True)
    said, call = response.output
    assert (said.content[0].text, call.type, call.name) == ("I look.", "function_call", "weather")
    assert json.loads(call.arguments) == {"city": "Paris"}
    with client.responses.stream(model="dist/tiny", input=[question], tools=[WEATHER]) as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["message", "function_call"]
    assert final.output[1].parsed_arguments == {"city": "Paris"}
    for output in (response.output, final.output):
        result = {"type": "function_call_output", "call_id": output[-1].call_id, "output": "12 degrees"}
        client.responses.create(
            model="dist/tiny", input=[question, *output, result], tools=[WEATHER], max_output_tokens=1
        )
        prompt = tokenizer.decode(server.engine.model.generator.model.texts[-1], skip_special_tokens=False)
        assert "12 degrees" in prompt
        assert '"weather"' in prompt


def test_a_call_can_be_forced(start: Callable[..., Any]) -> None:
    client = client_of(start(**ROOM))
    named = {"type": "function", "name": "weather"}
    for choice in ("required", named, {"type": "allowed_tools", "mode": "required", "tools": [named]}):
        response = client.responses.create(
            model="dist/tiny", input="Hi", tools=[WEATHER], tool_choice=choice, parallel_tool_calls=False,
            temperature=1.0, max_output_tokens=400, extra_body={"seed": 1},
        )  # fmt: skip
        (call,) = response.output
        assert set(json.loads(call.arguments)) == {"city"}


def test_log_probabilities_come_when_they_are_included(start: Callable[..., Any]) -> None:
    client = client_of(start("Yes, I can."))
    response = client.responses.create(
        model="dist/tiny", input="Hello!", include=["message.output_text.logprobs"], top_logprobs=2
    )
    tokens = response.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == "Yes, I can."
    assert [len(token.top_logprobs) for token in tokens] == [2] * len(tokens)
