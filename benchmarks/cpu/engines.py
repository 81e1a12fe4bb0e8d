"""The rows of the table: an engine with one form of the weights, and the commands by which it does each work."""

import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .process import Run
from .works import CHAT_CONTEXT, CHAT_PROMPT, PROMPT, WEIGHTS, Work

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Command:
    """How to do a work, and the figure in what the process printed; without `figure` the process itself is measured."""

    argv: tuple[str, ...]
    figure: Callable[[str], Mapping[str, float]] | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row; `commands` raises Failed for a work that the engine cannot do."""

    name: str  # as "llama.cpp:q4_0"
    engine: str
    weights: str
    commands: Callable[[Work], Command]


def figures(work: Work, command: Command, run: Run) -> dict[str, float]:
    """What the run says of the work: its "value", in the unit of the work's column, and what else the engine tells."""
    if work.kind == "start":
        return {"value": run.first_byte}
    if work.kind == "memory":
        return {"value": run.peak / 1e6}
    assert command.figure is not None
    return dict(command.figure(run.output))


def threads() -> int:
    """Threads for every engine: one for each processor that we may use."""
    return len(os.sched_getaffinity(0))


# This project. Name, form of the weights in the table, the GGUF file it is compiled from, options of `mlc compile`.
OURS: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    ("q4_1", "Q4_1 as bundled", "q4_1", ()),
    ("q4_1-fast", "Q4_1 as bundled, 8-bit activations", "q4_1", ("--opt", "O3")),
    ("q4f16_1", "q4f16_1", "q4_1", ("-q", "q4f16_1")),
    ("q4f16_1-fast", "q4f16_1, 8-bit activations", "q4_1", ("-q", "q4f16_1", "--opt", "O3")),
    ("q4_0-q8_0", "Q4_0 with Q8_0 head", "q4_0-q8_0", ()),
    ("q4_0", "Q4_0 throughout", "q4_0", ()),
    ("q8_0", "Q8_0", "q8_0", ()),
)


def our_row(name: str, weights: str, folder: Path) -> Row:
    """A compiled folder, by `mlc bench` and `mlc chat`."""
    mlc = (sys.executable, "-m", "mlc_llm")

    def figure(output: str) -> Mapping[str, float]:
        report = json.loads(output)
        decode, prefill = report["decode"][0], report["prefill"][0]
        if prefill["prompt_length"] > 1:
            return {"value": prefill["tokens_per_second"]["median"]}
        return {
            "value": decode["tokens_per_second"]["median"],
            "bandwidth_percent": decode["bandwidth_percent"]["median"],
        }

    def commands(work: Work) -> Command:
        if work.kind in ("start", "memory"):
            return Command((
                *mlc, "chat", str(folder), "-p", PROMPT, "--temperature", "0", "--max-tokens", str(work.generate),
                "--overrides", f"context_window_size={CHAT_CONTEXT}",
            ))  # fmt: skip
        common = (*mlc, "bench", str(folder), "--json", "--rounds", "1", "--threads", str(threads()))
        if work.kind == "prefill":
            return Command((*common, "--prompt-length", str(work.tokens), "--generate", "1"), figure)
        sizes = ("--generate", str(work.generate), "--batch-size", str(work.batch), "--depth", str(work.tokens))
        return Command((*common, "--prompt-length", "1", *sizes), figure)

    return Row(f"ours:{name}", "this project", weights, commands)


def llama_row(name: str, gguf: Path, programs: Path) -> Row:
    """A GGUF file by llama.cpp's own benchmarks. Flash attention is off where it measured slower: it does on a CPU."""

    def bench(output: str) -> Mapping[str, float]:
        return {"value": json.loads(output.splitlines()[-1])["avg_ts"]}

    def batched(output: str) -> Mapping[str, float]:
        lines = [line for line in output.splitlines() if line.startswith("{")]
        return {"value": json.loads(lines[-1])["speed_tg"]}

    def commands(work: Work) -> Command:
        common = ("-m", str(gguf), "-t", str(threads()))
        if work.kind in ("start", "memory"):
            return Command((
                str(programs / "llama-completion"), *common, "-c", str(CHAT_CONTEXT), "-n", str(work.generate),
                "-p", CHAT_PROMPT, "-no-cnv", "--no-warmup", "--temp", "0", "--no-display-prompt",
            ))  # fmt: skip
        if work.batch > 1:
            context = work.batch * (work.tokens + work.generate)
            sizes = ("-npp", str(work.tokens), "-ntg", str(work.generate), "-npl", str(work.batch))
            program = str(programs / "llama-batched-bench")
            return Command((program, *common, "-c", str(context), *sizes, "--output-format", "jsonl"), batched)
        sizes: tuple[str, ...] = ("-p", str(work.tokens), "-n", "0")
        if work.kind == "decode":
            sizes = ("-p", "0", "-n", str(work.generate), "-d", str(work.tokens))
        attention = ("-fa", "off") if work.tokens >= 4096 else ()
        return Command((str(programs / "llama-bench"), *common, *sizes, *attention, "-r", "1", "-o", "jsonl"), bench)

    return Row(f"llama.cpp:{name}", "llama.cpp", WEIGHTS[name][0], commands)


def worker_row(name: str, engine: str, weights: str, python: Path, worker: str, model: Path, *options: str) -> Row:
    """A model by a script of ours that drives the engine in its own Python and prints its figure."""

    def commands(work: Work) -> Command:
        argv = (
            str(python), str(HERE / worker), str(model), "--kind", work.kind, "--tokens", str(work.tokens),
            "--generate", str(work.generate), "--batch", str(work.batch), "--threads", str(threads()), *options,
            *(("--prompt", CHAT_PROMPT) if work.kind in ("start", "memory") else ()),
        )  # fmt: skip
        return Command(argv, lambda output: {"value": float(output.split()[-1])})

    return Row(name, engine, weights, commands)
