"""Requests are read strictly: what is wrong, unknown or not supported is refused by the name of its field."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from openai.resources.chat.completions import Completions as OpenAIChat
from openai.resources.completions import Completions as OpenAICompletions
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_chunk import ChoiceDelta

from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.errors import RequestError
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.serve.chat import CreateOptions
from mlc_llm.serve.completions import CompletionOptions
from mlc_llm.serve.protocol import (
    ChatCompletionRequest,
    Delta,
    FunctionCall,
    FunctionCallDelta,
    Message,
    ToolCall,
    ToolCallDelta,
)
from mlc_llm.serve.text_protocol import CompletionRequest

MESSAGES = [{"role": "user", "content": "Hi"}]
CONFIG = ChatConfig(
    model_type="tiny", quantization="q0f32", model_config={}, vocab_size=300, context_window_size=64,
    prefill_chunk_size=32, temperature=0.7, top_p=0.95, frequency_penalty=0.25, presence_penalty=0.5,
    repetition_penalty=1.1,
)  # fmt: skip


def parse(**fields: Any) -> ChatCompletionRequest:
    return ChatCompletionRequest.parse({"messages": MESSAGES, **fields})


def refusal(**fields: Any) -> RequestError:
    with pytest.raises(RequestError) as caught:
        parse(**fields)
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_is_left_out_comes_from_the_model_s_config() -> None:
    assert parse().sampling_params(CONFIG) == SamplingParams(
        temperature=0.7, top_p=0.95, frequency_penalty=0.25, presence_penalty=0.5, repetition_penalty=1.1
    )


def test_every_sampling_field_arrives() -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "frequency_penalty": 0.0,
        "presence_penalty": -1,
        "repetition_penalty": 1.0,
        "top_k": 40,
        "min_p": 0.1,
        "max_tokens": 7,
        "min_tokens": 2,
        "seed": 3,
        "logit_bias": {"5": 1, 6: -100.0},
        "logprobs": True,
        "top_logprobs": 2,
        "stop": ["a", "b"],
        "stop_token_ids": [1, 2],
        "ignore_eos": True,
    }
    expected = {**fields, "logit_bias": {5: 1.0, 6: -100.0}, "stop": ("a", "b"), "stop_token_ids": (1, 2)}
    assert parse(**fields).sampling_params(CONFIG) == SamplingParams(**expected)


def test_one_stop_string_and_one_of_two_names_of_the_limit() -> None:
    params = parse(stop="END", max_completion_tokens=9).sampling_params(CONFIG)
    assert (params.stop, params.max_tokens) == (("END",), 9)
    assert parse(max_tokens=9, max_completion_tokens=9).sampling_params(CONFIG).max_tokens == 9
    assert refusal(max_tokens=8, max_completion_tokens=9).param == "max_completion_tokens"


def test_ignore_eos_as_mlc_spells_it() -> None:
    assert parse(debug_config={"ignore_eos": True}).sampling_params(CONFIG).ignore_eos
    assert not parse(debug_config={}).sampling_params(CONFIG).ignore_eos


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("max_tokens", 1.5),
        ("max_tokens", "3"),
        ("stream", "yes"),
        ("stop", 5),
        ("stop", [5]),
        ("seed", 1.0),
        ("logprobs", 1),
        ("logit_bias", [1]),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"²": 1}),
        ("logit_bias", {"9" * 50: 1}),
        ("logit_bias", {"1": "much"}),
        ("user", 5),
        ("tools", "all"),
        ("messages", "Hi"),
        ("messages", ["Hi"]),
        ("stream_options", True),
        ("model", 3),
        ("request_id", 3),
    ],
)
def test_a_value_of_the_wrong_type_names_its_field(field: str, value: object) -> None:
    error = refusal(**{field: value})
    assert (error.param, error.code) == (field, "invalid_type")
    assert str(error).startswith(field)
    assert len(str(error)) < 300


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temprature": 1}, "'temprature' is not a field of a chat completion: did you mean 'temperature'?"),
        (
            {"zzz": 1},
            "'zzz' is not a field of a chat completion: the fields are audio, chat_template_kwargs, debug_config",
        ),
        ({"stream": True, "stream_options": {"include_usge": True}}, "did you mean 'include_usage'?"),
        ({"debug_config": {"pinned_system_prompt": True}}, "'debug_config.pinned_system_prompt' is not a field"),
    ],
)
def test_an_unknown_field_is_refused_with_a_hint(fields: dict[str, Any], message: str) -> None:
    error = refusal(**fields)
    assert message in str(error)
    assert error.code == "unknown_field"


def test_messages_are_needed() -> None:
    with pytest.raises(RequestError, match=r"^messages is missing$") as caught:
        ChatCompletionRequest.parse({})
    assert (caught.value.param, caught.value.code) == ("messages", "missing_field")


def test_values_that_change_nothing_are_fine() -> None:
    parse(n=1, tools=[], tool_choice="none", response_format={"type": "text"}, user="me", logprobs=False)
    parse(n=None, tools=None, tool_choice=None, response_format=None, stop=None, logit_bias=None, stream=None)


def test_stream_options_need_a_stream() -> None:
    assert parse(stream=True, stream_options={"include_usage": True}).stream_options is not None
    assert refusal(stream_options={"include_usage": True}).param == "stream_options"


def test_answers_with_calls_and_reasoning_are_openai_s() -> None:
    call = ToolCall(id="call_1", function=FunctionCall(name="f", arguments="{}"))
    message = Message(content=None, reasoning_content="hm", tool_calls=[call])
    dumped = ChatCompletionMessage.model_validate(message.model_dump(), strict=True)
    assert dumped.tool_calls is not None
    assert dumped.tool_calls[0].model_dump() == call.model_dump()
    assert message.model_dump()["reasoning_content"] == "hm"
    delta = Delta(
        tool_calls=[ToolCallDelta(index=0, id="call_1", type="function", function=FunctionCallDelta(name="f"))]
    )
    ChoiceDelta.model_validate(delta.model_dump(), strict=True)
    more = Delta(tool_calls=[ToolCallDelta(index=0, function=FunctionCallDelta(arguments='{"a'))])
    assert more.model_dump()["tool_calls"] == [{"index": 0, "function": {"arguments": '{"a'}}]


def test_what_an_answer_does_not_have_is_absent() -> None:
    assert set(Message(content="Hi").model_dump()) == {"role", "content", "refusal"}
    assert json.loads(Delta(content="Hi").model_dump_json()) == {"role": None, "content": "Hi"}


def test_what_only_openai_s_service_uses_is_accepted() -> None:
    fields = {"user": "a", "safety_identifier": "b", "metadata": {"c": "d"}, "store": True, "service_tier": "auto",
              "prompt_cache_key": "e", "prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"},
              "prediction": {"type": "content", "content": "f"}, "modalities": ["text"],
              "verbosity": "medium"}  # fmt: skip
    ChatCompletionRequest.parse({"messages": [], **fields})
    assert refusal(metadata={"c": 1}).param == "metadata"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("modalities", ["text", "audio"]),
        ("verbosity", "low"),
        ("audio", {"voice": "alloy", "format": "wav"}),
        ("functions", [{"name": "f"}]),
        ("function_call", "auto"),
        ("moderation", {"model": "m"}),
        ("web_search_options", {}),
        ("service_tier", "flex"),
    ],
)
def test_what_is_not_there_is_refused(field: str, value: object) -> None:
    error = refusal(**{field: value})
    assert (error.param, error.code) == (field, "unsupported_value")


def test_a_stream_is_not_padded() -> None:
    parse(stream=True, stream_options={"include_obfuscation": False})
    assert refusal(stream=True, stream_options={"include_obfuscation": True}).code == "unsupported_value"


PAGE = (Path(__file__).parents[2] / "docs" / "requests.md").read_text()
OF_THE_CLIENT = {"extra_headers", "extra_query", "timeout"}


def parameters(create: Any) -> set[str]:
    return set(inspect.signature(create).parameters) - {"self"}


def named(part: str) -> set[str]:
    """The fields in the first columns of the tables of a part of the page."""
    rows = re.findall(r"^\| (`.*?) \|", part, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`(\w+)`", row)}


def test_every_parameter_of_openai_s_client_is_known_and_documented() -> None:
    chat, text = PAGE.split("## Text completions")
    for create, request, options, part in (
        (OpenAIChat.create, ChatCompletionRequest, CreateOptions, chat),
        (OpenAICompletions.create, CompletionRequest, CompletionOptions, text),
    ):
        theirs = parameters(create) - OF_THE_CLIENT
        assert theirs - {"extra_body"} <= set(request.model_fields)
        assert theirs <= {*options.__annotations__, "messages", "prompt", "stream"}
        assert parameters(create) <= named(part)


def test_every_field_is_documented() -> None:
    assert set(ChatCompletionRequest.model_fields) | OF_THE_CLIENT | {"extra_body"} == named(PAGE.split("## Text")[0])
