"""What each quantization costs: perplexity and mean KL divergence from the float32 model, on a public-domain text.

    python benchmarks/quality.py [MODEL] [--quantizations q4_1,q4_1:O3] [--tokens 1024] [--output docs/quality.md]

MODEL is anything `mlc compile` takes (default: the demo model, whose own blocks are q4_1). Every scheme is compiled
into a temporary folder and run by the runtime itself, so that the figures include the kernels; `:O3` chooses
`--opt O3`. Logits of q0f32 in float32 arithmetic are the reference.
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

from mlc_llm.compiler.compile import CompileOptions, compile_model, plan
from mlc_llm.compiler.quantization.scheme import SCHEMES
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.tokenizer import Tokenizer

TEXT = Path(__file__).parent / "data" / "declaration-and-gettysburg.txt"
REFERENCE = "q0f32"
Logits = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    quantization: str
    megabytes: float
    perplexity: float
    mean_kl: float
    same_top: float  # share of positions with the reference's most likely token


def log_softmax(logits: Logits) -> NDArray[np.float64]:
    """[n, vocab] -> log probabilities, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=1, keepdims=True))
    return wide


def logits_of(model: str, quantization: str, tokens: int, work: Path) -> tuple[Logits, list[int], float]:
    """Compile, run. Returns (logits [tokens, vocab], token ids, megabytes of weights)."""
    name, _, level = quantization.partition(":")
    opt = "activation_bits=32" if name == REFERENCE else level or "O2"
    result = compile_model(CompileOptions(model, quantization=name, opt=opt, output=work / name))
    ids = Tokenizer.load(result.folder).encode(TEXT.read_text())[:tokens]
    loaded = Model.load(result.folder, result.library, max_num_sequence=1, max_total_sequence_length=tokens)
    sequence = loaded.add_sequence()
    size = sum(path.stat().st_size for path in result.folder.glob("params_shard_*.bin"))
    parts = [loaded.logits_of(sequence, ids[i : i + 256]) for i in range(0, len(ids), 256)]
    return np.concatenate(parts), ids, size / 1e6


def measure(model: str, quantizations: list[str], tokens: int) -> list[Row]:
    """One row per scheme, the reference first."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for quantization in [REFERENCE, *(q for q in quantizations if q != REFERENCE)]:
            begin = time.perf_counter()
            logits, ids, megabytes = logits_of(model, quantization, tokens, Path(folder))
            if quantization == REFERENCE:
                reference = log_softmax(logits)
            candidate = log_softmax(logits)
            kl = (np.exp(reference) * (reference - candidate)).sum(axis=1).mean()
            loss = -candidate[np.arange(len(ids) - 1), ids[1:]].mean()
            same = (candidate.argmax(axis=1) == reference.argmax(axis=1)).mean()
            label = quantization.replace(":", " with --opt ")
            rows.append(Row(label, megabytes, float(np.exp(loss)), float(kl), float(same)))
            print(f"{quantization}: {time.perf_counter() - begin:.0f} s", flush=True)
    return rows


def table(rows: list[Row]) -> str:
    """The rows as Markdown."""
    lines = [
        "| quantization | weights, MB | perplexity | mean KL from float32 | same top token |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.quantization} | {r.megabytes:.1f} | {r.perplexity:.3f} | {r.mean_kl:.2e} | {r.same_top:.1%} |"
        for r in rows
    ]
    return "\n".join(lines)


def processor() -> str:
    """The processor's name, as the system gives it."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    """Print the table, and write it into a page if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--quantizations", help="default: the model's own one, also with O3, and all schemes")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    own = plan(CompileOptions(arguments.model)).quantization
    chosen = arguments.quantizations or ",".join(dict.fromkeys([own, f"{own}:O3", *SCHEMES]))
    rows = measure(arguments.model, chosen.split(","), arguments.tokens)
    page = f"""# What quantization costs

Model: `{arguments.model}`. Text: `benchmarks/data/{TEXT.name}`, its first {arguments.tokens} tokens. KL divergence is
taken from the logits of `{REFERENCE}` in float32 arithmetic, whose weights are the source's as they are. Where the
blocks of a GGUF file are kept the weights are the same too, and the KL divergence is that of 16-bit arithmetic, or of
8-bit with `--opt O3`; the other schemes quantize weights again that were quantized before. The figures do not depend on
the machine's load.

{table(rows)}

Measured on {processor()}, {os.cpu_count()} cores, with

    python benchmarks/quality.py {arguments.model} --tokens {arguments.tokens}
"""
    print(table(rows))
    if arguments.output:
        arguments.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
