"""A tiny GGUF llama whose blocks are kept, a mixture of types in every layer: logits equal transformers'."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from device_kernels import KINDS, require_device
from gguf_files import Sizes, as_blocks, llama_metadata, llama_tensors, write_gguf

from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.compiler.source import open_source
from mlc_llm.runtime.model import Model

SIZES = Sizes(hidden=256, heads=4, kv_heads=2, head_dim=64, intermediate=512)
TYPES = {
    "token_embd": ("Q6_K",),
    "attn_q": ("Q4_K", "Q4_0"),  # of the first layer, of the second
    "attn_k": ("Q4_K", "Q4_0"),
    "attn_v": ("Q6_K", "Q8_0"),
    "attn_output": ("Q5_K", "F16"),
    "ffn_gate": ("Q4_1", "Q3_K"),
    "ffn_up": ("Q4_1", "Q4_1"),
    "ffn_down": ("Q2_K", "IQ4_XS"),
}


def write(path: Path) -> Path:
    tensors: dict[str, Any] = {}
    for index, (name, value) in enumerate(llama_tensors(sizes=SIZES).items()):
        *block, part, _ = name.split(".")
        smaller = value * np.float32(0.1) if value.ndim == 2 else 1 + value * np.float32(0.2)
        types = TYPES.get(part)
        tensors[name] = as_blocks(smaller, types[int(block[1]) if block else 0], seed=index) if types else smaller
    return write_gguf(path, {**llama_metadata(SIZES), "general.file_type": 15}, tensors)


@pytest.mark.parametrize("device", ["cpu", *KINDS])
def test_logits_equal_transformers_on_the_weights_of_the_file(device: str, tmp_path: Path) -> None:
    require_device(device)
    path = write(tmp_path / "Tiny-Q4_K_M.gguf")
    options = CompileOptions(str(path), output=tmp_path / "out", overrides="prefill_chunk_size=32", device=device)
    result = compile_model(options)
    assert result.quantization == "q4_k_m"
    compiled = Model.load(result.folder, result.library, max_num_sequence=2, max_total_sequence_length=128)

    source = open_source(str(path))
    fields = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**fields)).eval().float()
    model.load_state_dict({name: torch.from_numpy(source.read(name)) for name in source.tensors}, strict=False)
    tokens = np.random.default_rng(0).integers(0, SIZES.vocab, 50).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()

    # keys, values and queries are rounded to float16 in the cache
    tolerance = 1e-2 * np.abs(expected).max()
    sequence = compiled.add_sequence()
    np.testing.assert_allclose(compiled.logits_of(sequence, tokens[:40]), expected[:40], rtol=0, atol=tolerance)
    for i in range(40, 50):
        np.testing.assert_allclose(compiled.decode([sequence], [tokens[i]])[0], expected[i], rtol=0, atol=tolerance)
