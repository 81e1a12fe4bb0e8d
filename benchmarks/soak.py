"""Random traffic against `mlc serve` for a time: whether its memory grows, a page is lost, or anything fails.

    python benchmarks/soak.py MODEL [--model-lib FILE] [--seconds 3600] [--clients 16] [--seed 0]

MODEL is a compiled model folder. Each client asks for one thing after another: answers in one piece and streamed,
several at once, texts continued, forced calls of tools, answers in forms that no request before had, prompts that share
their beginning with others; it hangs up in the middle, and sends what is refused. Every response has to be the one
expected.

Prints the server's resident memory during the run; the second quarter's median, when caches are full, is compared with
the last quarter's. Ends with 1 where memory grew by more than --most-growth per cent.
"""

import argparse
import asyncio
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

from http_streams import PATIENCE, in_use, post, resident, server
from serving import text

SAMPLES = 200
SHARED = [text(300, seed) for seed in range(8)]


def schema(random: Random) -> dict[str, Any]:
    """One that was hardly there before: its compiled form has to be forgotten again."""
    names = [f"field{random.randrange(10**9)}" for _ in range(random.randint(1, 4))]
    kinds = ({"type": "integer"}, {"type": "boolean"}, {"enum": ["a", "b", "c"]}, {"type": "string", "maxLength": 12})
    properties = {name: random.choice(kinds) for name in names}
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False}


def chat(random: Random) -> dict[str, Any]:
    messages = [{"role": "user", "content": text(random.choice((4, 30, 200)), random.randrange(10**9))}]
    if random.random() < 0.3:
        messages.insert(0, {"role": "system", "content": random.choice(SHARED)})
    return {"messages": messages, "max_tokens": random.choice((1, 8, 30, 60)), "stream": random.random() < 0.6}


def plain(random: Random) -> tuple[str, dict[str, Any], int]:
    fields = random.choice(({}, {"n": 3}, {"logprobs": True, "top_logprobs": 3}, {"seed": 7}, {"stop": ["a"]}))
    return "/v1/chat/completions", {**chat(random), **fields}, 200


def formed(random: Random) -> tuple[str, dict[str, Any], int]:
    form = {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "schema": schema(random)}}
    return "/v1/chat/completions", {**chat(random), "response_format": form}, 200


def called(random: Random) -> tuple[str, dict[str, Any], int]:
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema(random)}}]
    return "/v1/chat/completions", {**chat(random), "tools": tools, "tool_choice": "required"}, 200


def continued(random: Random) -> tuple[str, dict[str, Any], int]:
    prompts = [text(20, random.randrange(10**9)) for _ in range(random.randint(1, 3))]
    return "/v1/completions", {"prompt": prompts, "max_tokens": 8, "echo": random.random() < 0.5, "logprobs": 2}, 200


def counted(random: Random) -> tuple[str, dict[str, Any], int]:
    return "/tokenize", {"prompt": text(200, random.randrange(10**9))}, 200


def refused(random: Random) -> tuple[str, dict[str, Any], int]:
    wrong: dict[str, Any] = random.choice(
        (
            {"temperature": 9},
            {"unknown": 1},
            {"messages": []},
            {"messages": [{"role": "user", "content": "word " * 70_000}]},
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
        )
    )
    return "/v1/chat/completions", {**chat(random), **wrong}, 400


KINDS = (plain, plain, plain, formed, called, continued, counted, refused)


async def ask_on(url: str, random: Random, end: float, counts: Counter[str]) -> None:
    """One client."""
    while time.monotonic() < end:
        kind = random.choice(KINDS)
        path, body, expected = kind(random)
        hang_up = random.randint(1, 20) if body.get("stream") and random.random() < 0.3 else None
        exchange = await post(url, path, body, hang_up)
        assert exchange.status == expected, (kind.__name__, expected, exchange.response[:2000])
        assert hang_up is not None or exchange.whole, exchange.response
        assert b'data: {"error"' not in exchange.response, exchange.response
        counts["hung up" if hang_up else kind.__name__] += 1


async def watch(process: int, begin: float, seconds: float, samples: list[int]) -> None:
    for number in range(SAMPLES):
        await asyncio.sleep(max(0.0, begin + seconds * number / SAMPLES - time.monotonic()))
        samples.append(resident(process))
        if number % 20 == 0:
            print(f"{time.monotonic() - begin:8.0f} s  {samples[-1] / 1e6:8.1f} MB", flush=True)


async def traffic(url: str, process: int, seconds: float, clients: int, seed: int) -> tuple[Counter[str], list[int]]:
    """What was asked for how often, and the memory of the process from time to time."""
    counts: Counter[str] = Counter()
    samples: list[int] = []
    begin = time.monotonic()
    work = [ask_on(url, Random(seed * clients + number), begin + seconds, counts) for number in range(clients)]
    await asyncio.gather(watch(process, begin, seconds, samples), *work)
    return counts, samples


def soak(url: str, process: int, seconds: float, clients: int, seed: int = 0) -> float:
    """How much memory grew, in per cent. AssertionError where a response is not as expected or a page stays in use."""
    counts, samples = asyncio.run(traffic(url, process, seconds, clients, seed))
    end = time.monotonic() + PATIENCE
    while in_use(url) != (0, 0, 0):
        assert time.monotonic() < end, in_use(url)
        time.sleep(0.01)
    warm, last = (median(samples[len(samples) * part // 4 :][: len(samples) // 4]) for part in (1, 3))
    print(f"{counts.total()} requests: {', '.join(f'{count} {name}' for name, count in counts.most_common())}")
    print(f"memory {warm / 1e6:.1f} MB in the second quarter, {last / 1e6:.1f} MB in the last: {last / warm - 1:+.2%}")
    return 100 * (last / warm - 1)


def main() -> None:
    """Start the server and ask."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--model-lib", type=Path)
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-growth", type=float, default=2.0, help="per cent")
    arguments = parser.parse_args()
    options = ("--mode", "server", "--max-batch-size", "8", "--max-total-seq-length", "4096")
    with server(arguments.model, arguments.model_lib, *options) as (url, process):
        growth = soak(url, process, arguments.seconds, arguments.clients, arguments.seed)
    sys.exit(growth > arguments.most_growth)


if __name__ == "__main__":
    main()
