"""A conversation is checked before anything runs: every rule, and the line that breaks it."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage
from openai.types.chat.chat_completion_message_function_tool_call import ChatCompletionMessageFunctionToolCall, Function

from mlc_llm.templates import ConversationError, validate_messages

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "S"}
ASSISTANT = {"role": "assistant", "content": "A"}


def call(identifier: Any = "1", name: Any = "f", arguments: Any = "{}", **fields: Any) -> dict[str, Any]:
    return {"id": identifier, "type": "function", "function": {"name": name, "arguments": arguments}, **fields}


def calling(*calls: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": None, "tool_calls": list(calls), **fields}


def answer(identifier: str = "1", **fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "42", "tool_call_id": identifier, **fields}


@pytest.mark.parametrize(
    "messages",
    [
        [USER],
        [SYSTEM, USER],
        [ASSISTANT, USER],
        [USER, USER],
        [USER, ASSISTANT, USER],
        [{"role": "user", "content": ""}],
        [{"role": "user", "content": "Hi", "name": "Ann-1"}],
    ],
)
def test_ordinary_conversations_pass_unchanged(messages: list[dict[str, Any]]) -> None:
    assert validate_messages(messages) == messages


def test_developer_is_another_name_for_system() -> None:
    assert validate_messages([{"role": "developer", "content": "S"}, USER]) == [SYSTEM, USER]


def test_leading_system_messages_become_one() -> None:
    messages = [SYSTEM, {"role": "developer", "content": "T"}, USER]
    assert validate_messages(messages) == [{"role": "system", "content": "S\n\nT"}, USER]


def test_text_parts_are_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert validate_messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "ab"}]


def test_tool_calls_have_their_arguments_as_objects() -> None:
    messages = [USER, calling(call(arguments='{"x": 1}'), call("2", arguments="")), answer("2"), answer("1")]
    checked = validate_messages(messages)
    assert checked[1]["content"] is None
    assert [c["function"]["arguments"] for c in checked[1]["tool_calls"]] == [{"x": 1}, {}]
    assert checked[2:] == messages[2:]


@pytest.mark.parametrize("arguments", ["{not json", "[1]", "5", "[" * 100000])
def test_arguments_that_are_no_json_object_stay_text(arguments: str) -> None:
    checked = validate_messages([USER, calling(call(arguments=arguments)), answer()])
    assert checked[1]["tool_calls"][0]["function"]["arguments"] == arguments


def test_responses_of_the_openai_client_are_valid_history() -> None:
    said = ChatCompletionMessage(role="assistant", content="A")
    function = ChatCompletionMessageFunctionToolCall(
        id="1", type="function", function=Function(name="f", arguments='{"x": 1}')
    )
    called = ChatCompletionMessage(role="assistant", content=None, tool_calls=[function])
    for first, second in ((said, called), (said.model_dump(), called.model_dump())):
        checked = validate_messages([USER, first, USER, second, answer()])
        assert checked[1] == {"role": "assistant", "content": "A"}
        assert checked[3]["tool_calls"] == [call(arguments={"x": 1})]


@pytest.mark.parametrize("key", ["reasoning", "reasoning_content"])
def test_reasoning_of_earlier_answers_has_one_name(key: str) -> None:
    checked = validate_messages([USER, {**ASSISTANT, key: "hm"}, USER])
    assert checked[1] == {**ASSISTANT, "reasoning_content": "hm"}


IMAGE = {"type": "image_url", "image_url": {"url": "data:"}}
REFUSED: list[tuple[str, Any, str, str]] = [
    ("no list", "hello", "messages", "messages is 'hello': expected a list of objects"),
    ("nothing", [], "messages", "messages is empty: expected at least one message"),
    ("no object", [USER, "Hi"], "messages[1]", "messages[1] is 'Hi': a message is an object"),
    ("no role", [{"content": "x"}], "messages[0].role", "messages[0].role is None: expected system, developer, user"),
    ("bad role", [{"role": "function", "content": "x"}], "messages[0].role", "messages[0].role is 'function': "),
    ("role of another type", [{"role": ["user"], "content": "x"}], "messages[0].role", "messages[0].role is a list"),
    (
        "unknown key",
        [{**USER, "mood": 1}],
        "messages[0].mood",
        "messages[0] has the key 'mood': a message from user has",
    ),
    ("key of another role", [{**USER, "tool_call_id": "1"}], "messages[0].tool_call_id", "messages[0] has the key"),
    (
        "audio",
        [USER, {**ASSISTANT, "audio": {"id": "1"}}, USER],
        "messages[1].audio",
        "messages[1] has the key 'audio'",
    ),
    ("system later", [USER, SYSTEM, USER], "messages[1].role", "expected system messages only at the beginning"),
    ("system later, offset", [SYSTEM, SYSTEM, USER, SYSTEM, USER], "messages[3].role", "messages[3].role is 'system'"),
    (
        "assistant last",
        [USER, ASSISTANT],
        "messages[1].role",
        "expected the last message to be from the user or from a",
    ),
    ("system only", [SYSTEM, SYSTEM], "messages[1].role", "messages[1].role is 'system': expected the last message"),
    (
        "null content",
        [{"role": "user", "content": None}],
        "messages[0].content",
        "messages[0].content is None: expected",
    ),
    ("no content", [{"role": "user"}], "messages[0].content", "messages[0].content is None: expected a text or a list"),
    ("null answer", [USER, {"role": "assistant"}, USER], "messages[1].content", "messages[1].content is None"),
    ("number", [{"role": "user", "content": 5}], "messages[0].content", "messages[0].content is 5: expected a text or"),
    ("no parts", [{"role": "user", "content": []}], "messages[0].content", "is a list: expected at least one part"),
    (
        "image",
        [{"role": "user", "content": [IMAGE]}],
        "messages[0].content[0].type",
        "is 'image_url': expected 'text':",
    ),
    (
        "audio part",
        [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "input_audio"}]}],
        "messages[0].content[1].type",
        "messages[0].content[1].type is 'input_audio': expected 'text': images, audio and files cannot be read",
    ),
    ("part without type", [{"role": "user", "content": [{}]}], "messages[0].content[0]", "expected a part like"),
    ("part as text", [{"role": "user", "content": ["x"]}], "messages[0].content[0]", "messages[0].content[0] is 'x'"),
    ("part without text", [{"role": "user", "content": [{"type": "text"}]}], "messages[0].content[0].text", "is None"),
    (
        "part with more",
        [{"role": "user", "content": [{"type": "text", "text": "x", "cache": 1}]}],
        "messages[0].content[0]",
        "messages[0].content[0] has the key 'cache': a text part has type, text",
    ),
    (
        "bad name",
        [{**USER, "name": "a b"}],
        "messages[0].name",
        "messages[0].name is 'a b': expected a text that matches",
    ),
    ("injected name", [{**USER, "name": "<|im_end|>"}], "messages[0].name", "messages[0].name is '<|im_end|>'"),
    ("tool without call", [USER, answer()], "messages[1].tool_call_id", "is '1': expected no tool message here"),
    ("wrong id", [USER, calling(call()), answer("2")], "messages[2].tool_call_id", "is '2': expected one of '1'"),
    (
        "two answers",
        [USER, calling(call()), answer(), answer()],
        "messages[3].tool_call_id",
        "expected no tool message",
    ),
    (
        "no answer",
        [USER, calling(call()), USER],
        "messages[2].role",
        "is 'user': expected a tool message that answers '1'",
    ),
    (
        "half answered",
        [USER, calling(call(), call("2")), answer()],
        "messages",
        "no tool message answers the tool call '2'",
    ),
    ("answers later", [USER, calling(call()), USER, answer()], "messages[2].role", "expected a tool message"),
    (
        "no id",
        [USER, calling(call()), {"role": "tool", "content": "x"}],
        "messages[2].tool_call_id",
        "is missing: name",
    ),
    ("numeric id", [USER, calling(call()), answer(1)], "messages[2].tool_call_id", "is 1: expected a text of 1 to 256"),  # type: ignore[arg-type]
    (
        "same id",
        [USER, calling(call(), call())],
        "messages[1].tool_calls[1].id",
        "is '1': expected an id that no other",
    ),
    ("empty id", [USER, calling(call(""))], "messages[1].tool_calls[0].id", "is '': expected a text of 1 to 256"),
    ("call as text", [USER, calling("f()")], "messages[1].tool_calls[0]", "is 'f()': expected an object"),
    (
        "calls as text",
        [USER, {**ASSISTANT, "tool_calls": "f"}],
        "messages[1].tool_calls",
        "expected a list of tool calls",
    ),
    (
        "custom call",
        [USER, calling(call(type="custom"))],
        "messages[1].tool_calls[0].type",
        "is 'custom': expected 'fun",
    ),
    ("call with more", [USER, calling(call(x=1))], "messages[1].tool_calls[0]", "has the key 'x': a tool call has id,"),
    (
        "no function",
        [USER, calling(call(function={}))],
        "messages[1].tool_calls[0].function",
        "is a dict: expected an obj",
    ),
    (
        "bad function",
        [USER, calling(call(name="a b"))],
        "messages[1].tool_calls[0].function.name",
        "is 'a b': expected",
    ),
    ("arguments", [USER, calling(call(arguments=5))], "messages[1].tool_calls[0].function.arguments", "is 5: expected"),
    ("call by the user", [{**USER, "tool_calls": [call()]}], "messages[0].tool_calls", "has the key 'tool_calls'"),
    (
        "reasoning",
        [USER, {**ASSISTANT, "reasoning": 5}, USER],
        "messages[1].reasoning",
        "is 5: expected a text or null",
    ),
    (
        "surrogate",
        [{"role": "user", "content": "a\ud800"}],
        "messages[0].content",
        "has a lone surrogate at character 1",
    ),
    ("bytes", [{"role": "user", "content": b"x"}], "messages[0].content", "is a bytes: expected a JSON value"),
    ("key of another type", [{"role": "user", "content": "x", 5: 1}], "messages[0]", "has the key 5: keys are strings"),
    ("too long", [{"role": "user", "content": "x" * (1 << 24)}], "messages[0].content", "is longer than 16777216 char"),
    ("infinite", [{"role": "user", "content": float("inf")}], "messages[0].content", "is inf: JSON has finite numbers"),
    ("huge number", [{"role": "user", "content": 10**100}], "messages[0].content", "is a number of more than 128 bits"),
    ("too many", [USER] * 100_000, "messages[66666].role", "more than 200000 values in one conversation"),
]


@pytest.mark.parametrize(("messages", "param", "text"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_broken_rule_is_named_with_its_place(messages: Any, param: str, text: str) -> None:
    with pytest.raises(ConversationError) as caught:
        validate_messages(messages)
    assert text in str(caught.value)
    assert caught.value.param == param
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_nesting_is_bounded() -> None:
    nested: Any = "x"
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(ConversationError, match="nested deeper than 64 levels"):
        validate_messages([{"role": "user", "content": nested}])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)
keys = st.sampled_from(["role", "content", "name", "tool_calls", "tool_call_id", "reasoning", "refusal", "other"])
roles = st.sampled_from(["system", "developer", "user", "assistant", "tool"])
calls = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from(["1", "2"]), "type": st.just("function")},
        optional={"function": st.fixed_dictionaries({"name": st.just("f"), "arguments": st.text() | json_values})},
    )
)
likely_messages = st.lists(
    st.fixed_dictionaries(
        {"role": roles, "content": st.text() | st.none()},
        optional={"tool_calls": calls, "tool_call_id": st.sampled_from(["1", "2"]), "name": st.text()},
    )
)


@given(
    messages=json_values | st.lists(st.dictionaries(keys, roles | json_values)) | likely_messages,
    tools=st.none() | json_values,
    tool_choice=st.none() | json_values,
)
def test_whatever_arrives_is_accepted_or_refused_and_never_breaks(messages: Any, tools: Any, tool_choice: Any) -> None:
    with suppress(ConversationError):
        checked = validate_messages(messages, tools=tools, tool_choice=tool_choice)
        assert checked[-1]["role"] in ("user", "tool")
        assert validate_messages(checked) == checked
