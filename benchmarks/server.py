"""How `mlc serve` does under load, over HTTP, beside the same engine without it.

    python benchmarks/server.py MODEL [--model-lib FILE] [--streams 64] [--tokens 128] [--rounds 3]

MODEL is a compiled model folder. The server is a process of its own; its clients and the engine alone are this process.

- streams: tokens per second of that many streamed answers of mixed lengths to prompts of mixed lengths that begin at
  the same time, by the engine alone (`AsyncMLCEngine`), then over HTTP, turn by turn; the longest time to a first token
  and between two tokens; how much faster the fastest answer was than the slowest of the same length (1 is fair).
- hang-ups: 200 clients that hang up after a random number of tokens, then how long until the engine is idle.
- overflow: more requests than the server takes; how many were refused, and whether each refusal was a whole response
  with Retry-After.
- second turn: time to the first token of a conversation of 2000 tokens, and of its next turn.

Medians over the rounds. No request may fail, and after each part no page may be in use.
"""

import argparse
import asyncio
import gc
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from http_streams import Exchange, in_use, post, server
from serving import conversation, stream

from mlc_llm import AsyncMLCEngine
from mlc_llm.serve import EngineConfig

CHAT = "/v1/chat/completions"
CACHE_TOKENS = 48 << 10
CLIENTS, HANG_UP_WITHIN = 200, 40
Figures = dict[str, float]


def body(messages: list[dict[str, Any]], tokens: int, seed: int = 0, **fields: Any) -> dict[str, Any]:
    """A request for an answer of exactly `tokens` tokens."""
    return {
        "messages": messages, "max_tokens": tokens, "seed": seed, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True}, **fields,
    }  # fmt: skip


class Answer:
    """The times of an answer's pieces, from the events of its stream."""

    def __init__(self, exchange: Exchange) -> None:
        assert (exchange.status, exchange.whole, exchange.closed) == (200, True, None), exchange
        self.began, self.times, self.text, self.tokens = exchange.began, [], "", 0
        for at, event in exchange.events():
            assert "error" not in event, event
            if event["usage"] is not None:
                self.tokens = event["usage"]["completion_tokens"]
            elif content := event["choices"][0]["delta"].get("content"):
                self.times.append(at)
                self.text += content

    @property
    def first(self) -> float:
        return self.times[0] - self.began

    @property
    def longest_gap(self) -> float:
        return max(after - before for before, after in zip(self.times, self.times[1:], strict=False))


def work(streams: int, tokens: int, seed: int) -> list[tuple[int, int, int]]:
    """(tokens of the prompt, tokens of the answer, seed) of each stream; on average `tokens` for an answer."""
    prompts, parts = (16, 32, 64, 128), (0.5, 0.75, 1.25, 1.5)
    return [
        (prompts[number % 4], int(tokens * parts[number // 4 % 4]), seed * streams + number)
        for number in range(streams)
    ]


def figures(answers: list[Any], seconds: float, wanted: list[int]) -> Figures:
    assert [answer.tokens for answer in answers] == wanted
    rates: dict[int, list[float]] = {}
    for answer in answers:
        rates.setdefault(answer.tokens, []).append((answer.tokens - 1) / (answer.times[-1] - answer.times[0]))
    return {
        "tokens per second": sum(wanted) / seconds,
        "longest time to a first token, ms": 1000 * max(answer.first for answer in answers),
        "longest gap, ms": 1000 * max(answer.longest_gap for answer in answers),
        "fastest by slowest of one length": max(max(each) / min(each) for each in rates.values()),
    }


async def alone(engine: AsyncMLCEngine, asked: list[tuple[int, int, int]]) -> Figures:
    engine.model.generator.scheduler.forget()
    begin = time.perf_counter()
    answers = await asyncio.gather(
        *(stream(engine, conversation(length, seed), tokens, seed) for length, tokens, seed in asked)
    )
    return figures(answers, time.perf_counter() - begin, [tokens for _, tokens, _ in asked])


async def over_http(url: str, asked: list[tuple[int, int, int]]) -> Figures:
    begin = time.perf_counter()
    exchanges = await asyncio.gather(
        *(post(url, CHAT, body(conversation(length, seed), tokens, seed)) for length, tokens, seed in asked)
    )
    seconds = time.perf_counter() - begin
    return figures([Answer(exchange) for exchange in exchanges], seconds, [tokens for _, tokens, _ in asked])


async def hang_ups(url: str, seed: int) -> Figures:
    random = Random(seed)
    asked = (
        body(conversation(random.choice((16, 64, 200)), seed * CLIENTS + number), 400) for number in range(CLIENTS)
    )
    exchanges = await asyncio.gather(
        *(post(url, CHAT, request, hang_up_after=random.randint(1, HANG_UP_WITHIN)) for request in asked)
    )
    begin = time.perf_counter()
    while in_use(url) != (0, 0, 0):
        await asyncio.sleep(0.01)
    assert all(exchange.status == 200 for exchange in exchanges)
    return {"clients": len(exchanges), "idle after, ms": 1000 * (time.perf_counter() - begin)}


async def overflow(url: str, seed: int) -> Figures:
    exchanges = await asyncio.gather(*(post(url, CHAT, body(conversation(16, -n), 64)) for n in range(CLIENTS)))
    count = Counter(exchange.status for exchange in exchanges)
    refused = [exchange for exchange in exchanges if exchange.status in (429, 503)]
    assert count[200] + len(refused) == CLIENTS, count
    assert all(exchange.whole and exchange.closed is None for exchange in exchanges)
    assert all(int(exchange.headers["retry-after"]) > 0 for exchange in refused)
    return {"answered": count[200], "refused with 429": count[429], "refused with 503": count[503]}


async def turns(url: str, seed: int) -> Figures:
    messages = conversation(2000, -200 - seed)
    first = Answer(await post(url, CHAT, body(messages, 32)))
    messages += [{"role": "assistant", "content": first.text}, {"role": "user", "content": "Go on."}]
    second = Answer(await post(url, CHAT, body(messages, 32)))
    return {
        "first turn, ms": 1000 * first.first, "second turn, ms": 1000 * second.first,
        "times faster": first.first / second.first,
    }  # fmt: skip


def show(name: str, rounds: list[Figures]) -> None:
    print(name)
    for key in rounds[0]:
        values = [values[key] for values in rounds]
        print(f"  {key:42}{median(values):10.1f}   ({min(values):.1f} to {max(values):.1f})", flush=True)


def repeated(url: str, rounds: int, part: Callable[[str, int], Coroutine[Any, Any, Figures]]) -> list[Figures]:
    result = []
    for number in range(rounds):
        result.append(asyncio.run(part(url, number)))
        assert in_use(url) == (0, 0, 0)
    return result


async def streams(arguments: argparse.Namespace, url: str) -> tuple[list[Figures], list[Figures]]:
    """Rounds of the engine alone, and of the server, turn by turn."""
    config = EngineConfig(max_num_sequence=arguments.streams, max_total_sequence_length=CACHE_TOKENS)
    engine = AsyncMLCEngine(arguments.model, model_lib=arguments.model_lib, mode="server", engine_config=config)
    rounds: tuple[list[Figures], list[Figures]] = ([], [])
    for number in range(arguments.rounds + 1):
        asked = work(arguments.streams, arguments.tokens, number)
        gc.collect()
        rounds[0].append(await alone(engine, asked))
        assert engine.metrics().kv_pages_used == 0
        rounds[1].append(await over_http(url, asked))
        assert in_use(url) == (0, 0, 0)
    engine.terminate()
    return rounds[0][1:], rounds[1][1:]  # the first round warms up


def measure(arguments: argparse.Namespace) -> None:
    options = ("--mode", "server", "--max-batch-size", str(arguments.streams))
    options += ("--max-total-seq-length", str(CACHE_TOKENS))
    with server(arguments.model, arguments.model_lib, *options) as (url, _):
        if "streams" in arguments.parts:
            engine, served = asyncio.run(streams(arguments, url))
            show(f"{arguments.streams} streams, the engine alone", engine)
            show(f"{arguments.streams} streams over HTTP", served)
            rate = "tokens per second"
            ratios = [there[rate] / here[rate] for here, there in zip(engine, served, strict=True)]
            show("over HTTP, of the engine alone", [{"per cent": 100 * ratio} for ratio in ratios])
        if "turns" in arguments.parts:
            show("second turn of 2000 tokens", repeated(url, arguments.rounds, turns))
        if "hang-ups" in arguments.parts:
            show("hang-ups", repeated(url, arguments.rounds, hang_ups))
    if "overflow" in arguments.parts:
        for bound in ("--max-concurrent-requests", "--max-waiting"):
            with server(arguments.model, arguments.model_lib, *options, bound, "16") as (url, _):
                show(f"overflow with {bound} 16", repeated(url, arguments.rounds, overflow))


def main() -> None:
    """Start the server and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parts = ("streams", "turns", "hang-ups", "overflow")
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
