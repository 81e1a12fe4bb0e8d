"""Seconds and peak memory of compiling model libraries, by the shape of the model and by the device.

    python benchmarks/compile.py [--shape demo llama-3-8b] [--quantization q4f16_1] [--device cpu ...]

A library holds code only, so no weights are needed. Every compilation is measured in a process of its own; the peak is
that process's largest resident set.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

# what config.json of each model says
SHAPES: dict[str, dict[str, Any]] = {
    "demo": {
        "hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3,
        "num_hidden_layers": 30, "vocab_size": 49152, "rope_theta": 100000, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 16, "vocab_size": 128256, "rope_theta": 500000, "max_position_embeddings": 131072,
        "tie_word_embeddings": True,
    },
    "llama-3-8b": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
        "num_hidden_layers": 32, "vocab_size": 128256, "rope_theta": 500000, "max_position_embeddings": 8192,
        "tie_word_embeddings": False,
    },
}  # fmt: skip


def compile_shape(shape: str, quantization: str, device: str, output: Path) -> dict[str, float]:
    """Seconds, peak bytes and bytes of the library of one shape."""
    from mlc_llm.compiler.library import build_library
    from mlc_llm.compiler.model.registry import get_architecture
    from mlc_llm.compiler.target import resolve_target
    from mlc_llm.runtime.artifact import ChatConfig

    start = time.perf_counter()
    published = {"model_type": "llama", "rms_norm_eps": 1e-5, **SHAPES[shape]}
    model = get_architecture("llama").from_dict(published)
    config = ChatConfig(
        model_type="llama",
        quantization=quantization,
        architecture=model.to_dict(),
        vocab_size=model.vocab_size,
        context_window_size=model.context_window_size,
        prefill_chunk_size=model.prefill_chunk_size,
    )
    build_library(config, output, target=resolve_target(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": time.perf_counter() - start, "peak": peak, "size": output.stat().st_size}


def main() -> None:
    """Measure and print a table, or with --measure one shape as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", nargs="+", default=["demo", "llama-3-8b"], choices=SHAPES)
    parser.add_argument("--quantization", default="q4f16_1")
    parser.add_argument("--device", nargs="+", default=["cpu"])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(
            json.dumps(
                compile_shape(arguments.shape[0], arguments.quantization, arguments.device[0], arguments.measure)
            )
        )
        return
    print(f"{platform.machine()}, {os.cpu_count()} processors, Python {platform.python_version()}\n")
    print("| device | shape | quantization | seconds | peak MiB | library KiB |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for device, shape in itertools.product(arguments.device, arguments.shape):
            command = [sys.executable, __file__, "--shape", shape, "--quantization", arguments.quantization]
            command += ["--device", device, "--measure", f"{folder}/library.so"]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(f"| {device} | {shape} | {arguments.quantization} | {result['seconds']:.1f} "
                  f"| {result['peak'] / 2**20:.0f} | {result['size'] / 2**10:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
