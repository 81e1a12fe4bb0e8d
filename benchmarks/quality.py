"""What quantization and the rounding of arithmetic cost: perplexity and KL divergence on a public-domain text.

    python benchmarks/quality.py [MODEL] [--tokens 1024] [--output docs/quality.md]

MODEL is anything `mlc compile` takes (default: the demo model, whose own blocks are q4_1). Everything is compiled into
a temporary folder and run by the runtime itself, so that the figures include the kernels.

The first table compares schemes (--quantizations q4_1,q4_1:O3,...; `:O3` chooses `--opt O3`) with q0f32 in float32
arithmetic. The second one (--arithmetic q4f16_1,...) keeps the quantized weights and changes only the arithmetic: the
reference is a library that was compiled with `--opt activation_bits=32`.
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mlc_llm.compiler.compile import CompileOptions, compile_library, compile_model, plan
from mlc_llm.compiler.quantization.scheme import SCHEMES
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "data" / "declaration-and-gettysburg.txt"
REFERENCE = "q0f32"
FLOAT32 = "activation_bits=32"
# what the second table calls an arithmetic, its --opt, its --overrides
ARITHMETICS = (
    ("16-bit activations, the default", "O2", ""),
    ("the same, keys and values in int8", "O2", "kv_cache_dtype=int8"),
    ("8-bit activations, `--opt O3`", "O3", ""),
)
PROMPT_SHARE = 0.75  # of the tokens are a prompt, the others are decoded one by one
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Divergence:
    """How far logits are from reference logits, over all positions."""

    mean_kl: float
    max_kl: float
    same_top: float  # share of positions with the reference's most likely token


@dataclass(frozen=True)
class SchemeRow:
    """One line of the first table."""

    quantization: str
    megabytes: float
    perplexity: float
    divergence: Divergence


@dataclass(frozen=True)
class ArithmeticRow:
    """One line of the second table: what prefill multiplies (GEMM) and what decode does (GEMV)."""

    quantization: str
    arithmetic: str
    prefill: Divergence
    decode: Divergence


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """[n, vocab] -> log probabilities, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def divergence(reference: Logits, candidate: Logits) -> Divergence:
    """KL divergence of the candidate from the reference, both [n, vocab]."""
    kl = []
    for start in range(0, len(reference), 128):  # in float64 all positions at once would take gigabytes
        wanted, seen = log_softmax(reference[start : start + 128]), log_softmax(candidate[start : start + 128])
        kl.append((np.exp(wanted) * (wanted - seen)).sum(axis=1))
    every = np.concatenate(kl)
    same = (candidate.argmax(axis=1) == reference.argmax(axis=1)).mean()
    return Divergence(float(every.mean()), float(every.max()), float(same))


def perplexity(logits: Logits, ids: list[int]) -> float:
    """Of the tokens `ids` under the logits [len(ids), vocab]."""
    loss = [-log_softmax(logits[i : i + 1])[0, ids[i + 1]] for i in range(len(ids) - 1)]
    return float(np.exp(np.mean(loss)))


def prompt_logits(model: Model, sequence: int, ids: list[int]) -> Logits:
    """Logits after each token, [len(ids), vocab], of passes of up to 256 tokens."""
    return np.concatenate([model.logits_of(sequence, ids[i : i + 256]) for i in range(0, len(ids), 256)])


def decode_logits(model: Model, sequence: int, ids: list[int]) -> Logits:
    """The same of one pass for each token."""
    return np.stack([np.array(model.decode([sequence], [token])[0], np.float32) for token in ids])


def load(folder: Path, library: Path, tokens: int) -> Model:
    """A model with room for one sequence."""
    return Model.load(folder, Library.load(library), max_num_sequence=1, max_total_sequence_length=tokens)


def both_logits(folder: Path, library: Path, ids: list[int]) -> tuple[Logits, Logits]:
    """Logits of a prompt, and of the tokens that are decoded after it."""
    model = load(folder, library, len(ids))
    sequence, split = model.add_sequence(), int(len(ids) * PROMPT_SHARE)
    return prompt_logits(model, sequence, ids[:split]), decode_logits(model, sequence, ids[split:])


def text_ids(folder: Path, tokens: int) -> list[int]:
    """The first tokens of the text."""
    return Tokenizer.load(folder).encode(TEXT.read_text())[:tokens]


def compare_schemes(model: str, quantizations: list[str], tokens: int, work: Path) -> list[SchemeRow]:
    """One row per scheme, the reference first."""
    rows = []
    for quantization in [REFERENCE, *(q for q in quantizations if q != REFERENCE)]:
        begin = time.perf_counter()
        name, _, level = quantization.partition(":")
        opt = FLOAT32 if name == REFERENCE else level or "O2"
        result = compile_model(CompileOptions(model, quantization=name, opt=opt, output=work / name))
        ids = text_ids(result.folder, tokens)
        loaded = load(result.folder, result.library, tokens)
        logits = prompt_logits(loaded, loaded.add_sequence(), ids)
        if quantization == REFERENCE:
            reference = logits
        size = sum(path.stat().st_size for path in result.folder.glob("params_shard_*.bin"))
        label = quantization.replace(":", " with --opt ")
        rows.append(SchemeRow(label, size / 1e6, perplexity(logits, ids), divergence(reference, logits)))
        print(f"{quantization}: {time.perf_counter() - begin:.0f} s", flush=True)
    return rows


def compare_arithmetic(model: str, quantizations: list[str], tokens: int, work: Path) -> list[ArithmeticRow]:
    """For each scheme one row per arithmetic, on the same weights."""
    rows = []
    for quantization in quantizations:
        begin = time.perf_counter()
        folder = compile_model(CompileOptions(model, quantization=quantization, output=work / quantization)).folder
        ids = text_ids(folder, tokens)
        reference = both_logits(folder, compile_library(folder, work / "float32.so", opt=FLOAT32, force=True), ids)
        for label, opt, overrides in ARITHMETICS:
            library = compile_library(folder, work / "arithmetic.so", opt=opt, overrides=overrides, force=True)
            prefill, decode = map(divergence, reference, both_logits(folder, library, ids))
            rows.append(ArithmeticRow(quantization, label, prefill, decode))
        print(f"arithmetic of {quantization}: {time.perf_counter() - begin:.0f} s", flush=True)
    return rows


def scheme_table(rows: list[SchemeRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| quantization | weights, MB | perplexity | mean KL from float32 | same top token |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.quantization} | {row.megabytes:.1f} | {row.perplexity:.3f} | {row.divergence.mean_kl:.2e} "
        f"| {row.divergence.same_top:.1%} |"
        for row in rows
    ]
    return "\n".join(lines)


def arithmetic_table(rows: list[ArithmeticRow]) -> str:
    """The rows as Markdown."""
    lines = [
        "| weights | arithmetic | prefill: mean KL | max KL | same top | decode: mean KL | max KL | same top |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [f"{d.mean_kl:.1e} | {d.max_kl:.1e} | {d.same_top:.1%}" for d in (row.prefill, row.decode)]
        lines.append(f"| {row.quantization} | {row.arithmetic} | {' | '.join(cells)} |")
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def page(model: str, tokens: int, schemes: str, arithmetic: str) -> str:
    """docs/quality.md."""
    prompt = int(tokens * PROMPT_SHARE)
    return f"""# What quantization costs

Model: `{model}`. Text: `benchmarks/data/{TEXT.name}`, its first {tokens} tokens.
KL divergence is taken from the logits of `{REFERENCE}` in float32 arithmetic, whose weights are the source's as they
are. Where the blocks of a GGUF file are kept the weights are the same too, and the KL divergence is that of 16-bit
arithmetic, or of 8-bit with `--opt O3`; the other schemes quantize weights again that were quantized before.
`q3f16_0`, `q4f16_0` and `q4bf16_0` hold the numbers of `q3f16_1`, `q4f16_1` and `q4bf16_1` in another order. The
figures do not depend on the machine's load.

{schemes}

# What the arithmetic costs

The same quantized weights in both libraries: KL divergence of the logits from those of a library that was compiled with
`--opt {FLOAT32}`, whose products and attention are in float32. Keys and values are float16 in both, where the
line does not say int8. Prefill: the first {prompt} tokens, in passes of 256; decode: a pass for each of the other
{tokens - prompt}. `--opt O3` rounds to 8 bits what prompts and batches multiply; one row gets 16 bits all the same,
so that what decode shows of it comes from the prompt's keys and values.

{arithmetic}

Measured on {processor()}, {os.cpu_count()} cores, with

    python benchmarks/quality.py {model} --tokens {tokens} --output docs/quality.md
"""


def main() -> None:
    """Print the tables, and write them into a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument(
        "--quantizations", help="default: the model's own one, also with O3, and all schemes but the transposed ones"
    )
    parser.add_argument("--arithmetic", help="default: the model's own one, q4f16_1 and q8f16_1")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    own = plan(CompileOptions(arguments.model)).quantization
    schemes = [name for name, scheme in SCHEMES.items() if not scheme.transposed]  # the others hold the same numbers
    chosen = arguments.quantizations or ",".join(dict.fromkeys([own, f"{own}:O3", *schemes]))
    kept = arguments.arithmetic or ",".join(dict.fromkeys([own, "q4f16_1", "q8f16_1"]))
    with tempfile.TemporaryDirectory() as folder:
        arithmetic = arithmetic_table(
            compare_arithmetic(arguments.model, kept.split(","), arguments.tokens, Path(folder))
        )
        print(arithmetic, flush=True)
        costs = scheme_table(compare_schemes(arguments.model, chosen.split(","), arguments.tokens, Path(folder)))
        print(costs)
    if arguments.output:
        arguments.output.write_text(page(arguments.model, arguments.tokens, costs, arithmetic), encoding="utf-8")


if __name__ == "__main__":
    main()
