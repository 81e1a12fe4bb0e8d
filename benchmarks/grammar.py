"""What structured output costs: per token, and to compile a grammar.

    python benchmarks/grammar.py MODEL [--answers 3]

MODEL is a compiled model folder, or any folder with a tokenizer. Schemas are those of the tests: of the real world, and
generated. For each, answers are made of tokens chosen at random among those allowed; no model runs, so that nothing
else is measured. Per token: `mask` fills the mask, `accept` goes on with the token, `apply` forbids in the logits what
the mask does not allow. The first two are llguidance's, `mask` without the interpreter's lock; with a model they run
beside its forward pass. `compile` is a schema that was not seen before, from checks to the first mask, `start` the
state of one more answer. Microseconds; the first use of a grammar reads the vocabulary once.
"""

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from random import Random
from time import perf_counter
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY / "tests" / "helpers"))

from random_answers import RandomAnswers  # noqa: E402
from random_schemas import random_schema, with_definitions  # noqa: E402

from mlc_llm.runtime.grammar import Grammar, GrammarCompiler, GrammarFactory  # noqa: E402
from mlc_llm.runtime.token_mask import TokenMask, masked  # noqa: E402
from mlc_llm.runtime.tokenizer import Tokenizer  # noqa: E402

GENERATED = 200


class TimedGrammar:
    """A grammar whose calls are timed."""

    def __init__(self, grammar: Grammar, times: dict[str, list[float]], logits: Any) -> None:
        self._grammar, self._times, self._logits = grammar, times, logits

    @property
    def stopped(self) -> bool:
        return self._grammar.stopped

    def fill_mask(self, mask: TokenMask) -> None:
        begin = perf_counter()
        self._grammar.fill_mask(mask)
        filled = perf_counter()
        masked(self._logits, mask)
        self._times["apply"].append(perf_counter() - filled)
        self._times["mask"].append(filled - begin)

    def accept(self, token: int) -> bool:
        begin = perf_counter()
        accepted = self._grammar.accept(token)
        self._times["accept"].append(perf_counter() - begin)
        return accepted

    def rollback(self, count: int) -> None:
        self._grammar.rollback(count)


def schemas() -> list[Any]:
    real = json.loads((REPOSITORY / "tests/runtime/data/schemas.json").read_text())
    randoms = [Random(seed) for seed in range(GENERATED)]
    return [*real.values(), *(with_definitions(random, random_schema(random)) for random in randoms)]


def measure(tokenizer: Tokenizer, answers: int) -> dict[str, list[float]]:
    """Seconds by what they were spent for."""
    times: dict[str, list[float]] = defaultdict(list)
    size, end = tokenizer.vocab_size, max(tokenizer.special_ids)
    logits, random = np.zeros(size, np.float32), RandomAnswers(tokenizer.vocabulary(size), {end})
    compiler = GrammarCompiler(tokenizer, size, [end])
    begin = perf_counter()
    compiler.prepare()
    times["vocabulary, once"].append(perf_counter() - begin)
    for seed, schema in enumerate(schemas()):
        begin = perf_counter()
        factory: GrammarFactory = compiler.compile_json_schema(schema)
        times["compile"].append(perf_counter() - begin)
        for answer in range(answers):
            begin = perf_counter()
            grammar = factory.new()
            times["start"].append(perf_counter() - begin)
            random.answer(TimedGrammar(grammar, times, logits), seed + answer)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--answers", type=int, default=3, help="for each schema")
    arguments = parser.parse_args()
    tokenizer = Tokenizer.load(arguments.model)
    times = measure(tokenizer, arguments.answers)
    print(f"{tokenizer.vocab_size} tokens, {len(times['compile'])} schemas, {len(times['mask'])} masks")
    print(f"{'us':>16} {'median':>9} {'p95':>9} {'p99':>9} {'max':>9}")
    for name, values in times.items():
        figures = [1e6 * float(np.quantile(values, at)) for at in (0.5, 0.95, 0.99, 1)]
        print(f"{name:>16} " + " ".join(f"{figure:9.1f}" for figure in figures))


if __name__ == "__main__":
    main()
