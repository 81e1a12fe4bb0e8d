"""Calls of tools and forms of answers, from the request to the response."""

import json
from pathlib import Path
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from mlc_llm.runtime.errors import RequestError

USER = [{"role": "user", "content": "Weather in Paris?"}]
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "unit": {"type": "string", "enum": ["c", "f"]}},
    "required": ["city", "unit"],
    "additionalProperties": False,
}
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": PARAMETERS}}]
ROOM = {"context_window": 2000, "pages": 2000}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Paris", "unit": "c"}}\n</tool_call>'


def test_a_call_that_the_model_writes_is_a_call(scripted: Any) -> None:
    response = scripted(f"I look. {CALL}", **ROOM).chat.completions.create(messages=USER, tools=TOOLS)
    choice = ChatCompletion.model_validate(response.model_dump()).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "I look."
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Paris", "unit": "c"})


def test_calls_are_streamed(scripted: Any) -> None:
    engine = scripted(CALL, **ROOM)
    chunks = list(engine.chat.completions.create(messages=USER, tools=TOOLS, stream=True, logprobs=True))
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump())
    calls = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    assert [call.id is not None for call in calls] == [True, *[False] * (len(calls) - 1)]
    assert "".join(call.function.arguments for call in calls) == '{"city": "Paris", "unit": "c"}'
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    tokens = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert "".join(token.token for token in tokens) == CALL


def test_without_tools_a_call_is_text(scripted: Any) -> None:
    engine = scripted(CALL, **ROOM)
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        choice = engine.chat.completions.create(messages=USER, **fields).choices[0]
        assert (choice.message.content, choice.message.tool_calls, choice.finish_reason) == (CALL, None, "stop")


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("seed", range(4))
def test_a_forced_call_fits_its_schema(scripted: Any, choice: Any, seed: int) -> None:
    """The model says noise; the grammar makes a call of it."""
    engine = scripted(**ROOM)
    response = engine.chat.completions.create(
        messages=USER, tools=TOOLS, tool_choice=choice, seed=seed, temperature=1.0, max_tokens=400,
        parallel_tool_calls=False,
    )  # fmt: skip
    (call,) = response.choices[0].message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in ("c", "f")
    assert response.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(4))
def test_an_answer_has_the_form_that_is_asked_for(scripted: Any, seed: int) -> None:
    engine = scripted(**ROOM)
    for wanted, fits in (
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS, "strict": True}},
         lambda text: set(json.loads(text)) == {"city", "unit"}),
        ({"type": "regex", "regex": "[a-c]{3}x"}, lambda text: text[-1] == "x" and len(text) == 4),
        ({"type": "choice", "choice": ["yes", "no"]}, lambda text: text in ("yes", "no")),
        ({"type": "json_object", "schema": json.dumps(PARAMETERS)}, lambda text: "city" in json.loads(text)),
    ):  # fmt: skip
        response = engine.chat.completions.create(
            messages=USER, response_format=wanted, seed=seed, temperature=1.0, max_tokens=400, n=2
        )
        for choice in response.choices:
            assert choice.finish_reason == "stop"
            assert fits(choice.message.content)


def test_a_call_and_its_result_are_part_of_the_next_prompt(scripted: Any, tokenizer: Any) -> None:
    engine = scripted("It is mild.", **ROOM)
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}
    messages = [
        *USER,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "12 degrees"},
    ]
    engine.chat.completions.create(messages=messages, tools=TOOLS, max_tokens=1)
    prompt = tokenizer.decode(engine.fake.texts[-1], skip_special_tokens=False)
    assert "12 degrees" in prompt
    assert '"weather"' in prompt


THINKING = (Path(__file__).parents[1] / "templates" / "chat_templates" / "qwen3.jinja").read_text()
OPEN = THINKING + "{{- '<think>\\n' }}"  # as DeepSeek-R1's template ends
YES_OR_NO = {"type": "choice", "choice": ["yes", "no"]}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": PARAMETERS, "strict": True}}


def thought(scripted: Any, answer: str, **fields: Any) -> Any:
    template = fields.pop("template", THINKING)
    engine = scripted(answer, chat_template=template, **ROOM)
    return engine.chat.completions.create(messages=USER, max_tokens=200, **fields).choices[0]


@pytest.mark.parametrize(
    "wanted",
    [
        YES_OR_NO,
        {"type": "regex", "regex": "yes|no"},
        {"type": "lark", "lark": "start: word+\nword: /[a-z]+/\n%ignore / +/"},
        {"type": "ebnf", "ebnf": 'root ::= answer\nanswer ::= "yes" | "no"'},
        {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": "yes"}}},
    ],
)
@pytest.mark.parametrize("template", [THINKING, OPEN])
def test_a_model_thinks_freely_before_an_answer_in_a_form(scripted: Any, wanted: Any, template: str) -> None:
    """It goes on thinking {in any words}; what it says then would be no answer without the form."""
    script = "Hm, {no}?\n</think>\n\nYES!"
    choice = thought(scripted, script if template == OPEN else f"<think>{script}", template=template,
                     response_format=wanted)  # fmt: skip
    assert choice.message.reasoning_content == "Hm, {no}?"
    assert "YES" not in choice.message.content
    assert choice.finish_reason == "stop" or "lark" in wanted


def test_a_model_may_answer_in_a_form_at_once_where_the_prompt_lets_it(scripted: Any) -> None:
    choice = thought(scripted, "no", response_format=YES_OR_NO)
    assert (choice.message.reasoning_content, choice.message.content) == (None, "no")
    fields = {"chat_template_kwargs": {"enable_thinking": False}}
    choice = thought(scripted, "<think>yes", response_format=YES_OR_NO, extra_body=fields)
    assert choice.message.reasoning_content is None
    assert choice.message.content in ("yes", "no")


def test_a_model_thinks_before_a_call_that_is_asked_for(scripted: Any) -> None:
    choice = thought(scripted, f"<think>Hm.</think>{CALL}", tools=TOOLS, tool_choice="required")
    assert choice.message.reasoning_content == "Hm."
    assert choice.message.tool_calls[0].function.name == "weather"


@pytest.mark.parametrize(
    ("fields", "end"),
    [
        ({}, "assistant\n"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": True}}}, "assistant\n"),
        ({"extra_body": {"chat_template_kwargs": {"enable_thinking": False}}}, "<think>\n\n</think>\n\n"),
        ({"reasoning_effort": "none"}, "<think>\n\n</think>\n\n"),
        ({"reasoning_effort": "low"}, "assistant\n"),
        (
            {"reasoning_effort": "none", "extra_body": {"chat_template_kwargs": {"enable_thinking": True}}},
            "assistant\n",
        ),
    ],
)
def test_a_request_can_switch_thinking_off(scripted: Any, tokenizer: Any, fields: Any, end: str) -> None:
    engine = scripted("x", chat_template=THINKING, **ROOM)
    engine.chat.completions.create(messages=USER, max_tokens=1, **fields)
    assert tokenizer.decode(engine.fake.texts[-1], skip_special_tokens=False).split("x")[0].endswith(end)


def test_an_answer_in_a_form_may_be_a_call_instead(scripted: Any) -> None:
    fields = {"tools": TOOLS, "response_format": {"type": "json_object"}}
    choice = thought(scripted, CALL, **fields)
    assert choice.message.tool_calls[0].function.name == "weather"
    choice = thought(scripted, '{"a": 1}', **fields)
    assert (choice.message.content, choice.message.tool_calls) == ('{"a": 1}', None)
    choice = thought(scripted, CALL, tool_choice="required", **fields)
    assert choice.message.tool_calls


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"guided_choice": ["yes", "no"]}, "yes"),
        ({"guided_regex": "[x-z]es"}, "yes"),
        ({"guided_grammar": 'root ::= "yes"'}, "yes"),
        ({"guided_grammar": 'start: "yes"'}, "yes"),
        ({"guided_json": {"const": "yes"}}, '"yes"'),
        ({"structured_outputs": {"json": '{"const": "yes"}', "regex": None}}, '"yes"'),
        ({"structured_outputs": {"choice": ["yes"]}}, "yes"),
        ({"structured_outputs": {"json_object": True}}, "{}"),
    ],
)
def test_vllm_s_spellings_of_a_form(scripted: Any, fields: dict[str, Any], answer: str) -> None:
    engine = scripted(answer, **ROOM)
    response = engine.chat.completions.create(messages=USER, extra_body=fields)
    assert response.choices[0].message.content == answer


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice.function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
         "response_format.json_schema.schema.not"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"guided_regex": "a"}}, "guided_regex"),
        ({"extra_body": {"structured_outputs": {"regex": "a", "json": {}}}}, "structured_outputs"),
        ({"extra_body": {"structured_outputs": {"structural_tag": "a"}}}, "structured_outputs.structural_tag"),
        ({"extra_body": {"structured_outputs": {"regex": 5}}}, "structured_outputs.regex"),
        ({"extra_body": {"guided_json": {"not": {}}}}, "guided_json.not"),
        ({"reasoning_effort": "hard"}, "reasoning_effort"),
        *(({"extra_body": {"chat_template_kwargs": {name: value}}}, f"chat_template_kwargs.{name}")
          for name, value in (("chat_template", "x"), ("enable_thinking", 1), ("thinking_budget", -1),
                              ("thinking_budget", True), ("reasoning_effort", "x" * 65), ("date_string", "a\nb"))),
        ({"response_format": {"type": "json_object"}, "extra_body": {"ignore_eos": True}}, "ignore_eos"),
        ({"response_format": {"type": "json_object"}, "extra_body": {"min_tokens": 1}}, "min_tokens"),
    ],
)  # fmt: skip
def test_what_is_refused(scripted: Any, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RequestError) as error:
        scripted().chat.completions.create(messages=USER, **fields)
    assert error.value.param == param
