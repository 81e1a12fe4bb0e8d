"""Small model files, made by the packages that define the formats."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

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


def llama_metadata() -> dict[str, Any]:
    """Metadata of a tiny llama with a six-piece SentencePiece vocabulary."""
    count = len(SPM_TOKENS)
    return {
        "llama.block_count": SIZES.layers,
        "llama.context_length": 128,
        "llama.embedding_length": SIZES.hidden,
        "llama.feed_forward_length": SIZES.intermediate,
        "llama.attention.head_count": SIZES.heads,
        "llama.attention.head_count_kv": SIZES.kv_heads,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": SPM_TOKENS,
        "tokenizer.ggml.scores": [0.0] * 259 + [-float(index) for index in range(count - 259)],
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * (count - 259)],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }


def llama_tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Random float32 tensors of that llama under GGUF's names."""
    rng = np.random.default_rng(seed)

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    tensors = {"token_embd.weight": random(len(SPM_TOKENS), SIZES.hidden), "output_norm.weight": random(SIZES.hidden)}
    for layer in range(SIZES.layers):
        parts = {
            "attn_norm": (SIZES.hidden,),
            "attn_q": (SIZES.heads * SIZES.head_dim, SIZES.hidden),
            "attn_k": (SIZES.kv_heads * SIZES.head_dim, SIZES.hidden),
            "attn_v": (SIZES.kv_heads * SIZES.head_dim, SIZES.hidden),
            "attn_output": (SIZES.hidden, SIZES.heads * SIZES.head_dim),
            "ffn_norm": (SIZES.hidden,),
            "ffn_gate": (SIZES.intermediate, SIZES.hidden),
            "ffn_up": (SIZES.intermediate, SIZES.hidden),
            "ffn_down": (SIZES.hidden, SIZES.intermediate),
        }
        tensors |= {f"blk.{layer}.{part}.weight": random(*shape) for part, shape in parts.items()}
    return tensors


def _write(
    path: Path,
    metadata: Mapping[str, Any] | None = None,
    tensors: Mapping[str, Any] | None = None,
    *,
    architecture: str = "llama",
) -> Path:
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


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """write_gguf(path, metadata, tensors): by gguf.GGUFWriter; both default to the tiny llama."""
    return _write


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    """The tiny llama's."""
    return SIZES


@pytest.fixture
def metadata() -> dict[str, Any]:
    return llama_metadata()


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return llama_tensors()
