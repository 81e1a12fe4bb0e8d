"""Whether answers keep to the form that is asked for: every schema of the tests, by a real model.

    python benchmarks/forms.py MODEL [--model-lib FILE] [--max-tokens 800] [--temperature 1.0] [--generated 180]

MODEL is a compiled model folder. Each schema, those of the real world and generated ones, is asked for twice: as a
strict `response_format`, and as the parameters of a tool whose call is forced. The `jsonschema` package decides whether
what comes back validates. A small model at a high temperature rarely ends a text that has no bound by itself: an answer
that reaches --max-tokens is cut off, and is asked for again with a `logit_bias` towards quotation marks, brackets that
close and the like, which does not change what the form allows. What is cut off then too is counted apart. Ends with 1
where an answer does not validate.
"""

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

from jsonschema import Draft202012Validator, FormatChecker

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "helpers"))

from random_schemas import random_schema, with_definitions  # noqa: E402

from mlc_llm import AsyncMLCEngine  # noqa: E402
from mlc_llm.runtime.errors import RequestError  # noqa: E402
from mlc_llm.serve import EngineConfig  # noqa: E402

FORMATS = FormatChecker(["date", "email", "ipv4", "ipv6", "uuid"])  # that it checks without other packages
AT_ONCE = 16
FORMAT, TOOLS = "response_format", "tools"
STRENGTHS = (6.0, 12.0, 24.0, 60.0)  # logit biases towards endings, tried in turn
# How much of a strength a token of nothing but these characters and spaces gets, by its first one. What ends a text or
# the first part of an address comes before brackets, which inside of a text only make it longer; commas make a list
# longer, nulls end a list of links, "Z" and "D" the digits of a time and a duration.
ENDINGS = {
    '"': 1.0, "@": 0.9, ":": 0.9, "]": 0.8, "}": 0.8, "[]": 0.8, "{}": 0.8,
    ",": 0.4, ".": 0.3, "null": 0.2, "Z": 0.1, "D": 0.1,
}  # fmt: skip


def number(text: str) -> Decimal | float:
    """The number as it is written: a float may round to a bound that is excluded."""
    try:
        return Decimal(text)
    except InvalidOperation:  # an exponent of many digits
        return float(text)


def schemas(generated: int) -> dict[str, dict[str, Any]]:
    """By their names; all are objects, as parameters of tools have to be."""
    result = json.loads((REPOSITORY / "tests/runtime/data/schemas.json").read_text())
    for seed in range(generated):
        random = Random(seed)
        result[f"generated {seed}"] = with_definitions(random, random_schema(random))
    return {
        name: schema if schema.get("type") == "object" else inside_object(schema) for name, schema in result.items()
    }


def inside_object(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema as that of an object's only value; its definitions stay at the root."""
    value = {key: part for key, part in schema.items() if key not in ("$defs", "$schema")}
    root = {"type": "object", "properties": {"value": value}, "required": ["value"], "additionalProperties": False}
    return root | {key: part for key, part in schema.items() if key == "$defs"}


async def ask(engine: AsyncMLCEngine, schema: dict[str, Any], forced: bool, seed: int, **fields: Any) -> str:
    """What came of it: "valid", "cut off", "refused" or "INVALID"."""
    question = "Give me an example." if forced else "Give me an example as JSON."
    if forced:
        tools = [{"type": "function", "function": {"name": "example", "parameters": schema}}]
        named = {"type": "function", "function": {"name": "example"}}
        form = {"tools": tools, "tool_choice": named if seed % 2 else "required"}
        form["extra_body"] = {"parallel_tool_calls": False}
    else:
        wanted = {"name": "example", "strict": True, "schema": schema}
        form = {"response_format": {"type": "json_schema", "json_schema": wanted}}
    messages = [{"role": "user", "content": question}]
    try:
        response = await engine.chat.completions.create(messages=messages, seed=seed, **form, **fields)
    except RequestError as error:
        print(f"refused: {error}")
        return "refused"
    (choice,) = response.choices
    if choice.finish_reason == "length":
        return "cut off"
    texts = (
        [call.function.arguments for call in choice.message.tool_calls or []] if forced else [choice.message.content]
    )
    try:
        (text,) = texts
        Draft202012Validator(schema, format_checker=FORMATS).validate(json.loads(text, parse_float=number))
    except Exception as error:
        print(f"INVALID: {error}\n  schema {json.dumps(schema)}\n  answer {choice.message}")
        return "INVALID"
    return "valid"


def endings(engine: AsyncMLCEngine) -> dict[str, float]:
    """By its number, the share of a strength that each token that ends something gets."""
    tokenizer, shares = engine.model.tokenizer, {}
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token]).strip(" ")
        begin = next((begin for begin in ENDINGS if text.startswith(begin)), None)
        if begin and (text == begin or set(text) <= set(' "]},')):
            shares[str(token)] = ENDINGS[begin]
    return shares


async def measure(arguments: argparse.Namespace) -> bool:
    config = EngineConfig(max_num_sequence=AT_ONCE, max_total_sequence_length=AT_ONCE * 4096)
    engine = AsyncMLCEngine(arguments.model, model_lib=arguments.model_lib, mode="server", engine_config=config)
    room = asyncio.Semaphore(AT_ONCE)
    fields = {"max_tokens": arguments.max_tokens, "temperature": arguments.temperature}
    failed, ends = False, endings(engine)
    for name, forced in ((FORMAT, False), (TOOLS, True)):
        if name not in arguments.parts:
            continue

        async def one(case: str, schema: dict[str, Any], seed: int, forced: bool = forced) -> str:
            async with room:
                outcome = await ask(engine, schema, forced, seed, **fields)
                for strength in STRENGTHS:
                    if outcome == "cut off":
                        biases = {token: strength * share for token, share in ends.items()}
                        outcome = await ask(engine, schema, forced, seed, logit_bias=biases, **fields)
                        outcome = f"{outcome} with endings preferred" if outcome == "valid" else outcome
                if outcome == "cut off":
                    print(f"cut off: {case}")
                return outcome

        begin = time.perf_counter()
        asked = schemas(arguments.generated).items()
        counts = Counter(await asyncio.gather(*(one(*item, seed) for seed, item in enumerate(asked))))
        shown = ", ".join(f"{count} {outcome}" for outcome, count in counts.most_common())
        print(f"{name}: {len(asked)} schemas, {shown}; {time.perf_counter() - begin:.0f} s", flush=True)
        failed |= counts["INVALID"] > 0
    engine.terminate()
    return failed


def main() -> None:
    """Load the model and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--max-tokens", type=int, default=800)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--generated", type=int, default=180)
    parser.add_argument("--parts", nargs="+", choices=(FORMAT, TOOLS), default=(FORMAT, TOOLS))
    sys.exit(asyncio.run(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
