"""POST /v1/chat/completions, as OpenAI's client and a bare socket see it."""

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from fake_async_engine import FAILURES, TIMEOUT
from openai.types.chat import ChatCompletion, ChatCompletionChunk

HI = [{"role": "user", "content": "hello world"}]


def data(lines: list[str]) -> list[Any]:
    """The JSON of the events, and the marker of the end as text."""
    events = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    return [event if event == "[DONE]" else json.loads(event) for event in events]


@pytest.fixture
def client(plain: Any, openai_client: Any) -> openai.OpenAI:
    made: openai.OpenAI = openai_client(plain)
    return made


def test_openais_client_gets_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="tiny", messages=HI)
    assert answer.choices[0].message.content == "hello world "
    assert answer.choices[0].finish_reason == "stop"
    assert (answer.usage.total_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (7, 3)
    assert answer._request_id.startswith("req-")


def test_openais_client_gets_a_stream(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=HI, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "hello world "
    assert {chunk.id for chunk in chunks} == {"chatcmpl-1"}


def test_openais_client_reads_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="other", messages=HI)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "<refuse>"}])
    assert (too_long.value.code, too_long.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.APIError, match="context 8"):
        list(
            client.chat.completions.create(
                model="tiny", messages=[{"role": "user", "content": "a <refuse>"}], stream=True
            )
        )


def test_a_whole_answer_is_openais_object(plain: Any) -> None:
    answer = plain.chat().json()
    ChatCompletion.model_validate(answer, strict=True)
    assert answer["choices"][0] == {
        "index": 0, "finish_reason": "stop", "logprobs": None,
        "message": {"role": "assistant", "content": "hello world ", "refusal": None},
    }  # fmt: skip


def test_chunks_are_openais_objects(plain: Any) -> None:
    with plain.stream("hello world") as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *chunks, end = data(list(response.iter_lines()))
    assert end == "[DONE]"
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert "usage" not in chunk
    assert [chunk["choices"][0]["delta"] for chunk in chunks] == [
        {"role": "assistant", "content": ""}, {"content": "hello "}, {"content": "world "}, {},
    ]  # fmt: skip
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]


def test_usage_comes_last_when_it_is_asked_for(plain: Any) -> None:
    with plain.stream("hello", stream_options={"include_usage": True}) as response:
        *chunks, usage, _ = data(list(response.iter_lines()))
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (usage["choices"], usage["usage"]["completion_tokens"]) == ([], 1)


def test_text_is_sent_as_it_is(plain: Any) -> None:
    assert "grüße" in plain.chat("grüße").text
    with plain.stream("日本語") as response:
        assert "日本語" in response.read().decode()


@pytest.mark.parametrize(("word", "status", "code", "kind"), FAILURES)
def test_an_error_has_its_status_or_is_an_event_in_the_middle(
    word: str, status: int, code: str, kind: str, plain: Any
) -> None:
    with plain.stream(word) as begun:
        refused = [plain.chat(word), plain.chat(f"some text {word}"), begun]
        begun.read()
    for response in refused:
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["type"]) == (status, code, kind)
        assert set(error) == {"message", "type", "param", "code"}
        assert response.headers.get("retry-after") == ("3" if status == 503 else None)
        assert response.headers.get("x-should-retry") == ("false" if status == 500 else None)
    with plain.stream(f"some text {word}") as response:
        assert response.status_code == 200
        *_, last = data(list(response.iter_lines()))
    assert (last["error"]["code"], last["error"]["type"]) == (code, kind)


def test_a_bug_is_not_told_to_the_client(plain: Any) -> None:
    assert "a bug" not in plain.chat("<crash>").text


def test_a_stream_that_waits_gets_comments(serve: Callable[..., Any]) -> None:
    server = serve(keep_alive_interval=0.01)
    with server.stream("<wait> hello") as response:
        lines = response.iter_lines()
        assert next(lines) == ": keep-alive"
        server.engine.release()
        *_, last, end = data(list(lines))
    assert (last["choices"][0]["finish_reason"], end) == ("stop", "[DONE]")


def test_an_error_after_a_comment_is_an_event(serve: Callable[..., Any]) -> None:
    server = serve(keep_alive_interval=0.01)
    with server.stream("<wait> <refuse>") as response:
        lines = response.iter_lines()
        assert next(lines) == ": keep-alive"
        server.engine.release()
        (event,) = data(list(lines))
    assert event["error"]["code"] == "context_length_exceeded"


def test_chunks_arrive_while_the_answer_is_made(plain_server: Any) -> None:
    with plain_server.stream("first <wait> second") as response:
        lines = response.iter_lines()
        first = [line for line, _ in zip(lines, range(3), strict=False) if line]
        assert [event["choices"][0]["delta"].get("content") for event in data(first)] == ["", "first "]
        plain_server.engine.release()
        assert data(list(lines))[-1] == "[DONE]"


def test_each_event_is_one_chunk_of_http(plain: Any) -> None:
    # MLC-LLM's documentation reads streams so
    raw = plain.post_raw({"stream": True, "messages": HI})
    with raw, raw.makefile("rb") as stream:
        while stream.readline() != b"\r\n":
            pass
        chunks = []
        while size := int(stream.readline(), 16):
            chunks.append(stream.read(size))
            assert stream.read(2) == b"\r\n"
    assert [chunk.count(b"data: ") for chunk in chunks] == [1] * len(chunks)
    assert all(chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") for chunk in chunks)


@pytest.mark.parametrize("when", ["before the first chunk", "in the middle"])
def test_a_stream_whose_client_hangs_up_is_aborted(when: str, plain_server: Any) -> None:
    text = "<wait> hello" if when == "before the first chunk" else "hello <wait> world"
    raw = plain_server.post_raw({"stream": True, "messages": [{"role": "user", "content": text}]})
    assert plain_server.engine.waiting.get(timeout=TIMEOUT)
    raw.close()
    assert plain_server.engine.ended.get(timeout=TIMEOUT) == "aborted"


def test_a_whole_answer_whose_client_hangs_up_is_aborted(plain_server: Any) -> None:
    raw = plain_server.post_raw({"messages": [{"role": "user", "content": "hello <wait> world"}]})
    assert plain_server.engine.waiting.get(timeout=TIMEOUT)
    raw.close()
    assert plain_server.engine.ended.get(timeout=TIMEOUT) == "aborted"


def test_a_client_that_hangs_up_disturbs_no_other(plain_server: Any) -> None:
    raw = plain_server.post_raw({"messages": [{"role": "user", "content": "hello <wait> world"}]})
    assert plain_server.engine.waiting.get(timeout=TIMEOUT)
    with plain_server.stream("one <wait> two") as response:
        assert plain_server.engine.waiting.get(timeout=TIMEOUT)
        raw.close()
        assert plain_server.engine.ended.get(timeout=TIMEOUT) == "aborted"
        plain_server.engine.release()
        assert data(list(response.iter_lines()))[-1] == "[DONE]"


def test_the_model_is_called_as_the_operator_calls_it(serve: Callable[..., Any]) -> None:
    server = serve(model_name="./dist/tiny/")
    for name in ("./dist/tiny/", "tiny", "dist/tiny"):
        assert server.chat(model=name).json()["model"] == "./dist/tiny/"
    with server.stream("hi") as response:
        *chunks, _ = data(list(response.iter_lines()))
    assert {chunk["model"] for chunk in chunks} == {"./dist/tiny/"}
    assert server.chat(model="./dist/other/").json()["error"]["code"] == "model_not_found"
    assert server.chat(model=None).status_code == 200
