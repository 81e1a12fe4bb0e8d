"""How an engine serves many users at once: throughput, gaps between tokens, and texts that are known already.

    python benchmarks/serving.py MODEL [--model-lib FILE] [--streams 64] [--tokens 128] [--rounds 3]

MODEL is a compiled model folder. Measured in this process, through `AsyncMLCEngine`:

- streams: tokens per second of that many answers to prompts of mixed lengths that begin at the same time, prompts
  included; how long the first and the last of them took; the same number of tokens decoded in one batch without
  anything else, for comparison.
- gaps: the longest time between two tokens of a stream while a prompt of 4000 tokens is computed beside it.
- second turn: time to the first token of a conversation of 2000 tokens, and of its next turn.

Medians over the rounds; the pages that are in use after each round must be none.
"""

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from statistics import median
from typing import Any

from mlc_llm import AsyncMLCEngine
from mlc_llm.serve import EngineConfig

WORDS = (
    "time", "person", "year", "way", "day", "thing", "man", "world", "life", "hand", "part", "child", "eye", "woman",
    "place", "work", "week", "case", "point",
)  # fmt: skip


def text(count: int, seed: int) -> str:
    """About `count` tokens of words, which no other seed begins with."""
    return " ".join(random.Random(seed).choices(WORDS, k=count))


def conversation(count: int, seed: int) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text(count, seed)}]


class Timed:
    """The times at which the pieces of one answer came."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.times: list[float] = []
        self.tokens = 0
        self.text = ""

    @property
    def first(self) -> float:
        return self.times[0] - self.began

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False))


async def stream(engine: AsyncMLCEngine, messages: list[dict[str, Any]], tokens: int, seed: int = 0) -> Timed:
    """One answer of exactly `tokens` tokens."""
    timed = Timed()
    chunks = await engine.chat.completions.create(
        messages=messages, stream=True, max_tokens=tokens, seed=seed, stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    async for chunk in chunks:
        if chunk.usage is not None:
            timed.tokens = chunk.usage.completion_tokens
        elif chunk.choices[0].delta.content:
            timed.times.append(time.perf_counter())
            timed.text += chunk.choices[0].delta.content
    return timed


async def many(engine: AsyncMLCEngine, streams: int, tokens: int) -> dict[str, float]:
    lengths = [(16, 64, 200, 400)[number % 4] for number in range(streams)]
    begin = time.perf_counter()
    answers = await asyncio.gather(
        *(stream(engine, conversation(length, number), tokens, number) for number, length in enumerate(lengths))
    )
    seconds = time.perf_counter() - begin
    ends = [answer.times[-1] - begin for answer in answers]
    return {
        "tokens per second": sum(answer.tokens for answer in answers) / seconds,
        "prompt tokens": sum(lengths),
        "seconds": seconds,
        "first answer done after, s": min(ends),
        "last answer done after, s": max(ends),
        "longest gap, ms": 1000 * max(answer.longest_gap for answer in answers),
    }


async def one_batch(engine: AsyncMLCEngine, streams: int, tokens: int) -> dict[str, float]:
    """Decoding alone, without scheduler, texts and event loop."""
    model = engine.model.generator.model
    sequences = [model.add_sequence() for _ in range(streams)]
    for number, sequence in enumerate(sequences):
        model.prefill(sequence, [number + 1] * 32)
    begin = time.perf_counter()
    for _ in range(tokens):
        model.decode(sequences, [5] * streams)
    seconds = time.perf_counter() - begin
    for sequence in sequences:
        model.remove_sequence(sequence)
    return {"tokens per second": streams * tokens / seconds}


async def beside_a_long_prompt(engine: AsyncMLCEngine, streams: int, tokens: int) -> dict[str, float]:
    running = [asyncio.create_task(stream(engine, conversation(16, -number), 300)) for number in range(4)]
    while engine.metrics().generated_tokens == 0 or engine.metrics().running < 4:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    long = await stream(engine, conversation(4000, -100), 2)
    answers = await asyncio.gather(*running)
    return {
        "longest gap of the others, ms": 1000 * max(answer.longest_gap for answer in answers),
        "first token of the long prompt after, s": long.first,
    }


async def turns(engine: AsyncMLCEngine, streams: int, tokens: int) -> dict[str, float]:
    messages = conversation(2000, -200)
    first = await stream(engine, messages, 32)
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Go on."}]
    second = await stream(engine, messages, 32)
    return {"first turn, s": first.first, "second turn, s": second.first, "times faster": first.first / second.first}


async def measure(arguments: argparse.Namespace) -> None:
    engine = AsyncMLCEngine(
        arguments.model,
        model_lib=arguments.model_lib,
        mode="server",
        engine_config=EngineConfig(max_num_sequence=arguments.streams, max_total_sequence_length=48 << 10),
    )
    await stream(engine, conversation(64, 7), 16)
    works: dict[str, Callable[..., Awaitable[dict[str, float]]]] = {
        f"{arguments.streams} streams": many,
        f"one batch of {arguments.streams}": one_batch,
        "gaps": beside_a_long_prompt,
        "second turn": turns,
    }
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in works}
    for _ in range(arguments.rounds):
        for name, work in works.items():
            engine.model.generator.scheduler.forget()
            figures[name].append(await work(engine, arguments.streams, arguments.tokens))
            metrics = engine.metrics()
            assert metrics.running == metrics.waiting == metrics.kv_pages_used == 0, metrics
    for name, rounds in figures.items():
        print(name)
        for key in rounds[0]:
            print(f"  {key:42}{median(values[key] for values in rounds):10.1f}")
    engine.terminate()


def main() -> None:
    """Load the model and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
