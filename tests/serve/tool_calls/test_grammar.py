"""Under the grammar a model calls tools and nothing else, and what it writes parses back into valid arguments."""

import json
import random
from contextlib import suppress
from typing import Any

import jsonschema
import pytest
from tool_cases import parsed, tool

from mlc_llm.runtime.errors import RequestError
from mlc_llm.runtime.grammar import Grammar, GrammarCompiler
from mlc_llm.runtime.token_mask import new_mask
from mlc_llm.serve.tool_calls import FORMATS, ReasoningMarks, calls_grammar, reasoning_rules

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 8},
        "unit": {"enum": ["c", "f"]},
        "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 9}, "maxItems": 2},
        "place": {"$ref": "#/$defs/place"},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"place": {"type": "object", "properties": {"x": {"type": "boolean"}}, "additionalProperties": False}},
}
OTHER = {"type": "object", "properties": {"a b": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["a b"]}
TOOLS = [tool("get", SCHEMA, strict=True), tool("get_all", OTHER), tool("stop-now")]
SCHEMAS = {"get": SCHEMA, "get_all": OTHER, "stop-now": {"type": "object", "maxProperties": 0}}
NAMED = {"type": "function", "function": {"name": "get_all"}}
CALLS = [("get", {"city": 'Ö"]}', "days": [1, 2]}), ("stop-now", {}), ("get_all", {"a b": 7})]
WRONG = [("get", {"city": "x"})]


class _Bytes:
    """A vocabulary of all bytes, an end token, and special tokens."""

    def __init__(self, special: tuple[str, ...]) -> None:
        texts = ["</s>", *special]
        self._tokens = [bytes([byte]) for byte in range(256)] + [text.encode() for text in texts]
        self.special_ids = frozenset(range(256, len(self._tokens)))
        self.ids = {text: 257 + index for index, text in enumerate(special)}
        self.compiler = GrammarCompiler(self, len(self._tokens), [256])

    def vocabulary(self, size: int) -> list[bytes]:
        return self._tokens[:size]

    def new(self, grammar: str | None) -> Grammar:
        assert grammar is not None
        return self.compiler.compile_lark(grammar, param="tools").new()

    def allowed(self, answer: Grammar) -> list[int]:
        mask = new_mask(len(self._tokens))
        answer.fill_mask(mask)
        return [token for token in range(len(self._tokens)) if mask[token // 32] >> token % 32 & 1]

    def accepts(self, grammar: str | None, text: str) -> bool:
        answer = self.new(grammar)
        while text:
            found = next((mark for mark in self.ids if text.startswith(mark)), None)
            tokens = [self.ids[found]] if found else text[0].encode()
            if not all(answer.accept(token) for token in tokens):
                return False
            text = text[len(found) if found else 1 :]
        return 256 in self.allowed(answer)

    def sample(self, grammar: str | None, seed: int, limit: int = 2000) -> str | None:
        """A random text of the grammar; None for one that does not come to an end."""
        generator, answer, text = random.Random(seed), self.new(grammar), b""
        for _ in range(limit):
            allowed = self.allowed(answer)
            if 256 in allowed and generator.random() < 0.3:
                return text.decode()
            plain = [token for token in allowed if token > 256 or 32 <= token < 127]
            if not plain and 256 in allowed:
                return text.decode()
            token = generator.choice(plain or allowed)
            assert answer.accept(token)
            text += self._tokens[token]
        return None


VOCABULARIES = {
    (name, special): _Bytes(form.tokens if special else ())
    for name, form in FORMATS.items()
    for special in (False, True)
}
COMPILER = VOCABULARIES["hermes", False].compiler
BOTH = pytest.mark.parametrize(("name", "special"), VOCABULARIES)


@BOTH
def test_calls_of_the_tools_are_allowed_and_nothing_else(name: str, special: bool) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, special]
    grammar = calls_grammar(form, TOOLS, "required", vocabulary.compiler.json_term, tokens=vocabulary.ids)
    assert vocabulary.accepts(grammar, form.write(CALLS))
    assert vocabulary.accepts(grammar, form.write(CALLS[1:2]))
    assert not vocabulary.accepts(grammar, form.write(WRONG))
    assert not vocabulary.accepts(grammar, form.write([("other", {})]))
    for text in ("", "Hello", form.write(CALLS) + " And more."):
        assert not vocabulary.accepts(grammar, text)


@BOTH
def test_one_call_where_calls_must_not_be_parallel(name: str, special: bool) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, special]
    grammar = calls_grammar(
        form, TOOLS, "required", vocabulary.compiler.json_term, parallel=False, tokens=vocabulary.ids
    )
    assert vocabulary.accepts(grammar, form.write(CALLS[:1]))
    assert not vocabulary.accepts(grammar, form.write(CALLS))


@BOTH
def test_a_named_tool_is_called_once(name: str, special: bool) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, special]
    grammar = calls_grammar(form, TOOLS, NAMED, vocabulary.compiler.json_term, tokens=vocabulary.ids)
    assert vocabulary.accepts(grammar, form.write(CALLS[2:]))
    assert not vocabulary.accepts(grammar, form.write(CALLS[1:2]))
    assert not vocabulary.accepts(grammar, form.write(CALLS[2:] * 2))


@BOTH
def test_with_strict_tools_text_is_free_and_calls_are_valid(name: str, special: bool) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, special]
    grammar = calls_grammar(form, TOOLS, "auto", vocabulary.compiler.json_term, tokens=vocabulary.ids)
    before = "" if form.bare else "I look <into> it [now]:\n"
    for text in ("", "Just text, with {braces}.", before + form.write(CALLS)):
        assert vocabulary.accepts(grammar, text)
    assert not vocabulary.accepts(grammar, before + form.write(WRONG))
    own = form.write(CALLS)
    for mark in form.marks:
        lets_through = mark.known_only and not own.startswith(mark.open)
        assert vocabulary.accepts(grammar, f"Text {mark.open} more") == lets_through
    one = calls_grammar(form, TOOLS, None, vocabulary.compiler.json_term, parallel=False, tokens=vocabulary.ids)
    assert vocabulary.accepts(one, before + form.write(CALLS[:1]))
    assert not vocabulary.accepts(one, before + form.write(CALLS))


@BOTH
def test_whatever_the_grammar_allows_parses_into_valid_calls(name: str, special: bool) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, special]
    grammar = calls_grammar(form, TOOLS, "required", vocabulary.compiler.json_term, tokens=vocabulary.ids)
    texts = [text for seed in range(6) if (text := vocabulary.sample(grammar, seed)) is not None]
    assert texts
    for text in texts:
        pieces = parsed(name, [text], TOOLS)
        assert pieces
        for kind, called, arguments in pieces:
            assert kind == "call"
            jsonschema.validate(json.loads(arguments), SCHEMAS[called])


@pytest.mark.parametrize("is_open", [False, True])
@pytest.mark.parametrize("special", [False, True])
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_a_model_may_think_first(choice: str, special: bool, is_open: bool) -> None:
    marks, form = ReasoningMarks("<think>", "</think>"), FORMATS["hermes"]
    vocabulary = _Bytes((*form.tokens, marks.open, marks.close) if special else ())
    rules = reasoning_rules(marks, tokens=vocabulary.ids, is_open=is_open)
    vocabulary.compiler = vocabulary.compiler.inside(f"start: reasoning answer\n{rules}")
    grammar = calls_grammar(form, TOOLS, choice, vocabulary.compiler.json_term, tokens=vocabulary.ids)
    thoughts = ("" if is_open else "<think>") + "\nWhich one? <a>\n</think>\n\n"
    assert vocabulary.accepts(grammar, thoughts + form.write(CALLS))
    assert not vocabulary.accepts(grammar, thoughts + form.write(WRONG))
    assert vocabulary.accepts(grammar, form.write(CALLS)) != is_open
    assert vocabulary.accepts(grammar, thoughts + "Text") == (choice == "auto")


@pytest.mark.parametrize("choice", ["none", "auto", None])
def test_an_answer_is_free_where_nothing_is_forced(choice: str | None) -> None:
    assert calls_grammar(FORMATS["hermes"], TOOLS[1:], choice, COMPILER.json_term) is None
    assert calls_grammar(FORMATS["hermes"], [], choice, COMPILER.json_term) is None
    assert calls_grammar(FORMATS["hermes"], TOOLS, "none", COMPILER.json_term) is None


@pytest.mark.parametrize("name", ["hermes", "pythonic"])
def test_a_schema_that_cannot_be_expressed_is_let_go_unless_it_is_strict(name: str) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, False]
    schema = {"type": "object", "properties": {"x": {"not": {"type": "null"}}}}
    grammar = calls_grammar(form, [tool("f", schema)], "required", COMPILER.json_term)
    assert vocabulary.accepts(grammar, form.write([("f", {"x": "anything"})]))
    with pytest.raises(RequestError) as caught:
        calls_grammar(form, [TOOLS[1], tool("f", schema, strict=True)], "required", COMPILER.json_term)
    assert caught.value.param == "tools[1].function.parameters.properties.x.not"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"type": "integer"}}, "additionalProperties": {"type": "integer"}},
        {"type": "object", "properties": {"x": {"type": "integer"}, "none": {"type": "null"}}},
        {"anyOf": [{"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}]},
        {"type": "object", "required": ["x"]},
    ],
)
def test_schemas_that_keywords_cannot_express_are_unpacked(schema: dict[str, Any]) -> None:
    vocabulary = VOCABULARIES["pythonic", False]
    grammar = calls_grammar(FORMATS["pythonic"], [tool("f", schema)], "required", COMPILER.json_term)
    assert vocabulary.accepts(grammar, '[f(**{"x": 1})]')
    assert not vocabulary.accepts(grammar, "[f(x=1)]")
    assert parsed("pythonic", ['[f(**{"x": 1})]'], [tool("f", schema)]) == [("call", "f", '{"x": 1}')]


def test_properties_may_stand_in_parts_of_a_schema() -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "boolean"}},
        "required": ["a"],
        "allOf": [{"properties": {"b": {"type": "boolean"}}, "required": ["b"]}],
    }
    vocabulary = _Bytes(())
    grammar = calls_grammar(FORMATS["hermes"], [tool("f", schema)], "required", vocabulary.compiler.json_term)
    assert vocabulary.accepts(grammar, FORMATS["hermes"].write([("f", {"a": True, "b": True})]))
    assert not vocabulary.accepts(grammar, FORMATS["hermes"].write([("f", {"a": True})]))


@pytest.mark.parametrize("name", ["hermes", "pythonic", "qwen3_coder", "glm4_5"])
@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"x": {"type": "string"}}, "required": 5},
        {"properties": {"x": {"type": "string"}}, "required": [["x"]]},
        {"properties": {"x": {"type": "string"}}, "required": ["y"]},
        {"properties": 5},
        {"properties": {"x": 5}},
        {"properties": {"x": {"type": "string", "minLength": "a"}}},
        {"properties": {"x": {"type": "string", "pattern": 5}}},
        {"properties": {"x": {"$ref": "#/nowhere"}}},
    ],
)
def test_a_schema_that_is_none_is_refused_in_words(name: str, schema: dict[str, Any]) -> None:
    """Without `strict` it may be let go instead."""
    for strict in (True, False):
        with pytest.raises(RequestError, match=r"^tools") if strict else suppress(RequestError):
            grammar = calls_grammar(FORMATS[name], [tool("f", schema, strict=strict)], "required", COMPILER.json_term)
            VOCABULARIES[name, False].new(grammar)


TAGGED = pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if form.parameter])


@TAGGED
@pytest.mark.parametrize(
    ("schema", "fit", "unfit"),
    [
        ({"type": "string", "minLength": 2, "maxLength": 3}, ["ab", "\n\n"], ["a", "abcd"]),
        ({"type": "string", "pattern": "^[a-z]+$"}, ["abc"], ["a1", ""]),
        ({"type": "string", "pattern": r"^(a|b)\d"}, ["a1", "b2 and more"], ["c1", " a1"]),
        ({"type": "string", "pattern": "x|y"}, ["axe", "y"], ["z"]),
        ({"enum": ["<a>", "b/c"]}, ["<a>", "b/c"], ["b"]),
        ({"type": ["string", "null"], "enum": ["a", None]}, ["a", None], ["b"]),
        ({"anyOf": [{"type": "string", "maxLength": 1}, {"type": "null"}]}, ["a", None], ["ab"]),
        ({"anyOf": [{"type": "integer"}, {"type": "boolean"}]}, [1, True], ["a"]),
        ({"$ref": "#/$defs/short"}, ["a"], ["abc"]),
    ],
)
def test_values_between_tags_are_held_to_their_schema(name: str, schema: Any, fit: list[Any], unfit: list[Any]) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, False]
    parameters = {
        "type": "object", "properties": {"x": schema}, "required": ["x"], "additionalProperties": False,
        "$defs": {"short": {"type": "string", "maxLength": 2}},
    }  # fmt: skip
    tools = [tool("f", parameters, strict=True)]
    grammar = calls_grammar(form, tools, "required", COMPILER.json_term)
    for value in fit:
        text = form.write([("f", {"x": value})])
        assert vocabulary.accepts(grammar, text)
        jsonschema.validate(json.loads(parsed(name, [text], tools)[0][2]), parameters)
    for value in unfit:
        assert not vocabulary.accepts(grammar, form.write([("f", {"x": value})]))


@TAGGED
@pytest.mark.parametrize(
    ("parameters", "place"),
    [
        ({"type": "object", "properties": {"x": {"type": "string", "format": "date"}}}, ".properties.x.format"),
        ({"type": "object", "properties": {"x": {"type": "string", "pattern": "^a|b"}}}, ".properties.x.pattern"),
        ({"type": "object", "properties": {"<x>": {"type": "string"}}}, ""),
        ({"anyOf": [{"type": "object", "properties": {"x": {"type": "string"}}}]}, ""),
    ],
)
def test_what_tags_cannot_say_is_refused_where_it_is_strict(name: str, parameters: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        calls_grammar(FORMATS[name], [tool("f", parameters, strict=True)], "required", COMPILER.json_term)
    assert caught.value.param == f"tools[0].function.parameters{place}"
    assert calls_grammar(FORMATS[name], [tool("f", parameters)], "required", COMPILER.json_term) is not None


@TAGGED
def test_a_tool_without_properties_takes_any(name: str) -> None:
    form, vocabulary = FORMATS[name], VOCABULARIES[name, False]
    grammar = calls_grammar(form, [tool("f", {"type": "object"})], "required", COMPILER.json_term)
    for arguments in ({}, {"a": "b\nc"}, {"a": "b", "d": [1]}):
        assert vocabulary.accepts(grammar, form.write([("f", arguments)]))
