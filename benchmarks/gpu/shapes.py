"""The models that are measured: their shapes, and weights made up on the spot."""

import hashlib
import json
from collections.abc import Iterator
from math import prod, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from mlc_llm.runtime.artifact import ChatConfig, LibraryMetadata, ParamMetadata
from mlc_llm.runtime.tvm_runtime import nbytes_of

_LLAMA_3_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
}
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {
        **_LLAMA_3_8B,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 512,
    },
    "demo": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_attention_heads": 9,
        "num_hidden_layers": 30,
        "num_key_value_heads": 3,
        "head_dim": 64,
        "rms_norm_eps": 1e-5,
        "vocab_size": 49152,
        "tie_word_embeddings": True,
        "rope_theta": 100000.0,
        "max_position_embeddings": 8192,
    },
    "llama-3-8b": _LLAMA_3_8B,
    # its kernels in a model that a processor computes quickly too: for the comparison of logits
    "llama-3-8b-2-layers": {**_LLAMA_3_8B, "num_hidden_layers": 2, "vocab_size": 8192},
}
QUANTIZATION = "q4f16_1"
_SHARD = 256 << 20  # bytes


def chat_config(architecture: dict[str, Any]) -> ChatConfig:
    """`mlc-chat-config.json` of a model with this architecture, as its class describes it."""
    return ChatConfig(
        model_type="llama",
        quantization=QUANTIZATION,
        architecture=architecture,
        vocab_size=architecture["vocab_size"],
        context_window_size=architecture["context_window_size"],
        prefill_chunk_size=architecture["prefill_chunk_size"],
    )


def write_folder(folder: Path, config: ChatConfig, metadata: LibraryMetadata) -> None:
    """A model folder with random weights that keep activations near 1: the same for every call."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mlc-chat-config.json").write_text(config.to_json())
    random = np.random.Generator(np.random.SFC64(1))
    shards = []
    for number, params in enumerate(_shards(metadata.params)):
        path, records, offset, digest = folder / f"params_shard_{number}.bin", [], 0, hashlib.md5()
        with path.open("wb") as file:
            for param in params:
                data = _weight(param, random)
                file.write(data)
                digest.update(data)
                records.append({"name": param.name, "shape": list(param.shape), "dtype": param.dtype, "format": "raw",
                                "nbytes": len(data), "byteOffset": offset})  # fmt: skip
                offset += len(data)
        shards.append({"dataPath": path.name, "format": "raw-shard", "nbytes": offset, "md5sum": digest.hexdigest(),
                       "records": records})  # fmt: skip
    (folder / "tensor-cache.json").write_text(json.dumps({"metadata": {}, "records": shards}))


def _shards(params: list[ParamMetadata]) -> Iterator[list[ParamMetadata]]:
    shard: list[ParamMetadata] = []
    for param in params:
        shard.append(param)
        if sum(nbytes_of(one.shape, one.dtype) for one in shard) > _SHARD:
            yield shard
            shard = []
    if shard:
        yield shard


def _weight(param: ParamMetadata, random: np.random.Generator) -> bytes:
    if param.dtype == "uint32":  # eight codes of 4 bits, whose mean is near their zero point
        return random.bytes(nbytes_of(param.shape, param.dtype))
    if len(param.shape) == 1:
        return np.ones(param.shape, param.dtype).tobytes()
    if "scale" in param.name:  # of groups of 32 codes, which deviate by 4.6 from their zero point
        typical = 1 / (4.6 * sqrt(32 * param.shape[-1]))
        return (typical * random.uniform(0.5, 1.4, param.shape)).astype(param.dtype).tobytes()
    return (random.standard_normal(param.shape) / sqrt(param.shape[-1])).astype(param.dtype).tobytes()


def weight_bytes(metadata: LibraryMetadata, tied: bool) -> int:
    """Bytes of weights that a decoding step reads: all but an embedding of tokens that is not the head too."""
    return sum(
        nbytes_of(param.shape, param.dtype) for param in metadata.params if tied or "embed_tokens" not in param.name
    )


def weight_count(architecture: dict[str, Any]) -> int:
    """Multiplications of a token's pass, without attention."""
    a = architecture
    attention = a["hidden_size"] * a["head_dim"] * 2 * (a["num_attention_heads"] + a["num_key_value_heads"])
    mlp = prod((3, a["hidden_size"], a["intermediate_size"]))
    return int(a["num_hidden_layers"] * (attention + mlp) + a["hidden_size"] * a["vocab_size"])


def kv_bytes(metadata: LibraryMetadata, tokens: int) -> int:
    """Bytes of keys and values that a decoding step of one sequence reads."""
    cache = metadata.kv_cache
    size = {"float16": 2, "float32": 4, "int8": 1}[cache.dtype]
    return 2 * cache.num_hidden_layers * cache.num_key_value_heads * cache.head_dim * tokens * size
