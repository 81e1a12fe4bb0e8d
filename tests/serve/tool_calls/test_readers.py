"""JSON and Python are read as json and ast read them, part by part."""

import ast
import json
import warnings
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tool_cases import cut

from mlc_llm.serve.tool_calls.json_reader import JsonReader
from mlc_llm.serve.tool_calls.python_reader import PythonReader


def read_json(parts: list[str]) -> dict[str, Any] | None:
    """The object, None where the text is none."""
    reader, members = JsonReader(), []
    for index, part in enumerate(parts):
        reader.put(part)
        while (event := reader.next())[0] != "more":
            kind, text = event
            if kind in ("end", "bad"):
                rest = reader.rest + "".join(parts[index + 1 :])
                return (
                    {key: json.loads(value) for key, value in members} if kind == "end" and not rest.strip() else None
                )
            if kind == "key":
                members.append((text, ""))
            elif kind == "value":
                members[-1] = (members[-1][0], members[-1][1] + text)
    return None


def oracle(text: str) -> Any:
    def refuse(word: str) -> None:
        raise ValueError(word)

    try:
        value = json.loads(text, parse_constant=refuse)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(
    value=st.dictionaries(st.text(), JSON, max_size=4),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    places=st.lists(st.integers(0, 500), max_size=5),
)
def test_objects_are_read_as_json_reads_them(value: Any, indent: Any, ascii_only: bool, places: list[int]) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_json(cut(text, places)) == value


@settings(max_examples=500, deadline=None)
@given(text=st.lists(st.sampled_from([*'{}[]":,\\ue012-+.aftrls\n ', '"a":', "true"]), max_size=14).map("".join))
def test_what_json_refuses_is_refused(text: str) -> None:
    text = '{"k": ' + text + "}"
    wanted = oracle(text)
    if wanted is None and oracle(text.replace("\n", " ")) is not None:
        wanted = read_json([text])  # a line break in a string is put right
    assert read_json([text]) == read_json(list(text)) == wanted


@pytest.mark.parametrize(
    "bad", ["NaN", "Infinity", "01", "1.", "+1", "'a'", "[1,]", '{"a":1,}', '"\\x"', "1" * 401, "[" * 70]
)
def test_values_that_are_no_json(bad: str) -> None:
    assert read_json(['{"k": ' + bad + "}"]) is None


def read_python(parts: list[str], **parameters: list[str]) -> tuple[list[tuple[str, Any]], str]:
    """The calls, and what kind of end they had."""
    reader, calls = PythonReader(parameters), []
    for part in parts:
        reader.put(part)
        while (event := reader.next())[0] != "more":
            if event[0] != "call":
                return calls, event[0]
            calls.append((event[1], json.loads(event[2])))
    return calls, "more"


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=10,
)


@settings(max_examples=300, deadline=None)
@given(value=LITERALS, places=st.lists(st.integers(0, 500), max_size=5))
def test_literals_are_read_as_python_prints_them(value: Any, places: list[int]) -> None:
    wanted = json.loads(json.dumps(value))
    assert read_python(cut(f"f(a={value!r})", places)) == ([("f", {"a": wanted})], "end")


@settings(max_examples=500, deadline=None)
@given(
    quote=st.sampled_from(["'", '"', "'''", '"""']),
    prefix=st.sampled_from(["", "r", "u"]),
    body=st.lists(st.sampled_from(["\\", "n", "x4", "1", "u00e9", "0", "'", '"', "a", "é", "\n", "\\'"]), max_size=8),
)
def test_strings_are_read_as_python_reads_them(quote: str, prefix: str, body: list[str]) -> None:
    token = f"{prefix}{quote}{''.join(body)}{quote}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # escapes that Python does not know
            wanted = ast.literal_eval(f"[{token}]")
    except SyntaxError:
        return
    calls, end = read_python([f"f(a=[{token}])"])
    assert (calls, end) == ([("f", {"a": wanted})], "end")
    assert read_python(list(f"f(a=[{token}])")) == (calls, end)


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ('f("x", 2)', {"p": "x", "q": 2}),
        ('f("x", q=2)', {"p": "x", "q": 2}),
        ('f(**{"p": 1}, q=2)', {"p": 1, "q": 2}),
        ("f(a=true, b=null, c=None, d=False)", {"a": True, "b": None, "c": None, "d": False}),
        ("f( a = ( 1 ) , )", {"a": 1}),
        ('f(a="\\ud83d\\ude00", b="\\/")', {"a": "😀", "b": "/"}),  # as JSON means them
        ("f(a=1_000, b=-2.5e3, c=.5, d=+1)", {"a": 1000, "b": -2500.0, "c": 0.5, "d": 1}),
    ],
)
def test_calls_as_models_write_them(text: str, arguments: dict[str, Any]) -> None:
    for parts in ([text], list(text)):
        assert read_python(parts, f=["p", "q"]) == ([("f", arguments)], "end")


@pytest.mark.parametrize(
    "text",
    [
        "f(a=g())", "f(a=b)", "f(a=1 + 1)", "f(a=f'x')", "f(a=b'x')", "f(a=1e999)", "f(a=0x10)", "f(1, 2, 3)",
        "f(1, p=2)",        "f(a=1, a=2)", "f(a=1, 2)", "f(**[1])", "f(a={1: 2})", "f(a=" + "[" * 70 + "]" * 70 + ")", 
        "f(a=" + "1" * 401 + ")",        "[f(a=1) f()]", "[]", "f[0]", "5", "f(a='\\ud800')", "(f())",
    ],
)  # fmt: skip
def test_what_is_not_a_call_with_literals_is_refused(text: str) -> None:
    for parts in ([text, " "], [*text, " "]):
        assert read_python(parts, f=["p", "q"])[1] == "bad"
