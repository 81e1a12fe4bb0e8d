"""`mlc bench`: how fast a compiled model runs on this machine."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import FILE_OR_FOLDER, Function, device_option, number_option, threads_option
from .output import print_columns, print_json, print_table, size
from .progress import Lines

if TYPE_CHECKING:
    from ..serve.bench import BenchReport
    from ..serve.measure import Measured

MAX_COUNT = 1 << 20
MAX_KINDS = 64


def read_counts(ctx: click.Context, param: click.Parameter, value: str) -> tuple[int, ...]:
    """Whole numbers from 1 on that commas separate, each once. Raises click.BadParameter."""
    parts = value.split(",")
    counts = [int(part) for part in parts if part.strip().isdecimal() and len(part) <= 8]
    if not len(counts) == len(parts) <= MAX_KINDS or not all(1 <= count <= MAX_COUNT for count in counts):
        raise click.BadParameter(f"{value!r:.80}: expected whole numbers from 1 to {MAX_COUNT}, separated by commas")
    return tuple(dict.fromkeys(counts))


def counts_option(name: str, *, default: str, help: str) -> Callable[[Function], Function]:
    """An option that takes such numbers."""
    return click.option(name, callback=read_counts, default=default, show_default=True, metavar="N[,N...]", help=help)


@click.command("bench", short_help="Measure how fast a model runs here.")
@click.argument("model")
@click.option("--model-lib", type=FILE_OR_FOLDER, metavar="FILE", help="Model library, instead of the one of MODEL.")
@device_option()
@counts_option("--prompt-length", default="512", help="Tokens of the prompts of which prefill is measured.")
@number_option("--generate", 1, MAX_COUNT, default=128, help="Tokens that each sequence decodes in a round.")
@counts_option("--batch-size", default="1", help="Sequences that decode together.")
@counts_option("--depth", default="32", help="Tokens that each sequence holds already when decoding begins.")
@number_option("--rounds", 1, 1000, default=5, help="How often everything is measured.")
@threads_option()
@click.option(
    "--json", "as_json", is_flag=True, help="Print everything as one JSON object, with the figures of each round."
)
def command(
    model: str, model_lib: Path | None, device: str, prompt_length: tuple[int, ...], generate: int,
    batch_size: tuple[int, ...], depth: tuple[int, ...], rounds: int, threads: int | None, as_json: bool,
) -> None:  # fmt: skip
    """Measure how fast MODEL runs on this machine: prefill, decode, time to the first token, loading, memory.

    MODEL is what `mlc chat` takes. Decoding is measured for each batch size at each depth; the tokens of all sequences
    are counted. How fast the machine reads memory is measured before every round: decoding reads all weights, and
    every key and value, for each step, and "of memory speed" says which part of the possible it reaches.

    Figures are medians, with the lowest and the highest round in brackets.

    \b
      mlc bench SmolLM2-135M-Instruct
      mlc bench SmolLM2-135M-Instruct --prompt-length 512,4096 --batch-size 1,8 --depth 32,4096
    """
    from ..serve.bench import Workload, bench
    from .models import find_or_compile

    folder = find_or_compile(model, None, device, "").folder
    progress = Lines(sys.stderr, None)
    report = bench(
        folder,
        device,
        None if model_lib is None else str(model_lib),
        Workload(prompt_length, generate, batch_size, depth, rounds),
        progress.stage,
        threads,
    )
    progress.finish()
    print_json(report.to_dict()) if as_json else print_report(report)


def print_report(report: "BenchReport") -> None:
    """Print the figures for people."""
    memory, rate = report.memory, report.read_bandwidth
    compiler = " (with the compiler, which made the library just now)" if memory.with_compiler else ""
    print_table([
        ("model", f"{report.model} ({report.quantization})"),
        ("library", report.library),
        ("machine", f"{report.processor}, {report.threads} threads, reads {spread(rate, 1e-9)} GB/s"),
        ("load", f"{report.load_seconds:.3f} s"),
        ("memory", f"peak {size(memory.peak)}: weights {size(memory.weights)}, KV cache {size(memory.kv_cache)} for "
                   f"{memory.kv_cache_tokens} tokens, rest {size(memory.rest)}{compiler}"),
    ])  # fmt: skip
    click.echo()
    print_columns(
        ("prefill", "tokens per second", "seconds to the first token"),
        [
            (f"{result.prompt_length} tokens", spread(result.tokens_per_second), spread(result.first_token_seconds))
            for result in report.prefill
        ],
    )
    click.echo()
    print_columns(
        ("decode", "tokens per second", "ms per step", "of memory speed"),
        [
            (
                f"batch {result.batch_size} at depth {result.depth}",
                spread(result.tokens_per_second),
                spread(result.step_seconds, 1e3),
                f"{result.bandwidth_percent.median:.0f} %",
            )
            for result in report.decode
        ],
    )


def spread(measured: "Measured", factor: float = 1) -> str:
    """The median with the lowest and the highest, in three digits: "352 (335-367)"."""
    low, middle, high = (
        three_digits(value * factor) for value in (min(measured.rounds), measured.median, max(measured.rounds))
    )
    return f"{middle} ({low}-{high})"


def three_digits(value: float) -> str:
    """A positive number with three significant digits, and without an exponent."""
    decimals = 0
    while decimals < 4 and value * 10**decimals < 99.95:
        decimals += 1
    return f"{value:.{decimals}f}"
