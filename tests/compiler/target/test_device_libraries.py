"""Whole models compiled for cards that are not here: every kernel of theirs becomes machine code."""

import shutil
import struct
from pathlib import Path

import pytest
from code_objects import code_objects, instructions, symbols

from mlc_llm.compiler.library import build_library
from mlc_llm.compiler.model.registry import get_architecture
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.devices.cuda_code import FAT_BINARY, MAGIC, CudaCode
from mlc_llm.runtime.errors import EngineError

_SHAPE = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "vocab_size": 512,
    "tie_word_embeddings": True,
    "rope_theta": 10000.0,
    "max_position_embeddings": 2048,
}


def _library(device: str, folder: Path) -> bytes:
    """The library of a small Llama."""
    config = get_architecture("llama").from_dict(_SHAPE)
    chat = ChatConfig(
        model_type="llama",
        quantization="q4f16_1",
        architecture=config.to_dict(),
        vocab_size=512,
        context_window_size=2048,
        prefill_chunk_size=512,
    )
    try:
        target = resolve_target(device)
    except EngineError as error:
        pytest.skip(str(error))
    build_library(chat, folder / "library.so", target=target)
    return (folder / "library.so").read_bytes()


@pytest.mark.slow
def test_rocm(tmp_path: Path) -> None:
    found = code_objects(_library("rocm:gfx1100,gfx942", tmp_path))
    assert list(found) == ["gfx1100", "gfx942"]
    kernels = []
    for name, code in found.items():
        defined = dict(symbols(code))
        assert 0 not in defined.values()  # nothing is looked for elsewhere
        kernels.append({symbol for symbol in defined if symbol.endswith(".kd")})
        text = instructions(code, name, tmp_path)
        assert text is None or "<unknown>" not in text
    assert kernels[0] == kernels[1]
    assert len(kernels[0]) > 20


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="this machine has no nvcc")
def test_cuda(tmp_path: Path) -> None:
    library = _library("cuda:sm_80", tmp_path)
    start = library.index(MAGIC)
    (size,) = struct.unpack_from("<Q", library, start - 8)
    image = CudaCode.unpacked(library[start : start + size]).images[FAT_BINARY]
    assert b"decode_attention" in image
    assert b"prefill_attention" in image
