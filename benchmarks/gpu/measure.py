"""Checks compiled models on a card against the processor, and measures them: run from what `pack.py` has made.

    PYTHONPATH=gpu python3 -m mlc_llm.benchmarks.gpu.measure [--shape demo ...] [--output results.json] [--no-torch]

For each shape, with weights made up here:

- logits of a prompt and of decoding steps, beside those of the processor from the same weights,
- decoding at batch 1 and more: seconds of a step, and the bytes of weights, keys and values that a step has to read as
  a share of the bandwidth at which the card copies memory,
- prefill: the operations of its products as a share of what torch's float16 product of large matrices reaches,
- the same shape in torch, in float16 and with CUDA graphs.

Results are medians, printed and written as JSON.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mlc_llm.benchmarks.gpu import torch_llama
from mlc_llm.benchmarks.gpu.shapes import kv_bytes, weight_bytes, weight_count, write_folder
from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.library import Library, read_metadata
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.sampling_kernels import Cuts

_PROMPT = 128  # tokens that sequences have when decoding is measured
_STEPS = 50
_SHOWN = ("decode", "prefill")


def copy_bandwidth(device: ffi.Device, size: int = 1 << 30) -> float:
    """Bytes in a second that the card reads and writes while it copies `size` bytes."""
    source, target = (ffi_tensor.empty((size,), "int8", device) for _ in range(2))
    synchronize = ffi.global_function("runtime.Device_StreamSync")

    def copy() -> None:
        ffi_tensor.copy(source, target)
        synchronize(device, 0)

    return 2 * size / seconds(copy, 20)


def seconds(run: Callable[[], object], count: int) -> float:
    """The median time of a call, after three more."""
    times = []
    for _ in range(count + 3):
        begin = perf_counter()
        run()
        times.append(perf_counter() - begin)
    return median(times[3:])


def compare_logits(card: Model, processor: Model) -> dict[str, float]:
    """How far the card's logits are from the processor's, in units of their standard deviation."""
    random = np.random.default_rng(2)
    prompt = random.integers(0, card.vocab_size, 150).tolist()
    worst, mean, agree, models = 0.0, [], [], (card, processor)
    sequences = [model.add_sequence() for model in models]
    rows = [np.array(model.logits_of(one, prompt)) for model, one in zip(models, sequences, strict=True)]
    for token in random.integers(0, card.vocab_size, 8).tolist():
        for index, (model, one) in enumerate(zip(models, sequences, strict=True)):
            rows[index] = np.concatenate([rows[index], np.array(model.decode([one], [token]))])
    found, expected = rows
    difference = np.abs(found - expected) / expected.std()
    worst, mean, agree = difference.max(), difference.mean(), (found.argmax(-1) == expected.argmax(-1)).mean()
    for model, one in zip(models, sequences, strict=True):
        model.remove_sequence(one)
    return {"largest": float(worst), "mean": float(mean), "same_argmax": float(agree), "positions": len(found)}


def decode_seconds(model: Model, batch: int) -> float:
    """Of a step of so many sequences of `_PROMPT` tokens, the choice of their tokens included."""
    random = np.random.default_rng(3)
    sequences = [model.add_sequence() for _ in range(batch)]
    for sequence in sequences:
        model.prefill(sequence, random.integers(0, model.vocab_size, _PROMPT).tolist())
    draws = model.sampling.draws([Cuts()] * batch, model.vocab_size)
    tokens, uniforms = [1] * batch, [0.5] * batch

    def step() -> None:
        tokens[:] = [abs(token) for token in model.decode_and_sample(sequences, tokens, draws, uniforms)]

    try:
        return seconds(step, _STEPS)
    finally:
        for sequence in sequences:
            model.remove_sequence(sequence)


def prefill_seconds(model: Model, count: int) -> float:
    """Of a prompt of so many tokens."""
    tokens = np.random.default_rng(4).integers(0, model.vocab_size, count).tolist()

    def run() -> None:
        sequence = model.add_sequence()
        np.array(model.prefill(sequence, tokens))
        model.remove_sequence(sequence)

    return seconds(run, 5)


def measure(folder: Path, name: str, options: argparse.Namespace, bandwidth: float, rate: float) -> dict[str, Any]:
    """All of one shape; `folder` gets its weights."""
    libraries: Path = options.libraries
    config = ChatConfig.model_validate(json.loads((libraries / f"{name}.json").read_text()))
    path = libraries / f"{name}-{options.device.kind}.so"
    metadata, architecture = read_metadata(libraries / f"{name}-cpu.so"), config.architecture
    begin = perf_counter()
    write_folder(folder, config, metadata)
    result: dict[str, Any] = {"library_bytes": path.stat().st_size, "weights_seconds": perf_counter() - begin}
    batches = [batch for batch in options.batch if batch <= metadata.max_batch_size]
    room = max(max(batches) * (_PROMPT + _STEPS + 32), max(options.prefill) + 32)
    begin = perf_counter()
    library = Library.load(path, config=config, device=options.device)
    card = Model.load(folder, library, max_num_sequence=max(batches), max_total_sequence_length=room)
    result["load_seconds"] = perf_counter() - begin
    if name != "llama-3-8b":
        processor = Model.load(folder, libraries / f"{name}-cpu.so", max_num_sequence=2, max_total_sequence_length=512)
        result["logits"] = compare_logits(card, processor)
        del processor
    read = weight_bytes(metadata, architecture["tie_word_embeddings"])
    result["decode"] = {}
    for batch in batches:
        took = decode_seconds(card, batch)
        needed = read + batch * kv_bytes(library.metadata, _PROMPT)
        result["decode"][batch] = {"seconds": took, "tokens_per_second": batch / took,
                                   "share_of_bandwidth": needed / took / bandwidth}  # fmt: skip
    result["prefill"] = {}
    for count in options.prefill:
        took = prefill_seconds(card, count)
        operations = 2 * count * weight_count(architecture)
        result["prefill"][count] = {"seconds": took, "tokens_per_second": count / took}
        if rate:
            result["prefill"][count]["share_of_matrix_rate"] = operations / took / rate
    del card
    if rate and not name.endswith("layers"):
        result["torch"] = torch_results(architecture, batches, options.prefill)
    return result


def torch_results(architecture: dict[str, Any], batches: list[int], prefills: list[int]) -> dict[str, Any]:
    """The same in torch."""
    decode, prefill = {}, {}
    for batch in batches:
        took = torch_llama.TorchLlama(architecture, batch, _PROMPT).decode_seconds()
        decode[batch] = {"seconds": took, "tokens_per_second": batch / took}
    model = torch_llama.TorchLlama(architecture, 1, max(prefills))
    for count in prefills:
        took = model.prefill_seconds(count)
        prefill[count] = {"seconds": took, "tokens_per_second": count / took}
    return {"decode": decode, "prefill": prefill}


def show(name: str, result: dict[str, Any]) -> None:
    """One shape's results as lines."""
    print(f"\n{name}: library {result['library_bytes'] / 1e6:.1f} MB, loaded in {result['load_seconds']:.1f} s")
    if "logits" in result:
        found = result["logits"]
        print(f"  logits of {found['positions']} positions: {found['largest']:.4f} of a standard deviation at most, "
              f"{found['mean']:.5f} on average, same largest in {found['same_argmax']:.1%}")  # fmt: skip
    for what in _SHOWN:
        for size, row in result[what].items():
            share = row.get("share_of_bandwidth", row.get("share_of_matrix_rate"))
            text = f"  {what:8}{size:6}  {row['seconds'] * 1e3:9.2f} ms {row['tokens_per_second']:10.0f} tokens/s"
            text += "" if share is None else f"  {share:6.1%}"
            if "torch" in result:
                text += f"  (torch {result['torch'][what][size]['tokens_per_second']:.0f} tokens/s)"
            print(text)
    sys.stdout.flush()


def main() -> None:
    """Measure what the archive holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = Path(__file__).resolve().parents[3]
    parser.add_argument("--libraries", type=Path, default=here / "libraries")
    parser.add_argument("--shape", nargs="*", help="default: all of the archive")
    parser.add_argument("--batch", nargs="*", type=int, default=[1, 8, 64])
    parser.add_argument("--prefill", nargs="*", type=int, default=[128, 2048])
    parser.add_argument("--output", type=Path, default=Path("results.json"))
    parser.add_argument("--weights", type=Path, help="a folder with room for them; default: a temporary one")
    parser.add_argument("--no-torch", action="store_true")
    options = parser.parse_args()
    kind = json.loads((options.libraries / "device.json").read_text()).partition(":")[0]
    options.device = ffi.Device(kind)
    names = options.shape or sorted(path.stem for path in options.libraries.glob("*.json") if path.stem != "device")
    results: dict[str, Any] = {}
    Library.load(options.libraries / f"{names[0]}-{kind}.so", device=options.device)  # opens the device
    bandwidth = copy_bandwidth(options.device)
    rate = 0.0
    if not options.no_torch and kind == "cuda":
        try:
            rate = torch_llama.matrix_rate()
        except Exception as error:
            print(f"without torch: {error}")
    results["card"] = {"copy_bytes_per_second": bandwidth, "matrix_operations_per_second": rate}
    print(f"copies at {bandwidth / 1e9:.0f} GB/s" + (f", multiplies at {rate / 1e12:.0f} TFLOP/s" if rate else ""))
    for name in names:
        with tempfile.TemporaryDirectory(dir=options.weights) as folder:
            results[name] = measure(Path(folder, name), name, options, bandwidth, rate)
        show(name, results[name])
        options.output.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
