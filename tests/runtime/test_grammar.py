"""Masks keep answers within a grammar, and requests for grammars are bounded."""

import re
import string
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import llguidance
import pytest
import tokenizers
from random_answers import RandomAnswers, allowed

from mlc_llm.runtime.bounded_threads import BoundedThreads, TooLateError
from mlc_llm.runtime.errors import ModelFileError, RequestError
from mlc_llm.runtime.grammar import Grammar, GrammarCompiler, GrammarLimits
from mlc_llm.runtime.mask_worker import MaskWorker
from mlc_llm.runtime.token_mask import new_mask
from mlc_llm.runtime.tokenizer import Tokenizer

PADDED = 500  # the vocabulary has 420 tokens and two added ones
PATIENT = GrammarLimits(compile_seconds=300)


@pytest.fixture(scope="module")
def compiler(byte_level: Tokenizer) -> GrammarCompiler:
    ends = [byte_level.id_of("<|im_end|>"), byte_level.id_of("<|endoftext|>")]
    return GrammarCompiler(byte_level, PADDED, ends, PATIENT)


@pytest.fixture(scope="module")
def ends(byte_level: Tokenizer) -> set[int | None]:
    return {byte_level.id_of("<|im_end|>"), byte_level.id_of("<|endoftext|>")}


def next_tokens(grammar: Grammar) -> set[int]:
    mask = new_mask(PADDED)
    grammar.fill_mask(mask)
    return set(allowed(mask))


def feed(grammar: Grammar, tokenizer: Tokenizer, text: str) -> int:
    """Accept the tokens of `text`, each of which the mask must allow."""
    ids = tokenizer.encode(text)
    for token in ids:
        assert token in next_tokens(grammar), tokenizer.token_bytes(token)
        assert grammar.accept(token)
    return len(ids)


def accepts(grammar: Grammar, tokenizer: Tokenizer, text: str) -> bool:
    """Whether `text` is a complete answer."""
    end = tokenizer.id_of("<|im_end|>")
    assert end is not None
    return all(map(grammar.accept, tokenizer.encode(text))) and end in next_tokens(grammar) and grammar.accept(end)


def test_a_mask_allows_what_may_come_next_and_nothing_else(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile_regex("(the|then) [0-9]x").new()
    pieces = byte_level.vocabulary(PADDED)
    assert next_tokens(grammar) == {i for i, piece in enumerate(pieces) if piece and b"then ".startswith(piece)}
    feed(grammar, byte_level, "the")
    expected = {i for i, piece in enumerate(pieces) if re.fullmatch(rb" ([0-9]x?)?|n ?([0-9]x?)?", piece)}
    assert next_tokens(grammar) == expected


def test_only_end_tokens_may_follow_a_complete_answer(
    compiler: GrammarCompiler, byte_level: Tokenizer, ends: set[int]
) -> None:
    grammar = compiler.compile_json_schema({"type": "object", "properties": {}, "additionalProperties": False}).new()
    assert not next_tokens(grammar) & ends
    feed(grammar, byte_level, "{}")
    assert grammar.stopped
    assert next_tokens(grammar) == ends
    assert not grammar.accept(byte_level.encode("}")[0])
    for end in sorted(ends):
        assert grammar.accept(end)
    assert next_tokens(grammar) == ends


def test_an_answer_that_may_go_on_may_also_end(
    compiler: GrammarCompiler, byte_level: Tokenizer, ends: set[int]
) -> None:
    grammar = compiler.compile_regex("[0-9]+").new()
    assert not next_tokens(grammar) & ends
    feed(grammar, byte_level, "12")
    assert ends < next_tokens(grammar)
    assert not grammar.stopped
    assert grammar.accept(min(ends))
    assert next_tokens(grammar) == ends


def test_special_tokens_and_padding_are_no_text(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    tokens = next_tokens(compiler.compile_regex("(.|\n)+").new())
    assert byte_level.id_of("<tool call>") in tokens  # added, but not special: users see it
    assert not tokens & byte_level.special_ids
    assert max(tokens) < byte_level.vocab_size


def test_special_tokens_can_be_asked_for_by_name(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile_lark('start: <|im_start|> "the"').new()
    assert next_tokens(grammar) == {byte_level.id_of("<|im_start|>")}
    with pytest.raises(RequestError, match=r"unknown special token: \"<\|nope\|>\""):
        compiler.compile_lark("start: <|nope|>")


@pytest.mark.parametrize("kind", ["sentencepiece", "sentencepiece_without_prefix"])
def test_tokens_of_sentencepiece_are_their_text(kind: str, backends: dict[str, tokenizers.Tokenizer]) -> None:
    tokenizer = Tokenizer(backends[kind])
    end = tokenizer.id_of("</s>")
    assert end is not None
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [end], PATIENT)
    factory = compiler.compile_regex(r'[{"](the fox|日本語?|\n){1,3}!')
    answers = RandomAnswers(tokenizer.vocabulary(tokenizer.vocab_size), {end})
    for seed in range(20):
        text = tokenizer.decode(answers.answer(factory.new(), seed))
        assert re.fullmatch(r'[{"](the fox|日本語?|\n){1,3}!', text)


CHESS = """
root   ::= move (" " move)*
move   ::= pawn | "O-O" "-O"?   # castling
pawn   ::= [a-h] [1-8] ("=" [NBQR])?
"""
SUM = """
start: NUMBER (sign NUMBER)*
sign: " " ("+" | "-") " "
NUMBER: /[0-9]{1,3}/
"""


@pytest.mark.parametrize(
    ("compile_", "argument", "fits", "others"),
    [
        ("json_object", None, ["{}", '{"a": [1, {"b": null}]}', '{\n  "a": 1\n}'], ["[]", "1", '{"a"', " {}", "{} "]),
        ("regex", r"^\d{2}/[a-c]+$", ["12/abc"], ["1/a", "12/", "٣٤/a", "12/abcd"]),
        ("regex", "a\nb|", ["a\nb", ""], ["a", "anb"]),
        ("choice", ["yes", "yes!", 'n"o\\\n', "日本"], ["yes", "yes!", 'n"o\\\n', "日本"], ["ye", "no", "yesyes!", ""]),
        ("ebnf", CHESS, ["e4 d5", "a8=Q O-O-O", "O-O"], ["e9", "e4 ", "O-", ""]),
        ("lark", SUM, ["1", "12 + 345 - 6"], ["1 +", "1234", "1+2"]),
        ("json_schema", "true", ["1", '"x"', "null", "[{}]"], ["", "nul"]),
        ("json_schema", '{"type": "integer"}', ["-12"], ["1.5", "01"]),
    ],
)
def test_what_fits(
    compile_: str,
    argument: Any,
    fits: list[str],
    others: list[str],
    compiler: GrammarCompiler,
    byte_level: Tokenizer,
) -> None:
    compiled = getattr(compiler, f"compile_{compile_}")
    factory = compiled() if argument is None else compiled(argument)
    for text in fits:
        assert accepts(factory.new(), byte_level, text), text
    for text in others:
        assert not accepts(factory.new(), byte_level, text), text


def test_strict_schemas_close_the_objects_that_list_properties(
    compiler: GrammarCompiler, byte_level: Tokenizer
) -> None:
    inner = {"type": "object", "properties": {"b": {"type": "null"}}, "additionalProperties": True}
    schema = {"type": "object", "properties": {"a": inner}}
    fits = {'{"a":{"b":null,"c":1}}': (True, True), '{"a":{},"c":1}': (True, False), "{}": (True, True)}
    both = {"allOf": [{"properties": {"a": inner}}, {"properties": {"c": {"type": "integer"}}}], "type": "object"}
    for text, (loose, strict) in fits.items():
        assert accepts(compiler.compile_json_schema(schema, False).new(), byte_level, text) == loose
        assert accepts(compiler.compile_json_schema(schema, True).new(), byte_level, text) == strict
        assert accepts(compiler.compile_json_schema(both, True).new(), byte_level, text)
    assert "additionalProperties" not in schema


def test_json_has_a_line_break_and_its_indentation_at_most(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    for text, fits in {'{\n  "a": 1}': True, '{\r\n\t"a" : 1}': True, '{\n\n"a":1}': False, '{  "a":1}': False}.items():
        assert accepts(compiler.compile_json_object().new(), byte_level, text) == fits


def test_schemas_go_into_other_grammars(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    term = compiler.json_term({"type": "object", "properties": {"a": {"const": "</call>"}}}, True, "tools.0")
    grammar = compiler.compile_lark(f'start: "<call>" {term} "</call>"').new()
    assert accepts(grammar, byte_level, '<call>{"a": "</call>"}</call>')


def test_answers_of_one_grammar_do_not_know_of_one_another(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    factory = compiler.compile_choice(["the fox", "the dog"])
    first, second = factory.new(), factory.new()
    feed(first, byte_level, "the fox")
    assert first.stopped
    feed(second, byte_level, "the dog")


def test_a_token_that_does_not_fit_changes_nothing(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammar = compiler.compile_regex("[ab]+").new()
    feed(grammar, byte_level, "a")
    before = next_tokens(grammar)
    for token in (*byte_level.encode("x"), byte_level.id_of("<|im_start|>"), PADDED - 1):
        assert token is not None
        assert not grammar.accept(token)
    assert next_tokens(grammar) == before


def test_tokens_are_taken_back(compiler: GrammarCompiler, byte_level: Tokenizer, ends: set[int]) -> None:
    grammar = compiler.compile_choice(["the fox jumps", "the dog"]).new()
    count = feed(grammar, byte_level, "the ")
    before = next_tokens(grammar)
    more = feed(grammar, byte_level, "dog")
    assert grammar.accept(min(ends))
    assert grammar.accept(min(ends))
    grammar.rollback(more + 2)
    assert not grammar.stopped
    assert next_tokens(grammar) == before
    feed(grammar, byte_level, "fox")
    grammar.rollback(0)
    grammar.rollback(count + len(byte_level.encode("fox")))
    assert accepts(grammar, byte_level, "the dog")


def test_masks_are_filled_in_other_threads(compiler: GrammarCompiler, byte_level: Tokenizer) -> None:
    grammars = [compiler.compile_choice([letter, f"{letter}x"]).new() for letter in string.ascii_lowercase]
    masks = [new_mask(PADDED) for _ in grammars]
    worker = MaskWorker(threads=3)
    assert worker.finish(worker.start(list(zip(grammars, masks, strict=True)))) == [None] * len(grammars)
    for letter, mask in zip(string.ascii_lowercase, masks, strict=True):
        assert byte_level.encode(letter)[0] in allowed(mask)
    started = worker.start([(grammars[0], new_mask(PADDED)), (grammars[1], new_mask(8))])
    assert [type(error) for error in worker.finish(started)] == [type(None), ValueError]
    worker.close()


def schema(**keywords: Any) -> Callable[[GrammarCompiler], Any]:
    return lambda compiler: compiler.compile_json_schema(keywords)


def call(name: str, argument: Any) -> Callable[[GrammarCompiler], Any]:
    return lambda compiler: getattr(compiler, f"compile_{name}")(argument)


ROOT = "response_format.json_schema.schema"
NODE = {"$ref": "#/$defs/a~1b/items/0", "$defs": {"a/b": {"items": [{"properties": {"x": {"not": {}}}}]}}}
NARROW = {"oneOf": [{"type": "string", "minLength": 1}, {"type": "string", "maxLength": 4}]}


@pytest.mark.parametrize(
    ("compile_", "param", "message"),
    [
        (schema(**{"not": {}}), f"{ROOT}.not", "the keyword 'not' is not supported"),
        (schema(items={"uniqueItems": True}), f"{ROOT}.items.uniqueItems", "'uniqueItems' is not supported"),
        (schema(prefixItems=[{}, {"if": {}}]), f"{ROOT}.prefixItems.1.if", "'if' is not supported"),
        (schema(anyOf=[{"contains": 1}]), f"{ROOT}.anyOf.0.contains", "'contains' is not supported"),
        (schema(**NODE), f"{ROOT}.$defs.a/b.items.0.properties.x.not", "'not' is not supported"),
        (schema(properties={"p": NARROW}), f"{ROOT}.properties.p.oneOf", "must exclude one another"),
        (schema(type="string", format="regex"), f"{ROOT}.format", "the format 'regex' "),
        (schema(type="text"), f"{ROOT}.type", 'found "text"; expected one of null, boolean'),
        (schema(properties={"a": 3}), f"{ROOT}.properties.a", "found 3"),
        (schema(properties=3), f"{ROOT}.properties", "found 3; expected an object"),
        (schema(anyOf={}), f"{ROOT}.anyOf", "found {}; expected a list"),
        (schema(**{"$ref": "http://localhost/x"}), f"{ROOT}.$ref", "expected a reference inside the schema"),
        (schema(**{"$ref": "#/$defs/x"}), f"{ROOT}.$ref", 'there is nothing at "#/\\$defs/x"'),
        (schema(type="integer", minimum=5, maximum=2), ROOT, "minimum \\(5\\) is greater than maximum \\(2\\)$"),
        (schema(type="string", pattern="(?=a)b"), ROOT, "look-around, .* is not supported"),
        (schema(type="string", minLength=-1), ROOT, "'minLength', got -1"),
        (schema(const=float("nan")), ROOT, "is not valid JSON"),
        (schema(const="\ud800"), ROOT, "is not valid JSON"),
        (call("json_schema", "{"), ROOT, "is not valid JSON"),
        (call("json_schema", '{"const": NaN}'), ROOT, "NaN is not JSON"),
        (call("json_schema", "[]"), ROOT, "a schema is an object or a boolean; found \\[\\]"),
        (call("json_schema", False), ROOT, "schema is false"),
        (call("regex", "("), "response_format.regex", "unclosed group"),
        (call("regex", r"[^\s\S]"), "response_format.regex", "there is no text that fits it"),
        (call("regex", "\ud800"), "response_format.regex", "valid Unicode"),
        (schema(multipleOf=0), f"{ROOT}.multipleOf", "found 0; expected a number above 0"),
        (call("lark", 'start: %json {"not": 1}'), "response_format.grammar.not", "'not' is not supported"),
        (call("lark", "start: a\na: %json {"), "response_format.grammar", "%json in line 2 is not valid JSON"),
        (call("lark", "start: foo"), "response_format.grammar", 'unknown name: "foo"'),
        (call("lark", 'start: "a" ('), "response_format.grammar", "Expected token '\\)'"),
        (call("ebnf", 'root ::= "a" | foo'), "response_format.grammar", "Rule 'foo' not found"),
        (call("ebnf", 'other ::= "a"'), "response_format.grammar", "No 'root' rule"),
        (call("choice", []), "response_format.choice", "0 choices"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name_and_place(
    compile_: Callable[[GrammarCompiler], Any], param: str, message: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        compile_(compiler)
    assert caught.value.param == param
    assert caught.value.code in ("invalid_value", "unsupported_value")
    assert str(caught.value).startswith(param)
    assert "\n" not in str(caught.value)


def test_keywords_that_ask_nothing_are_left_out_of_account(compiler: GrammarCompiler) -> None:
    nothing = {"uniqueItems": False, "unevaluatedProperties": True, "nullable": True, "deprecated": True}
    compiler.compile_json_schema({"type": "string", "format": "password", **nothing})
    compiler.compile_json_schema({"type": "string", "$defs": {"unused": {"not": {}}}})
    compiler.compile_json_schema({"x-guidance": {"lenient": True}, "type": "string"})
    with pytest.raises(RequestError, match="not supported"):
        compiler.compile_json_schema({"x-guidance": {"lenient": True}, "not": {}})


def nested(depth: int) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for _ in range(depth):
        result = {"items": result}
    return result


def links(count: int) -> dict[str, Any]:
    definitions = {f"d{i}": {"items": {"$ref": f"#/$defs/d{i + 1}"}} for i in range(count)}
    return {"$ref": "#/$defs/d0", "$defs": {**definitions, f"d{count}": {}}}


RULES = "start: a0\n" + "".join(f'a{i}: "a" a{i + 1} | "b"\n' for i in range(5000)) + 'a5000: "x"'
TERMINALS = "start: A0\n" + "".join(f"A{i}: A{i + 1}\n" for i in range(6000)) + 'A6000: "x"'


@pytest.mark.parametrize("compile_", [call("lark", RULES), call("lark", TERMINALS), call("json_schema", links(1500))])
def test_long_chains_of_rules_do_not_end_the_process(
    compile_: Callable[[GrammarCompiler], Any], compiler: GrammarCompiler
) -> None:
    assert next_tokens(compile_(compiler).new())


@pytest.mark.parametrize(
    ("compile_", "message"),
    [
        (call("json_schema", {"const": "x" * 200_000}), "bytes are too long; the limit is 131072"),
        (call("json_schema", {"enum": list(range(6000))}), "too many values; the limit is 5000"),
        (call("json_schema", nested(200)), "nested too deeply; the limit is 100"),
        (call("json_schema", "[" * 100_000), "nested too deeply; the limit is 100"),
        (call("regex", "x" * 200_000), "bytes are too long"),
        (call("lark", "start: " + "(" * 50_000), "too deeply nested"),
        (call("ebnf", "root ::= " + "(" * 50_000), "nested too deeply"),
        (call("choice", ["x" * 200_000]), "bytes are too long"),
        (call("choice", list(map(str, range(3000)))), "3000 choices; expected 1 to 2000"),
        (call("json_schema", {"multipleOf": 99991}), "99991 needs 99991 remainders, .* the limit is 10000"),
        (schema(allOf=[{"multipleOf": 1.01}, {"multipleOf": 997}]), "needs 100697 remainders"),
        (call("lark", 'start: %json {"multiple\\u004ff": 99991}'), "needs 99991 remainders"),
        (call("lark", 'start: "a"{1,1000000000000}'), "cannot be used"),
    ],
)
def test_what_is_too_big_is_refused(
    compile_: Callable[[GrammarCompiler], Any], message: str, compiler: GrammarCompiler
) -> None:
    with pytest.raises(RequestError, match=message):
        compile_(compiler)


def test_an_answer_that_gets_too_much_work_ends_with_an_error(byte_level: Tokenizer, ends: set[int]) -> None:
    compiler = GrammarCompiler(byte_level, PADDED, ends, GrammarLimits(compile_seconds=300, parser_items=300))
    grammar = compiler.compile_lark("start: a*\na: /x/ a | /y/").new()
    with pytest.raises(RequestError, match="the answer's grammar needs too much work at this place"):
        feed(grammar, byte_level, "x" * 300)


def test_a_compiled_grammar_is_kept_while_it_is_in_use(byte_level: Tokenizer, ends: set[int]) -> None:
    compiler = GrammarCompiler(byte_level, PADDED, ends, GrammarLimits(compile_seconds=300, max_cached=2))
    first, second = compiler.compile_regex("a"), compiler.compile_regex("b")
    assert compiler.compile_regex("a") is first
    compiler.compile_regex("c")
    assert compiler.compile_regex("a") is first
    assert compiler.compile_regex("b") is not second


def test_what_many_ask_for_at_once_is_not_compiled_for_each(
    byte_level: Tokenizer, ends: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler, all_asked = GrammarCompiler(byte_level, PADDED, ends, PATIENT), threading.Event()
    made = []

    def counted(*arguments: Any, **options: Any) -> llguidance.LLMatcher:
        made.append(arguments)
        all_asked.wait()
        return llguidance.LLMatcher(*arguments, **options)

    fake = SimpleNamespace(**{**vars(llguidance), "LLMatcher": counted})
    monkeypatch.setitem(sys.modules, "llguidance", fake)
    with ThreadPoolExecutor(16) as pool:
        asked = [pool.submit(compiler.compile_regex, "[0-9]+") for _ in range(16)]
        all_asked.set()
    assert len(made) <= 2  # as many are compiled at a time
    assert len({id(one.result()) for one in asked}) <= 2


def test_a_model_needs_an_end_token(byte_level: Tokenizer) -> None:
    with pytest.raises(ModelFileError, match="no end token"):
        GrammarCompiler(byte_level, PADDED, [PADDED, -1])


def test_a_grammar_that_takes_too_long_is_refused(compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(self: BoundedThreads, work: object, seconds: float) -> None:
        raise TooLateError(f"takes more than {seconds:g} s")

    monkeypatch.setattr(BoundedThreads, "run", run)
    with pytest.raises(RequestError, match=r"regex cannot be used: its compilation takes more than 300 s"):
        compiler.compile_regex("never seen before")
