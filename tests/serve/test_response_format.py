"""`response_format`, as OpenAI's, MLC-LLM's and our own clients send it."""

from typing import Any

import pytest
import tiny_model
from openai.types.shared_params import ResponseFormatJSONObject, ResponseFormatJSONSchema, ResponseFormatText
from pydantic import BaseModel, TypeAdapter

from mlc_llm.runtime.errors import RequestError
from mlc_llm.runtime.grammar import GrammarCompiler, GrammarLimits
from mlc_llm.runtime.tokenizer import Tokenizer
from mlc_llm.serve.response_format import read_response_format

TOKENIZER = Tokenizer(tiny_model.tokenizer())
COMPILER = GrammarCompiler(TOKENIZER, tiny_model.VOCAB, [tiny_model.IM_END], GrammarLimits(compile_seconds=300))
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
GBNF = 'root ::= "a" [0-9]+'


def fits(given: Any, text: str) -> bool:
    found = read_response_format(given)
    assert found is not None
    grammar = found.compile(COMPILER).new()
    return all(map(grammar.accept, TOKENIZER.encode(text))) and grammar.accept(tiny_model.IM_END)


def described(**fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "answer", **fields}}


@pytest.mark.parametrize(
    ("given", "answer", "other"),
    [
        ({"type": "json_object"}, '{"b": []}', "[]"),
        (described(schema=SCHEMA), '{"a": 1, "b": 2}', "{}"),
        (described(schema=SCHEMA, strict=None), '{"a": 1, "b": 2}', '{"a": "1"}'),
        (described(schema=SCHEMA, strict=True, description="it"), '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"type": "json_object", "schema": '{"type": "array", "items": {"type": "null"}}'}, "[null]", "{}"),
        ({"type": "json_object", "schema": SCHEMA}, '{"a": 1}', '{"a": 1, "b": 2}'),
        ({"type": "regex", "regex": "[0-9]{2}"}, "12", "1"),
        ({"type": "choice", "choice": ["yes", "no"]}, "yes", "maybe"),
        ({"type": "lark", "lark": 'start: "a" /[0-9]+/'}, "a12", "a"),
        ({"type": "ebnf", "ebnf": GBNF}, "a12", "a"),
        ({"type": "grammar", "grammar": GBNF}, "a12", "a"),
    ],
)
def test_answers_have_the_form_that_is_asked_for(given: Any, answer: str, other: str) -> None:
    assert fits(given, answer)
    assert not fits(given, other)


@pytest.mark.parametrize("given", [None, {"type": "text"}])
def test_any_text_needs_no_grammar(given: Any) -> None:
    assert read_response_format(given) is None


def test_forms_of_the_openai_client_are_known() -> None:
    forms: list[tuple[Any, dict[str, Any]]] = [
        (ResponseFormatText, {"type": "text"}),
        (ResponseFormatJSONObject, {"type": "json_object"}),
        (ResponseFormatJSONSchema, described(schema=SCHEMA, strict=True)),
    ]
    for form, given in forms:
        read_response_format(TypeAdapter(form).validate_python(given))


def test_schemas_of_pydantic_models_as_the_openai_client_sends_them() -> None:
    from openai.lib._parsing._completions import type_to_response_format_param

    class Step(BaseModel):
        explanation: str
        result: float | None

    class Solution(BaseModel):
        steps: list[Step]

    given = type_to_response_format_param(Solution)
    assert fits(given, '{"steps": [{"explanation": "x", "result": null}]}')
    assert not fits(given, '{"steps": [{"explanation": "x"}]}')


@pytest.mark.parametrize(
    ("given", "param", "code"),
    [
        ("json", "response_format", "invalid_type"),
        ({}, "response_format.type", "unsupported_value"),
        ({"type": "xml"}, "response_format.type", "unsupported_value"),
        ({"type": ["text"]}, "response_format.type", "unsupported_value"),
        ({"type": "text", "regex": "a"}, "response_format.regex", "unknown_field"),
        ({"type": "json_schema"}, "response_format.json_schema", "missing_field"),
        ({"type": "json_schema", "json_schema": "{}"}, "response_format.json_schema", "invalid_type"),
        (described(), "response_format.json_schema.schema", "missing_field"),
        (described(schema=[]), "response_format.json_schema.schema", "invalid_type"),
        (described(schema={}, strict="yes"), "response_format.json_schema.strict", "invalid_type"),
        (described(schema={}, extra=1), "response_format.json_schema.extra", "unknown_field"),
        (described(schema={"not": {}}), "response_format.json_schema.schema.not", "unsupported_value"),
        ({"type": "json_object", "schema": "{"}, "response_format.schema", "invalid_value"),
        ({"type": "regex"}, "response_format.regex", "missing_field"),
        ({"type": "regex", "regex": "("}, "response_format.regex", "invalid_value"),
        ({"type": "lark", "lark": "start: b"}, "response_format.lark", "invalid_value"),
        ({"type": "grammar", "grammar": "x"}, "response_format.grammar", "invalid_value"),
        ({"type": "choice", "choice": "yes"}, "response_format.choice", "invalid_type"),
        ({"type": "choice", "choice": ["yes", 1]}, "response_format.choice.1", "invalid_type"),
        ({"type": "choice", "choice": []}, "response_format.choice", "invalid_value"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(given: Any, param: str, code: str) -> None:
    with pytest.raises(RequestError) as caught:
        fits(given, "")
    assert (caught.value.param, caught.value.code) == (param, code)
