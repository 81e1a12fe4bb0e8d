"""Answers are taken apart into content and calls, the same pieces however the text arrives, and nothing is lost."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_cases import TOOLS, called, cut, parsed, splits, tool

from mlc_llm.serve.tool_calls import FORMATS, CallArguments, ToolCallParser
from mlc_llm.serve.tool_calls.parser import MAX_HELD

PARIS = called("weather", city="Paris")
TIME = called("get-time")
JSON_PARIS = '{"name": "weather", "arguments": {"city": "Paris"}}'
JSON_TIME = '{"name": "get-time", "arguments": {}}'
DEEPSEEK_PARIS = 'function<｜tool▁sep｜>weather\n```json\n{"city": "Paris"}\n```<｜tool▁call▁end｜>'
DEEPSEEK_V3_1 = '<｜tool▁call▁begin｜>weather<｜tool▁sep｜>{"city": "Paris"}<｜tool▁call▁end｜>'
BEGIN = "<｜tool▁calls▁begin｜>"
QWEN_PARIS = "<function=weather>\n<parameter=city>\nParis\n</parameter>\n</function>"
QWEN_TIME = "<tool_call>\n<function=get-time>\n</function>\n</tool_call>"
GLM_PARIS = "<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>"
DEEPSEEK_TIME = "function<｜tool▁sep｜>get-time\n```json\n{}\n```<｜tool▁call▁end｜>"


def content(text: str) -> tuple[str, str]:
    return ("content", text)


# As the families' own templates print calls, or their model cards show answers.
ANSWERS: list[tuple[str, str, list[tuple[str, ...]]]] = [
    ("hermes", f"<tool_call>\n{JSON_PARIS}\n</tool_call>", [PARIS]),
    ("hermes", f"<tool_call>\n{JSON_PARIS}\n</tool_call>\n<tool_call>\n{JSON_TIME}\n</tool_call>", [PARIS, TIME]),
    (
        "hermes",
        f"Let me look.\n\n<tool_call>{JSON_PARIS}</tool_call>\nDone.",
        [content("Let me look."), PARIS, content("Done.")],
    ),
    ("hermes", "Just <text> with <tool", [content("Just <text> with <tool")]),
    ("hermes", "  spaces \n stay  ", [content("  spaces \n stay  ")]),
    ("llama3_json", '{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ("llama3_json", '<|python_tag|>{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ("llama3_json", '{"type": "function", "name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Paris"}}; {"name": "get-time", "parameters": {}}',
        [PARIS, TIME],
    ),
    ("llama3_json", '<|python_start|>[weather(city="Paris")]<|python_end|>', [PARIS]),
    ("pythonic", '[weather(city="Paris"), get-time()]', [PARIS, TIME]),
    ("pythonic", "[weather(city='Paris')]", [PARIS]),
    ("mistral", f"[TOOL_CALLS] [{JSON_PARIS}, {JSON_TIME}]", [PARIS, TIME]),
    ("mistral", '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Paris"}, "id": "abcdefghi"}]', [PARIS]),
    ("mistral_named", '[TOOL_CALLS]weather[ARGS]{"city": "Paris"}[TOOL_CALLS]get-time[ARGS]{}', [PARIS, TIME]),
    ("mistral_named", '[TOOL_CALLS]weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris"}', [PARIS]),
    ("mistral_named", '[TOOL_CALLS]weather{"city": "Paris"}', [PARIS]),
    (
        "deepseek",
        f"{BEGIN}<｜tool▁call▁begin｜>{DEEPSEEK_PARIS}\n<｜tool▁call▁begin｜>{DEEPSEEK_TIME}<｜tool▁calls▁end｜>",
        [PARIS, TIME],
    ),
    ("deepseek", f"Hm.<｜tool▁call▁begin｜>{DEEPSEEK_PARIS}", [content("Hm."), PARIS]),
    (
        "deepseek_v3_1",
        BEGIN + DEEPSEEK_V3_1 + "<｜tool▁call▁begin｜>get-time<｜tool▁sep｜>{}<｜tool▁call▁end｜>",
        [PARIS, TIME],
    ),
    ("gemma", '```tool_code\nweather(city="Paris")\n```', [PARIS]),
    (
        "gemma",
        '```tool_code\n[weather(city="Paris"), get-time()]\n```\nThat is all.',
        [PARIS, TIME, content("That is all.")],
    ),
    (
        "gemma",
        'I do that:\n```json\n{"name": "weather", "parameters": {"city": "Paris"}}\n```',
        [content("I do that:"), PARIS],
    ),
    ("gemma", '{"name": "weather", "parameters": {"city": "Paris"}}', [PARIS]),
    ("phi4", f"<|tool_call|>[{JSON_PARIS}, {JSON_TIME}]<|/tool_call|>", [PARIS, TIME]),
    ("phi4", f"<|tool_call|>{JSON_PARIS}<|/tool_call|>", [PARIS]),
    ("functools", f"functools[{JSON_PARIS}]", [PARIS]),
    ("gorilla", 'weather(city="Paris")', [PARIS]),
    ("gorilla", '<<function>>weather(city="Paris")<<function>>get-time()', [PARIS, TIME]),
    ("gorilla", '["weather(city=\'Paris\')", "get-time()"]', [PARIS, TIME]),
    ("qwen3_coder", f"<tool_call>\n{QWEN_PARIS}\n</tool_call>", [PARIS]),
    (
        "qwen3_coder",
        f"I look.\n<tool_call>\n{QWEN_PARIS}\n</tool_call>\n{QWEN_TIME}",
        [content("I look."), PARIS, TIME],
    ),
    ("glm4_5", f"\n<tool_call>weather\n{GLM_PARIS}\n</tool_call>", [PARIS]),
    ("glm4_5", f"Hm.\n<tool_call>weather{GLM_PARIS}</tool_call><tool_call>get-time\n</tool_call>",
     [content("Hm."), PARIS, TIME]),
]  # fmt: skip

# What models do wrong, and what only looks like a call; None stands for the answer as content.
ODD: list[tuple[str, str, list[tuple[str, ...]] | None]] = [
    ("hermes", "<tool_call> is a mark", [content("<tool_call> is a mark")]),
    ("hermes", f"<tool_call>{JSON_PARIS[:-1]}</tool_call> ok", [PARIS, content("ok")]),  # a brace too few
    ("hermes", f"<tool_call>{JSON_PARIS}}}}}</tool_call> ok", [PARIS, content("ok")]),  # and too many
    ("hermes", f"<tool_call>{JSON_PARIS}", [PARIS]),
    ("hermes", f"<tool_call>{JSON_PARIS}</tool_c", [PARIS]),
    ("hermes", f"<tool_call>{JSON_PARIS}\nand text", [PARIS, content("and text")]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"city": "Par', [("call", "weather", '{"city": "Par')]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": {"a": tru', [("call", "weather", '{"a": tru')]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"a": b}}</tool_call>.',
        [("call", "weather", '{"a": b}}'), content(".")],
    ),
    ("hermes", '<tool_call>{"name": "wea', [content('<tool_call>{"name": "wea')]),
    ("hermes", '<tool_call>{"name": "a b", "arguments": {}}</tool_call>', None),
    ("hermes", '<tool_call>{"name": 5, "arguments": {}}', None),
    ("hermes", '<tool_call>{"name": "weather", "arguments": [1]}', None),
    ("hermes", '<tool_call>{"arguments": {"city": "Paris"}, "name": "weather"}</tool_call>', [PARIS]),
    ("hermes", '<tool_call>{"name": "weather", "arguments": "{\\"city\\": \\"Paris\\"}"}</tool_call>', [PARIS]),
    ("hermes", '<tool_call>{"name": "get-time", "arguments": null}</tool_call>', [TIME]),
    ("hermes", '<tool_call>{"name": "get-time"}</tool_call>', [TIME]),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>', [called("unknown")]),
    (
        "hermes",
        '<tool_call>{"name": "weather", "arguments": {"city": "a\nb", "x": None, "y": True}}</tool_call>',
        [("call", "weather", '{"city": "a\\nb", "x": null, "y": true}')],
    ),
    ("hermes", "<tool_call><tool_call>" + JSON_PARIS, [content("<tool_call>"), PARIS]),
    ("hermes", f"<tool_call>[{JSON_PARIS}]</tool_call>", [PARIS]),
    ("llama3_json", '{"name": "Alice", "age": 3}', None),
    ("llama3_json", '{"name": "weather", "is": "a word"}', [content('{"name": "weather", "is": "a word"}')]),
    ("llama3_json", "[1, 2, 3]", [content("[1, 2, 3]")]),
    ("llama3_json", "<|python_tag|>import os", [content("<|python_tag|>import os")]),
    (
        "llama3_json",
        '{"name": "weather", "parameters": {"city": "Paris"}} is the call',
        [PARIS, content("is the call")],
    ),
    ("pythonic", "[weather(city=where())]", [content("[weather(city=where())]")]),
    ("pythonic", '[weather(city="Paris"), 5]', [PARIS, content(", 5]")]),
    ("pythonic", "[weather(", [content("[weather(")]),
    ("pythonic", 'weather("Paris", 3)', [called("weather", city="Paris", days=3)]),
    ("pythonic", "[unknown()]", [content("[unknown()]")]),
    ("mistral", "[TOOL_CALLS] begin calls {", [content("[TOOL_CALLS] begin calls {")]),
    ("mistral", "[TOOL_CALLS] begin { x", [content("[TOOL_CALLS] begin { x")]),
    ("deepseek", "<｜tool▁calls▁begin｜>nothing", [content("<｜tool▁calls▁begin｜>nothing")]),
    ("gemma", '```json\n{"a": 1}\n```', [content('```json\n{"a": 1}\n```')]),
    ("gemma", "```python\nx\n```", [content("```python\nx\n```")]),
    ("functools", "import functools\nfunctools.cache", [content("import functools\nfunctools.cache")]),
    ("gorilla", "weather is nice", [content("weather is nice")]),
    ("qwen3_coder", f"{QWEN_PARIS}</tool_call> ok", [PARIS, content("ok")]),
    ("qwen3_coder", f"<tool_call>{QWEN_PARIS}{QWEN_PARIS}</tool_call>", [PARIS, PARIS]),
    ("qwen3_coder", f"<tool_call>{QWEN_PARIS.replace('</function>', '')}</tool_call>", [PARIS]),
    ("qwen3_coder", f"<tool_call>{JSON_PARIS}</tool_call>", [PARIS]),
    ("qwen3_coder", "<function=weather> is a tag", [content("<function=weather> is a tag")]),
    ("qwen3_coder", "<tool_call><function=a b>", [content("<tool_call><function=a b>")]),
    ("qwen3_coder", f"<tool_call><function={'a' * 65}></function>", None),
    ("qwen3_coder", QWEN_PARIS[:36], [("call", "weather", '{"city": "')]),
    ("qwen3_coder", QWEN_PARIS[:39], [("call", "weather", '{"city": "Par')]),
    ("qwen3_coder", QWEN_PARIS[:-3], [("call", "weather", '{"city": "Paris"')]),
    (
        "qwen3_coder",
        "<tool_call><function=weather><parameter=city>1</parameter> or so</function></tool_call>.",
        [("call", "weather", '{"city": "1"or so</function>'), content(".")],
    ),
    ("glm4_5", "<tool_call> is a mark", [content("<tool_call> is a mark")]),
    ("glm4_5", "<tool_call>weather is nice", [content("<tool_call>weather is nice")]),
    ("glm4_5", f"<tool_call>{JSON_PARIS}</tool_call>", [PARIS]),
    ("glm4_5", "<tool_call>weather<arg_key></arg_key>", [("call", "weather", "</arg_key>")]),
    (
        "glm4_5",
        f"<tool_call>weather<arg_key>{'k' * 250}</arg_key><arg_value>v</arg_value></tool_call>",
        [called("weather", **{"k" * 250: "v"})],
    ),
]


@pytest.mark.parametrize(("form", "answer", "expected"), [*ANSWERS, *ODD])
def test_every_split_of_an_answer_gives_the_same_pieces(
    form: str, answer: str, expected: list[tuple[str, ...]] | None
) -> None:
    for parts in splits(answer):
        assert parsed(form, parts) == (expected or [content(answer)])


def test_arguments_stream() -> None:
    parser = ToolCallParser(FORMATS["hermes"], TOOLS)
    parser.put('<tool_call>{"name": "weather", "arguments": {"city": "')
    assert parser.put("Pa") == [CallArguments(0, "Pa")]
    assert parser.put("ris") == [CallArguments(0, "ris")]


def test_text_without_calls_passes_at_once() -> None:
    parser = ToolCallParser(FORMATS["hermes"], TOOLS)
    for word in ("One", " two", " < three", " > four"):
        assert [piece.text for piece in parser.put(word)] == [word]


@pytest.mark.parametrize(
    ("form", "start"),
    [
        ("hermes", '<tool_call>{"arguments": {"city": "'),
        ("pythonic", '[weather(city="'),
        ("mistral", "[TOOL_CALLS]" + "x" * 600),
        ("hermes", "<tool_call>" + " " * 300),
    ],
)
def test_what_stays_open_for_too_long_is_content(form: str, start: str) -> None:
    text = start + "x" * (MAX_HELD + 10)
    assert parsed(form, [text]) == parsed(form, cut(text, range(0, len(text), 1000))) == [content(text)]
    parser = ToolCallParser(FORMATS[form], TOOLS)
    held = max(len(text[:end]) - sum(len(p.text) for p in pieces) for end, pieces in _growing(parser, text))
    assert held <= MAX_HELD + 1024


def _growing(parser: ToolCallParser, text: str) -> Any:
    pieces: list[Any] = []
    for start in range(0, len(text), 512):
        pieces += parser.put(text[start : start + 512])
        yield start + 512, pieces


# Texts made of what calls are made of: most are none, and none may be lost or make trouble.
_MARKS = {text for form in FORMATS.values() for mark in form.marks for text in (mark.open, mark.close) if text}
_PARTS = [
    *sorted(_MARKS),
    *"{}[]()\"'\\,:;= \n", "name", "arguments", "weather", '{"name": "weather", "arguments": {', "weather(", "city=",
    "1", "-2.5e", "true", "None", "é", "[ARGS]", "<｜tool▁sep｜>", "function", "```",
    "<parameter=", "</parameter>", "</function>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>",
]  # fmt: skip
_GARBAGE = st.lists(st.sampled_from(_PARTS), max_size=25).map("".join)


@settings(max_examples=60, deadline=None)
@given(text=_GARBAGE, places=st.lists(st.integers(0, 1000), max_size=6))
@pytest.mark.parametrize("form", FORMATS)
def test_garbage_gives_the_same_pieces_however_it_is_split(form: str, text: str, places: list[int]) -> None:
    whole = parsed(form, [text])
    assert parsed(form, cut(text, places)) == whole
    assert parsed(form, list(text)) == whole


@settings(max_examples=60, deadline=None)
@given(text=_GARBAGE)
@pytest.mark.parametrize("form", FORMATS)
def test_an_answer_without_calls_is_its_content(form: str, text: str) -> None:
    pieces = parsed(form, [text])
    if not any(piece[0] == "call" for piece in pieces):
        assert "".join(piece[1] for piece in pieces) == text


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
_ARGUMENTS = st.dictionaries(st.sampled_from(["city", "days", "a b", "é", "none", "x1"]), _JSON, max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.sampled_from(["weather", "get-time"]), _ARGUMENTS), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 1000), max_size=6),
)
@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if not form.parameter])
def test_calls_come_back_as_they_were_written(
    form: str, calls: list[tuple[str, dict[str, Any]]], places: list[int]
) -> None:
    pieces = parsed(form, cut(FORMATS[form].write(calls), places))
    assert [(name, json.loads(arguments)) for _, name, arguments in pieces] == calls


def test_arguments_may_nest_deeply() -> None:
    arguments: dict[str, Any] = {}
    for _ in range(190):
        arguments = {"children": arguments}
    answer = FORMATS["hermes"].write([("weather", arguments)])
    assert parsed("hermes", [answer]) == [called("weather", **arguments)]


TEXT_OR_NULL = {"anyOf": [{"type": "string"}, {"type": "null"}]}
TYPED = {
    "type": "object",
    "properties": {
        "text": {"type": "string"},
        "words": {"$ref": "#/$defs/words"},
        "maybe": {"type": ["string", "null"]},
        "either": {"$ref": "#/$defs/either"},
        "number": {"type": "number"},
        "list": {"type": "array"},
        "map": {"type": "object"},
        "flag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]},
    },
    "$defs": {"words": {"enum": ["1", "null"]}, "either": TEXT_OR_NULL},
}
_BETWEEN_TAGS = st.text().filter(lambda text: "</parameter>" not in text and "</arg_value>" not in text)
_NOT_A_WORD = _BETWEEN_TAGS.filter(lambda text: text.strip() not in ("null", "None"))
_TYPED = st.fixed_dictionaries(
    {},
    optional={
        "text": _BETWEEN_TAGS | st.sampled_from(["null", "12", '"a"', "\n", "a\n\n", "</param", "[1"]),
        "words": st.sampled_from(["1", "null"]),
        "maybe": st.none() | _NOT_A_WORD,
        "either": st.none() | _NOT_A_WORD,
        "number": st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        "list": st.lists(_JSON | st.sampled_from(["</parameter>", "</arg_value>"]), max_size=3),
        "map": st.dictionaries(st.text(), _JSON, max_size=3),
        "flag": st.none() | st.booleans(),
    },
)


@settings(max_examples=200, deadline=None)
@given(arguments=_TYPED, places=st.lists(st.integers(0, 1000), max_size=6))
@pytest.mark.parametrize("form", [name for name, form in FORMATS.items() if form.parameter])
def test_values_between_tags_have_the_types_of_the_schema(
    form: str, arguments: dict[str, Any], places: list[int]
) -> None:
    pieces = parsed(form, cut(FORMATS[form].write([("f", arguments)]), places), [tool("f", TYPED)])
    assert [(name, json.loads(text)) for _, name, text in pieces] == [("f", arguments)]


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string"}, "12"),
        ({"type": "integer"}, 12),
        ({}, 12),
        (None, 12),
        ({"type": 5}, 12),
        ({"$ref": "#/$defs/nowhere"}, 12),
        ({"$ref": "#/properties/x"}, 12),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, 12),
        ({"enum": ["12", "13"]}, "12"),
        ({"const": "12"}, "12"),
        ({"enum": [12]}, 12),
    ],
)
def test_a_value_is_text_only_where_the_schema_says_so(schema: Any, value: Any) -> None:
    tools = [tool("f", {"type": "object", "properties": {"x": schema}})]
    answer = "<tool_call>f<arg_key>x</arg_key><arg_value>12</arg_value></tool_call>"
    assert parsed("glm4_5", [answer], tools) == [called("f", x=value)]


@pytest.mark.parametrize(
    ("written", "value"), [("True", True), ("None", None), ("a b", "a b"), ("[1", "[1"), ("'a'", "'a'")]
)
def test_what_is_no_json_is_put_right_or_text(written: str, value: Any) -> None:
    answer = f"<tool_call>f<arg_key>x</arg_key><arg_value>{written}</arg_value></tool_call>"
    assert parsed("glm4_5", [answer], [tool("f")]) == [called("f", x=value)]


def test_texts_between_tags_stream() -> None:
    parser = ToolCallParser(FORMATS["qwen3_coder"], TOOLS)
    parser.put("<tool_call>\n<function=weather>\n<parameter=city>\n")
    assert parser.put('P"a') == [CallArguments(0, 'P\\"a')]
    assert parser.put("ris\n</para") == [CallArguments(0, "ris")]
    assert parser.put("meter>\n") == [CallArguments(0, '"')]


def test_a_value_that_never_ends_is_text() -> None:
    text = "<tool_call>f<arg_key>x</arg_key><arg_value>[" + "1" * (MAX_HELD + 10)
    for parts in ([text], cut(text, range(0, len(text), 1000))):
        assert parsed("glm4_5", parts, [tool("f")]) == [("call", "f", '{"x": "[' + "1" * (MAX_HELD + 10))]
