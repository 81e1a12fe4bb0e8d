"""Timing a loaded model: prompts, and sequences that decode together."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from ..runtime.lazy_array import LazyArray
from ..runtime.model import LanguageModel
from ..runtime.sampling_kernels import Cuts

_WARM_UP_TOKENS = 512
_WARM_UP_STEPS = 4


@dataclass(frozen=True)
class Measured:
    """A figure of several rounds, in the order in which they ran."""

    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.rounds)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"median": self.median, "min": min(self.rounds), "max": max(self.rounds), "rounds": list(self.rounds)}


@dataclass(frozen=True)
class PrefillResult:
    """A prompt, from its tokens to the choice of the first one of the answer."""

    prompt_length: int
    first_token_seconds: Measured

    @property
    def tokens_per_second(self) -> Measured:
        return Measured(tuple(self.prompt_length / seconds for seconds in self.first_token_seconds.rounds))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "prompt_length": self.prompt_length,
            "tokens_per_second": self.tokens_per_second.to_dict(),
            "first_token_seconds": self.first_token_seconds.to_dict(),
        }


@dataclass(frozen=True)
class DecodeResult:
    """`batch_size` sequences decoding together; a step gives each of them one token. Tokens of all are counted."""

    batch_size: int
    depth: int
    generate: int
    step_bytes: int  # of weights, keys and values that a step reads
    step_seconds: Measured
    bandwidth_percent: Measured  # of the rate at which the machine read in the same round

    @property
    def tokens_per_second(self) -> Measured:
        return Measured(tuple(self.batch_size / seconds for seconds in self.step_seconds.rounds))

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "batch_size": self.batch_size,
            "depth": self.depth,
            "generate": self.generate,
            "step_bytes": self.step_bytes,
            "tokens_per_second": self.tokens_per_second.to_dict(),
            "step_seconds": self.step_seconds.to_dict(),
            "bandwidth_percent": self.bandwidth_percent.to_dict(),
        }


def measure_prefill(model: LanguageModel, prompt_length: int, rounds: int) -> PrefillResult:
    """Time prompts of random tokens, each in a sequence of its own. Raises EngineError."""
    tokens = _tokens(model, prompt_length)
    _timed_prompt(model, tokens[:_WARM_UP_TOKENS])
    seconds = tuple(_timed_prompt(model, tokens) for _ in range(rounds))
    return PrefillResult(prompt_length, Measured(seconds))


def measure_decode(
    model: LanguageModel,
    *,
    batch_size: int,
    depth: int,
    generate: int,
    rounds: int,
    step_bytes: int,
    read_rate: Callable[[], float],
) -> DecodeResult:
    """Time `generate` steps of `batch_size` sequences that hold `depth` tokens each when a round begins.

    The likeliest token of each sequence is what it takes next. `read_rate` tells the bytes per second that the machine
    reads at the moment; it changes while other machines use the same memory, so it is asked before and after a round.
    Raises EngineError.
    """
    warm_up = min(generate, _WARM_UP_STEPS)
    sequences = _filled(model, batch_size, depth)
    _timed_steps(model, sequences, warm_up)
    _rewind(model, sequences, warm_up)
    seconds, percent = [], []
    for _ in range(rounds):
        before = read_rate()
        taken = _timed_steps(model, sequences, generate)
        seconds.append(taken / generate)
        percent.append(100 * step_bytes * generate / taken / ((before + read_rate()) / 2))
        _rewind(model, sequences, generate)
    for sequence in sequences:
        model.remove_sequence(sequence)
    return DecodeResult(
        batch_size, depth, generate, step_bytes, Measured(tuple(seconds)), Measured(tuple(percent))
    )  # fmt: skip


def _tokens(model: LanguageModel, count: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(model.vocab_size), k=count)


def _timed_prompt(model: LanguageModel, tokens: Sequence[int]) -> float:
    """Seconds from a prompt to the choice of the first token of its answer."""
    sequence, draws = model.add_sequence(), model.sampling.draws([Cuts()], model.vocab_size)
    begin = perf_counter()
    draws.choose(LazyArray.over(model.prefill(sequence, tokens)), [0.0])
    taken = perf_counter() - begin
    model.remove_sequence(sequence)
    return taken


def _filled(model: LanguageModel, batch_size: int, depth: int) -> list[int]:
    """New sequences with different tokens: none shares memory with another."""
    sequences = [model.add_sequence() for _ in range(batch_size)]
    for number, sequence in enumerate(sequences):
        model.prefill(sequence, _tokens(model, depth, seed=number))
    return sequences


def _timed_steps(model: LanguageModel, sequences: list[int], steps: int) -> float:
    """Seconds of that many decode steps."""
    tokens, uniforms = _tokens(model, len(sequences)), [0.0] * len(sequences)
    draws = model.sampling.draws([Cuts()] * len(sequences), model.vocab_size)
    begin = perf_counter()
    for _ in range(steps):
        tokens = model.decode_and_sample(sequences, tokens, draws, uniforms)
    return perf_counter() - begin


def _rewind(model: LanguageModel, sequences: list[int], steps: int) -> None:
    """Leave the sequences as they were before."""
    for sequence in sequences:
        model.pop(sequence, steps)
