"""Chat completions as OpenAI's client knows them, whole and streamed."""

import inspect
from typing import Any

import pytest
from fake_model import PAGE
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlc_llm.runtime.errors import EngineError, RequestError
from mlc_llm.serve import MLCEngine
from mlc_llm.serve.chat import ChatCompletions, CreateOptions
from mlc_llm.serve.protocol import ChatCompletionResponse

USER = [{"role": "user", "content": "Hi"}]


def text(response: ChatCompletionResponse) -> str:
    return response.choices[0].message.content


def refusal(engine: MLCEngine, **fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        engine.chat.completions.create(**{"messages": USER, **fields})
    return caught.value


def test_the_signature_is_the_published_one() -> None:
    parameters = list(inspect.signature(ChatCompletions.create).parameters.values())[1:]
    defaults = {
        "messages": inspect.Parameter.empty, "model": None, "frequency_penalty": None, "presence_penalty": None,
        "logprobs": False, "top_logprobs": 0, "logit_bias": None, "max_tokens": None, "n": 1, "seed": None,
        "stop": None, "stream": False, "stream_options": None, "temperature": None, "top_p": None, "tools": None,
        "tool_choice": None, "user": None, "response_format": None, "request_id": None, "extra_body": None,
    }  # fmt: skip
    assert {parameter.name: parameter.default for parameter in parameters[: len(defaults)]} == defaults
    assert {parameter.default for parameter in parameters[len(defaults) :]} == {None}
    assert {parameter.kind for parameter in parameters} == {inspect.Parameter.KEYWORD_ONLY}
    assert set(CreateOptions.__annotations__) == {parameter.name for parameter in parameters} - {"messages", "stream"}


def test_a_response_is_openai_s(scripted: Any) -> None:
    engine = scripted("Hello, Grüße 👋")
    response = engine.chat.completions.create(messages=USER, temperature=0, logprobs=True, top_logprobs=3)
    assert text(response) == "Hello, Grüße 👋"
    openai = ChatCompletion.model_validate(response.model_dump(), strict=True)
    assert openai.model == "dist/tiny"
    assert openai.choices[0].finish_reason == "stop"
    assert openai.choices[0].message.role == "assistant"
    logprobs = openai.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert bytes(byte for token in logprobs.content for byte in token.bytes or []) == "Hello, Grüße 👋".encode()
    assert all(len(token.top_logprobs) == 3 for token in logprobs.content)
    assert openai.usage is not None
    assert openai.usage.total_tokens == openai.usage.prompt_tokens + openai.usage.completion_tokens
    assert openai.usage.completion_tokens == len("Hello, Grüße 👋".encode()) + 1


def test_the_prompt_is_the_rendered_conversation(scripted: Any, tokenizer: Any) -> None:
    engine = scripted("Yes")
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "?"}]},
    ]
    response = engine.chat.completions.create(messages=messages, max_tokens=1)
    prompt = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n"
    assert engine.fake.texts[-1] == tokenizer.encode(prompt)
    assert response.usage.prompt_tokens == len(tokenizer.encode(prompt))


def test_chunks_are_openai_s(scripted: Any) -> None:
    engine = scripted("One, two")
    chunks = list(engine.chat.completions.create(messages=USER, temperature=0, stream=True, logprobs=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(), strict=True)
        assert chunk.usage is None
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1
    choices = [chunk.choices[0] for chunk in chunks]
    assert "".join(choice.delta.content or "" for choice in choices) == "One, two"
    assert [choice.delta.role for choice in choices] == ["assistant", *[None] * (len(choices) - 1)]
    assert [choice.finish_reason for choice in choices] == [*[None] * (len(choices) - 1), "stop"]
    assert choices[-1].delta.content is None


def test_usage_comes_last_where_it_is_asked_for(scripted: Any) -> None:
    engine = scripted("Yes")
    *chunks, last = engine.chat.completions.create(
        messages=USER, temperature=0, stream=True, stream_options={"include_usage": True}
    )
    assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
    assert all(chunk.choices for chunk in chunks)
    assert (last.choices, last.usage.completion_tokens) == ([], 4)
    without = list(engine.chat.completions.create(messages=USER, stream=True, stream_options={}))
    assert all(chunk.choices for chunk in without)


@pytest.mark.parametrize("fields", [{"seed": 3}, {"seed": 4, "stop": ["a", "e"]}, {"seed": 5, "logprobs": True}])
def test_a_whole_answer_is_its_stream(scripted: Any, fields: dict[str, Any]) -> None:
    engine = scripted()
    request = {"messages": USER, "temperature": 1.0, "max_tokens": 40, **fields}
    whole = engine.chat.completions.create(**request)
    *chunks, last = engine.chat.completions.create(**request, stream=True, stream_options={"include_usage": True})
    assert text(whole) == "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert whole.choices[0].finish_reason == chunks[-1].choices[0].finish_reason
    assert whole.usage.completion_tokens == last.usage.completion_tokens
    tokens = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert (whole.choices[0].logprobs.content if whole.choices[0].logprobs else []) == tokens


def test_several_turns_reuse_what_was_computed(scripted: Any) -> None:
    engine = scripted()
    first = engine.chat.completions.create(messages=USER, max_tokens=12, temperature=0.0)
    conversation = [*USER, {"role": "assistant", "content": text(first)}, {"role": "user", "content": "And?"}]
    second = engine.chat.completions.create(messages=conversation, max_tokens=5, temperature=0.0)
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens - PAGE
    again = scripted().chat.completions.create(messages=conversation, max_tokens=5, temperature=0.0)
    assert text(again) == text(second)


def test_two_open_streams_do_not_disturb_each_other(scripted: Any) -> None:
    engine = scripted()
    other = [{"role": "user", "content": "Something else"}]
    alone = [text(engine.chat.completions.create(messages=m, max_tokens=20, seed=9)) for m in (USER, other)]
    fresh = scripted()
    streams = [fresh.chat.completions.create(messages=m, max_tokens=20, seed=9, stream=True) for m in (USER, other)]
    texts = ["", ""]
    open_streams = {0, 1}
    while open_streams:
        for index in list(open_streams):
            chunk = next(streams[index], None)
            if chunk is None:
                open_streams.discard(index)
            else:
                texts[index] += chunk.choices[0].delta.content or ""
    assert texts == alone


def test_the_answer_s_id(scripted: Any) -> None:
    engine = scripted("Yes")
    assert engine.chat.completions.create(messages=USER, request_id="mine-1").id == "mine-1"
    ids = {engine.chat.completions.create(messages=USER).id for _ in range(3)}
    assert len(ids) == 3
    assert all(name.startswith("chatcmpl-") for name in ids)
    for bad in ("", "x" * 257, "two\nlines"):
        assert refusal(engine, request_id=bad).param == "request_id"


def test_a_request_may_name_the_model(scripted: Any, folder: Any) -> None:
    engine = scripted("Yes")
    for name in ("dist/tiny", str(folder), folder.name):
        assert text(engine.chat.completions.create(messages=USER, model=name, temperature=0)) == "Yes"
    error = refusal(engine, model="gpt-5")
    assert (error.code, error.param) == ("model_not_found", "model")
    assert str(error) == "model 'gpt-5' is not loaded: this engine has 'dist/tiny'"


def test_extra_body(scripted: Any) -> None:
    engine = scripted("abcdef")
    limited = engine.chat.completions.create(messages=USER, temperature=0, extra_body={"max_completion_tokens": 3})
    assert text(limited) == "abc"
    endless = engine.chat.completions.create(
        messages=USER, temperature=0, max_tokens=20, extra_body={"debug_config": {"ignore_eos": True}}
    )
    assert endless.usage.completion_tokens == 20
    for wrong in ({"n": 1}, {"tempratur": 1}, [1], {"top_k": -1}, {"debug_config": {"special_request": "x"}}):
        refusal(engine, extra_body=wrong)


def test_errors_come_before_the_stream(scripted: Any) -> None:
    engine = scripted("Yes")
    for fields in (
        {"messages": []},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "assistant", "content": "x"}]},
        {"temperature": 5},
        {"max_tokens": 0},
        {"logit_bias": {300: 1}},
        {"top_logprobs": 2},
        {"logprobs": True, "top_logprobs": 21},
        {"stop": ""},
        {"stop": ["x"] * 17},
        {"messages": [{"role": "user", "content": "x" * 300}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
    ):
        error = refusal(engine, stream=True, **fields)
        assert "\n" not in str(error)
    assert refusal(engine, messages=[{"role": "user", "content": "x" * 300}]).code == "context_length_exceeded"
    assert refusal(engine, messages=[{"role": "robot", "content": "x"}]).param == "messages[0].role"
    assert not engine.fake.sequences


def test_after_terminate_everything_says_so(scripted: Any) -> None:
    engine = scripted()
    with engine as same:
        assert same is engine
        assert engine.context_window_size == 256
        stream = engine.chat.completions.create(messages=USER, stream=True)
        next(stream)
    for use in (
        lambda: engine.chat.completions.create(messages=USER),
        lambda: next(stream),
        lambda: engine.context_window_size,
    ):
        with pytest.raises(EngineError, match="the engine is terminated: make a new MLCEngine"):
            use()
    engine.terminate()


def test_a_closed_stream_keeps_its_text_for_reuse(scripted: Any) -> None:
    engine = scripted()
    stream = engine.chat.completions.create(messages=USER, stream=True)
    for _ in range(4):
        next(stream)
    stream.close()
    assert not engine.fake.sequences
    again = engine.chat.completions.create(messages=USER, max_tokens=1)
    assert again.usage.prompt_tokens_details.cached_tokens == (again.usage.prompt_tokens - 1) // PAGE * PAGE


def test_stop_strings_of_a_template_that_are_special_tokens(scripted: Any) -> None:
    """Their text never appears in an answer, so the token itself has to end it."""
    template = {
        "name": "marks",
        "roles": {"user": "user", "assistant": "assistant"},
        "seps": ["<|im_end|>"],
        "stop_str": ["<|im_end|>", "END"],
    }
    config = {"prompt_format": "conv_template", "conv_template": template, "eos_token_id": [258]}
    engine = scripted("Yes END no", config=config)
    assert text(engine.chat.completions.create(messages=USER, temperature=0)) == "Yes "
    engine = scripted("Yes", config=config)
    response = engine.chat.completions.create(messages=USER, temperature=0)
    assert (text(response), response.choices[0].finish_reason) == ("Yes", "stop")
