"""Whatever tokens are chosen under the masks of a schema: the text validates, as the jsonschema package sees it."""

import json
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from random_answers import RandomAnswers
from random_schemas import random_schema, with_definitions

from mlc_llm.runtime.grammar import GrammarCompiler
from mlc_llm.runtime.tokenizer import Tokenizer

REAL_WORLD = json.loads((Path(__file__).parent / "data" / "schemas.json").read_text())
GENERATED, ANSWERS_EACH = 300, 3
Decode = Callable[[list[int]], str]
FORMATS = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])  # that it checks without other packages


def number(text: str) -> Decimal | float:
    """The number as it is written: a float may round to a bound that is excluded."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return float(text)


@pytest.fixture(scope="module")
def tokenizer(byte_level: Tokenizer) -> Tokenizer:
    return byte_level


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, [tokenizer.id_of("<|im_end|>")])


@pytest.fixture(scope="module")
def answers(tokenizer: Tokenizer) -> RandomAnswers:
    return RandomAnswers(tokenizer.vocabulary(tokenizer.vocab_size), {tokenizer.id_of("<|im_end|>")})


def check(
    schema: Any, strict: bool, compiler: GrammarCompiler, answers: RandomAnswers, decode: Decode, seed: int
) -> None:
    factory = compiler.compile_json_schema(schema, strict)
    validator = Draft202012Validator(schema, format_checker=FORMATS)
    for offset in range(ANSWERS_EACH):
        text = decode(answers.answer(factory.new(), seed + offset))
        validator.validate(json.loads(text, parse_float=number))


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", REAL_WORLD)
def test_answers_to_schemas_of_the_real_world_validate(
    name: str, strict: bool, compiler: GrammarCompiler, answers: RandomAnswers, tokenizer: Tokenizer
) -> None:
    check(REAL_WORLD[name], strict, compiler, answers, tokenizer.decode, len(name))


@pytest.mark.parametrize("seed", range(GENERATED))
def test_answers_to_generated_schemas_validate(
    seed: int, compiler: GrammarCompiler, answers: RandomAnswers, tokenizer: Tokenizer
) -> None:
    random = Random(seed)
    schema = with_definitions(random, random_schema(random))
    Draft202012Validator.check_schema(schema)
    check(schema, bool(seed % 2), compiler, answers, tokenizer.decode, seed)


BOUNDS = [-10, -4, -3.25, -3, -2.5, -1, -0.5, 0, 0.25, 1.0, 2, 2.5, 9.75, 12]


@pytest.mark.parametrize("low", BOUNDS)
@pytest.mark.parametrize("least", ["minimum", "exclusiveMinimum"])
@pytest.mark.parametrize("most", ["maximum", "exclusiveMaximum"])
def test_numbers_near_their_bounds_validate(
    low: float, least: str, most: str, compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    end = tokenizer.id_of("<|im_end|>")
    for high in (bound for bound in BOUNDS if bound > low):
        schema = {"type": "number", least: low, most: high}
        factory, validator = compiler.compile_json_schema(schema), Draft202012Validator(schema)
        for bound in (low, high):
            for step in ("-0.5", "-0.00001", "0", "0.0", "0.00001", "0.5"):
                text, grammar = format(Decimal(str(bound)) + Decimal(step), "f"), factory.new()
                if all(map(grammar.accept, tokenizer.encode(text))) and grammar.accept(end):
                    validator.validate(json.loads(text, parse_float=Decimal))
