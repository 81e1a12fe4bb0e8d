"""Seconds and peak memory of quantizing a model with the shapes of Llama-3.2-1B (random bfloat16 weights).

    python benchmarks/quantize.py [--quantization q4f16_1 q0f16 ...] [--layers 16] [--folder DIR]

Writes about 2.5 GB of weights and as much again of output to a temporary folder. Every scheme is measured in a process
of its own; the peak is that process's largest resident set, interpreter and libraries included.
"""

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from mlc_llm.compiler.model.architecture import Weight
from mlc_llm.compiler.quantization.scheme import SCHEMES, get_scheme
from mlc_llm.compiler.source.huggingface import HuggingFaceSource
from mlc_llm.compiler.weights import convert_weights

HIDDEN, INTERMEDIATE, HEADS_DIM, KV_DIM, VOCABULARY = 2048, 8192, 2048, 512, 128256


def model_weights(layers: int) -> list[Weight]:
    """The weight table of Llama-3.2-1B; its head is tied to the embedding."""
    embedding = "model.embed_tokens.weight"
    table = [Weight(embedding, (embedding,), (VOCABULARY, HIDDEN), "embedding")]
    for i in range(layers):
        layer = f"model.layers.{i}"
        attention = [f"{layer}.self_attn.{part}_proj.weight" for part in "qkvo"]
        mlp = [f"{layer}.mlp.{part}_proj.weight" for part in ("gate", "up", "down")]
        fused, gate_up = (HEADS_DIM + 2 * KV_DIM, HIDDEN), (2 * INTERMEDIATE, HIDDEN)
        table += [
            Weight(f"{layer}.self_attn.qkv_proj.weight", tuple(attention[:3]), fused, "linear"),
            Weight(attention[3], (attention[3],), (HIDDEN, HEADS_DIM), "linear"),
            Weight(f"{layer}.mlp.gate_up_proj.weight", tuple(mlp[:2]), gate_up, "linear"),
            Weight(mlp[2], (mlp[2],), (HIDDEN, INTERMEDIATE), "linear"),
        ]
        norms = [f"{layer}.{norm}.weight" for norm in ("input_layernorm", "post_attention_layernorm")]
        table += [Weight(norm, (norm,), (HIDDEN,)) for norm in norms]
    return [*table, Weight("model.norm.weight", ("model.norm.weight",), (HIDDEN,))]


def source_rows(name: str, weight: Weight) -> int:
    """Rows of one source tensor of a weight."""
    if "qkv" in weight.name:
        return HEADS_DIM if "q_proj" in name else KV_DIM
    return weight.shape[0] // len(weight.sources)


def write_model(folder: Path, layers: int) -> None:
    """A Hugging Face folder with one safetensors file, written tensor by tensor."""
    rng = np.random.default_rng(0)
    header: dict[str, Any] = {}
    end = 0
    for weight in model_weights(layers):
        for name in weight.sources:
            shape = (source_rows(name, weight), *weight.shape[1:])
            start, end = end, end + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for entry in header.values():
            values = rng.standard_normal(entry["shape"], np.float32) * np.float32(0.02)
            file.write(values.astype(ml_dtypes.bfloat16).tobytes())
    config = {"model_type": "llama", "hidden_size": HIDDEN, "num_hidden_layers": layers, "vocab_size": VOCABULARY}
    (folder / "config.json").write_text(json.dumps(config))


def peak_mebibytes() -> float:
    """The largest resident set of this process so far (not of the one that started it, as ru_maxrss would be)."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def convert(folder: Path, output: Path, quantization: str, layers: int) -> None:
    """One measurement, printed as a line of a table."""
    source = HuggingFaceSource(folder)
    weights = model_weights(layers)
    before = peak_mebibytes()
    start = time.perf_counter()
    summary = convert_weights(source, weights, get_scheme(quantization), output)
    seconds = time.perf_counter() - start
    largest = max(2 * math.prod(spec.shape) for spec in source.tensors.values()) / 2**20
    print(
        f"{quantization:9} {summary.parameters / 1e9:5.2f} G parameters  {seconds:6.1f} s  "
        f"{summary.file_bytes / 2**20:6.0f} MiB written  {summary.bits_per_parameter:5.2f} bits/parameter  "
        f"peak {peak_mebibytes():5.0f} MiB (before: {before:.0f}; largest tensor {largest:.0f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quantization", nargs="+", default=["q4f16_1"], choices=list(SCHEMES), metavar="NAME")
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        for name in arguments.quantization:
            convert(arguments.measure, arguments.measure / "output", name, arguments.layers)
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="quantize-") as folder:
        write_model(Path(folder), arguments.layers)
        for name in arguments.quantization:
            options = ["--measure", folder, "--quantization", name, "--layers", str(arguments.layers)]
            subprocess.run([sys.executable, __file__, *options], check=True)


if __name__ == "__main__":
    main()
