"""How fast a compiled model runs here: decode, prefill, start to first token, peak memory.

    python benchmarks/speed.py [MODEL] [--quantization q4f16_1] [--rounds 5]

MODEL is anything `mlc compile` takes (default: the demo model). Medians over the rounds, with the spread.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROMPT = "What is the capital of France?"


def spread(values: list[float], unit: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):.3g} {unit} (min {min(values):.3g}, max {max(values):.3g})"


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def first_token_seconds(folder: Path, library: Path) -> float:
    """Seconds from starting `mlc chat -p` until it has answered with one token and ended."""
    command = [sys.executable, "-m", "mlc_llm", "chat", str(folder), "--model-lib", str(library), "-p", PROMPT]
    command += ["--max-tokens", "1", "--temperature", "0"]
    return timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=tempfile.gettempdir()))


def throughput(folder: Path, library: Path, rounds: int) -> None:
    """Decode 128 tokens after 32, prefill 512 tokens, one sequence; printed from this process."""
    from mlc_llm.runtime.model import Model

    model = Model.load(folder, library, max_num_sequence=1, max_total_sequence_length=2048)
    decode, prefill = [], []
    for _ in range(rounds):
        sequence = model.add_sequence()
        model.prefill(sequence, range(100, 132))
        decode.append(128 / timed(lambda s=sequence: [model.decode([s], [i + 200]) for i in range(128)]))
        model.remove_sequence(sequence)
        sequence = model.add_sequence()
        prefill.append(512 / timed(lambda s=sequence: model.prefill(s, range(100, 612))))
        model.remove_sequence(sequence)
    print("decode, batch 1, 128 tokens after 32:", spread(decode, "tokens/s"))
    print("prefill, 512 tokens:", spread(prefill, "tokens/s"))
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB")


def main() -> None:
    """Compile if needed, then measure in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--throughput", nargs=2, type=Path, help=argparse.SUPPRESS)  # folder, library: the child
    arguments = parser.parse_args()
    if arguments.throughput:
        throughput(*arguments.throughput, arguments.rounds)
        return
    with tempfile.TemporaryDirectory() as work:
        output = Path(work) / "model"
        compile_in_child = "import sys; from pathlib import Path; from mlc_llm.compiler.compile import *; "
        compile_in_child += (
            "r = compile_model(CompileOptions(sys.argv[1], quantization=sys.argv[2], output=Path(sys.argv[3])))"
        )
        compile_in_child += "; print(r.library)"
        command = [sys.executable, "-c", compile_in_child, arguments.model, arguments.quantization, str(output)]
        library = Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()[-1])
        print(f"{arguments.model}, {arguments.quantization}, {os.cpu_count()} cores")
        options = ["--rounds", str(arguments.rounds), "--throughput", str(output), str(library)]
        subprocess.run([sys.executable, __file__, *options], check=True)
        starts = [first_token_seconds(output, library) for _ in range(arguments.rounds + 1)][1:]
        print("process start to first token and exit:", spread(starts, "s"))


if __name__ == "__main__":
    main()
