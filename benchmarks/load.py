"""How long the weights of a large model take to load: a model with the shapes of Llama-3.2-3B and random weights.

    python benchmarks/load.py [--quantization q4f16_1] [--layers 28] [--rounds 5] [--folder DIR]

Makes a model folder (1.8 GB of weights) and its library in a temporary folder, or in --folder, where they stay for the
next run. Then, each in a process of its own: the first start, which packs the weights and keeps them, starts that read
them from the page cache, and starts that read them from the disk, after the kernel was told to forget the file.
Seconds are those of loading the library and its parameters, without the interpreter's own start. Peak memory is the
process's largest resident set.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mlc_llm.runtime.artifact import CHAT_CONFIG_NAME, ChatConfig
from mlc_llm.runtime.derived import FOLDER_NAME, start_reading
from mlc_llm.runtime.library import Library, read_metadata
from mlc_llm.runtime.parameters import load_parameters

MODEL = {
    "model_type": "llama", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5, "vocab_size": 128256, "tie_word_embeddings": True,
    "rope_theta": 500000.0, "max_position_embeddings": 131072,
}  # fmt: skip
LIBRARY = "synthetic-cpu.so"


def build(folder: Path, quantization: str, layers: int) -> None:
    """A library, and random bytes for every parameter that it names."""
    import numpy as np

    from mlc_llm.compiler.library import build_library
    from mlc_llm.compiler.model.registry import get_architecture
    from mlc_llm.compiler.shards import ShardWriter
    from mlc_llm.compiler.target import resolve_target

    model = get_architecture("llama").from_dict({**MODEL, "num_hidden_layers": layers})
    config = ChatConfig(
        model_type="llama",
        quantization=quantization,
        architecture=model.to_dict(),
        vocab_size=model.vocab_size,
        context_window_size=8192,
        prefill_chunk_size=model.prefill_chunk_size,
    )
    build_library(config, folder / LIBRARY, target=resolve_target())
    params = read_metadata(folder / LIBRARY).params
    random = np.random.default_rng(0)
    sizes = [int(np.prod(param.shape)) * np.dtype(param.dtype).itemsize for param in params]
    with ShardWriter(folder, sum(sizes), record_format="raw") as writer:
        for param, size in zip(params, sizes, strict=True):
            writer.add(param, random.integers(0, 256, size, np.uint8))
        writer.finish({"ParamSize": len(params), "ParamBytes": sum(sizes), "BitsPerParam": 4.5})
    (folder / CHAT_CONFIG_NAME).write_text(config.to_json(), encoding="utf-8")


def load(folder: Path) -> None:
    """One start; its figures as JSON."""
    begin = time.perf_counter()
    reading = start_reading(folder, folder / LIBRARY)
    library = Library.load(folder / LIBRARY)
    params = load_parameters(library, folder, reading=reading)
    seconds = time.perf_counter() - begin
    nbytes = sum(params[index].nbytes for index in range(len(params)))
    peak = int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
    print(json.dumps({"seconds": seconds, "bytes": nbytes, "peak": peak, "read": reading is not None}))


def start(folder: Path) -> dict[str, float]:
    """One start in a process of its own."""
    run = subprocess.run([sys.executable, __file__, "--load", folder], check=True, stdout=subprocess.PIPE)
    figures: dict[str, float] = json.loads(run.stdout)
    return figures


def forget(folder: Path) -> None:
    """Take the packed weights out of the page cache."""
    for path in (folder / FOLDER_NAME).iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def show(what: str, runs: list[dict[str, float]]) -> None:
    """A line of figures."""
    seconds = [run["seconds"] for run in runs]
    middle = statistics.median(seconds)
    print(
        f"{what:42} {middle:6.2f} s (min {min(seconds):.2f}, max {max(seconds):.2f})  "
        f"{runs[0]['bytes'] / middle / 1e9:5.2f} GB/s  peak {max(run['peak'] for run in runs) / 1e6:.0f} MB",
        flush=True,
    )


def measure(folder: Path, arguments: argparse.Namespace) -> None:
    """Build what is missing, then measure."""
    if not (folder / CHAT_CONFIG_NAME).exists():
        folder.mkdir(parents=True, exist_ok=True)
        build(folder, arguments.quantization, arguments.layers)
    for path in folder.glob(f"{FOLDER_NAME}/*"):
        path.unlink()
    first = start(folder)
    print(f"{first['bytes'] / 1e6:.0f} MB of packed weights, {os.cpu_count()} CPUs")
    show("first start, packs and keeps the weights", [first])
    show("later starts, from the page cache", [start(folder) for _ in range(arguments.rounds)])
    cold = []
    for _ in range(arguments.rounds):
        forget(folder)
        cold.append(start(folder))
    show("later starts, from the disk", cold)


def main() -> None:
    """Measure in a temporary folder, or in the one that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load(arguments.load)
    elif arguments.folder:
        measure(arguments.folder, arguments)
    else:
        with tempfile.TemporaryDirectory(prefix="load-") as folder:
            measure(Path(folder), arguments)


if __name__ == "__main__":
    main()
