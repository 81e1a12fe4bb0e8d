"""GGUF files of tiny llamas, written by the gguf package, and random blocks of every type."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

from mlc_llm.compiler.quantization.blocks import BlockFormat

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
SPM_TOKENS = ["<unk>", "<s>", "</s>", *BYTE_TOKENS, "\u2581", "a", "b", "\u2581a", "ab", "\u2581ab"]


@dataclass(frozen=True)
class Sizes:
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 96
    layers: int = 2
    vocab: int = len(SPM_TOKENS)


SIZES = Sizes()


def llama_metadata(sizes: Sizes = SIZES) -> dict[str, Any]:
    """Metadata of a tiny llama with a six-piece SentencePiece vocabulary."""
    count = len(SPM_TOKENS)
    return {
        "llama.block_count": sizes.layers,
        "llama.context_length": 128,
        "llama.embedding_length": sizes.hidden,
        "llama.feed_forward_length": sizes.intermediate,
        "llama.attention.head_count": sizes.heads,
        "llama.attention.head_count_kv": sizes.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TOKENS,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(index) for index in range(count - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (count - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_tensors(seed: int = 0, sizes: Sizes = SIZES) -> dict[str, np.ndarray]:
    """Random float32 tensors of that llama under GGUF's names."""
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    tensors = {"token_embd.weight": random(len(SPM_TOKENS), sizes.hidden), "output_norm.weight": random(sizes.hidden)}
    for layer in range(sizes.layers):
        parts = {
            "attn_norm": (sizes.hidden,),
            "attn_q": (sizes.heads * sizes.head_dim, sizes.hidden),
            "attn_k": (sizes.kv_heads * sizes.head_dim, sizes.hidden),
            "attn_v": (sizes.kv_heads * sizes.head_dim, sizes.hidden),
            "attn_output": (sizes.hidden, sizes.heads * sizes.head_dim),
            "ffn_norm": (sizes.hidden,),
            "ffn_gate": (sizes.intermediate, sizes.hidden),
            "ffn_up": (sizes.intermediate, sizes.hidden),
            "ffn_down": (sizes.hidden, sizes.intermediate),
        }
        tensors |= {f"blk.{layer}.{part}.weight": random(*shape) for part, shape in parts.items()}
    return tensors


def write_gguf(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
) -> Path:
    """Write a GGUF file; both default to the tiny llama. A tensor may be a pair of stored bytes and their type."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (llama_metadata() if metadata is None else metadata).items():
        match value:
            case bool():
                writer.add_bool(key, value)
            case int():
                writer.add_uint32(key, value)
            case float():
                writer.add_float32(key, value)
            case str():
                writer.add_string(key, value)
            case _:
                writer.add_array(key, value)
    for name, value in (llama_tensors() if tensors is None else tensors).items():
        data, type_ = value if isinstance(value, tuple) else (value, None)
        writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Where the float16 numbers of a block are
_HALVES = {"Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
           "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,)}  # fmt: skip
BLOCK_TYPES = [gguf.GGMLQuantizationType[name] for name in _HALVES]


def random_blocks(
    type_: gguf.GGMLQuantizationType, rows: int, columns: int, *, scale: float = 0.05, seed: int = 0
) -> Any:
    """Stored bytes uint8 [rows, bytes] of random blocks whose weights are about as large as `scale`.

    Every bit pattern of codes and small scales occurs; the float16 numbers have either sign.
    """
    elements, nbytes = gguf.GGML_QUANT_SIZES[type_]
    rng = np.random.default_rng([seed, int(type_), rows, columns])
    blocks = rng.integers(0, 256, (rows * columns // elements, nbytes), dtype=np.uint8)
    for offset in _HALVES[type_.name]:
        blocks[:, offset : offset + 2] = rng.standard_normal((len(blocks), 1)).astype("<f2").view(np.uint8)
    largest = np.abs(gguf.quants.dequantize(blocks, type_)).max()
    for offset in _HALVES[type_.name]:
        half = np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2")
        blocks[:, offset : offset + 2] = (half * np.float16(4 * scale / largest)).view(np.uint8)
    return blocks.reshape(rows, -1)


def as_blocks(values: np.ndarray, name: str, seed: int = 0) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    """A matrix in a GGUF type, for `write_gguf`: by the package's quantizer, or random blocks where it has none."""
    type_ = gguf.GGMLQuantizationType[name]
    if name.endswith("_K") or name.startswith("IQ"):
        return random_blocks(type_, *values.shape, scale=float(values.std()), seed=seed), type_
    return gguf.quants.quantize(values, type_), type_


def stored_weight(tensors: tuple[NDArray[np.generic], ...], form: BlockFormat) -> NDArray[np.float32]:
    """What stored tensors stand for, in float32: (code - zero point) * scale + minimum."""
    named = dict(zip(form.records(1, 256), tensors, strict=True))
    words, per_word = named["q_weight"], 32 // form.bits
    shifts = np.arange(per_word, dtype=np.uint32) * np.uint32(form.bits)
    codes = (words[:, :, None] >> shifts & np.uint32(2**form.bits - 1)).reshape(len(words), -1)

    def of_inputs(name: str) -> NDArray[np.float32]:
        values = np.repeat(named[f"q_{name}"].astype(np.float32), form.group_size, axis=1)
        if form.scale_dtype == "int8":
            values *= np.repeat(named[f"q_super_{name}"].astype(np.float32), 256, axis=1)
        return values

    weight = (codes.astype(np.float32) - np.float32(form.zero_point)) * of_inputs("scale")
    return weight + of_inputs("min") if form.minimum else weight
