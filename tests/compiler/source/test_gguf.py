"""GGUF tensors come back exactly as the gguf package and transformers have them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf.quants import dequantize, quantize
from gguf_files import BLOCK_TYPES as QUANTIZED_TYPES
from gguf_files import random_blocks
from safetensors.numpy import save_file
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from mlc_llm.compiler.source import TensorSpec, open_source
from mlc_llm.compiler.source.gguf_file import BLOCK_TYPES
from mlc_llm.runtime.errors import ModelFileError

WriteGGUF = Callable[..., Path]
TYPES = [gguf.GGMLQuantizationType(type_id) for type_id in BLOCK_TYPES]
GGUF_PARTS = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def encode(values: np.ndarray, type_: gguf.GGMLQuantizationType) -> np.ndarray:
    """Stored bytes [rows, row bytes]: random blocks, or plain numbers by the package's quantizer."""
    return random_blocks(type_, *values.shape) if type_ in QUANTIZED_TYPES else quantize(values, type_)


@pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.name)
def test_each_type_dequantizes_as_the_gguf_package_does(
    type_: gguf.GGMLQuantizationType, tmp_path: Path, write_gguf: WriteGGUF, metadata: dict[str, Any]
) -> None:
    values = np.random.default_rng(1).standard_normal((512, 512), dtype=np.float32)
    stored = encode(values, type_)
    tensors = {"token_embd.weight": (stored, type_)}
    path = write_gguf(tmp_path / "x.gguf", metadata | {"llama.embedding_length": 512}, tensors)
    source = open_source(str(path))
    assert source.tensors == {"model.embed_tokens.weight": TensorSpec(values.shape, "float32")}
    read = source.read("model.embed_tokens.weight")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, dequantize(stored.view(np.uint8), type_).reshape(values.shape))
    np.testing.assert_array_equal(read, source.read("model.embed_tokens.weight"))


def test_large_tensors_are_read_in_pieces(
    tmp_path: Path, write_gguf: WriteGGUF, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    whole = open_source(str(path)).read("model.embed_tokens.weight")
    monkeypatch.setattr("mlc_llm.compiler.source.gguf._CHUNK_BYTES", 1000)
    np.testing.assert_array_equal(open_source(str(path)).read("model.embed_tokens.weight"), whole)


def test_a_file_that_shrinks_after_it_was_opened_is_noticed(tmp_path: Path, write_gguf: WriteGGUF) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match="the file changed while it was read"):
        source.read(list(source.tensors)[-1])


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct"),
        ("Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Llama-3.2-1B-Instruct"),
        ("tiny.IQ3_XXS.gguf", "tiny"),
        ("tiny-f16.gguf", "tiny"),
        ("tiny-BF16.gguf", "tiny"),
        ("Qwen2.gguf", "Qwen2"),
    ],
)
def test_the_name_is_the_file_name_without_its_quantization(
    file: str, name: str, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    assert open_source(str(write_gguf(tmp_path / file))).name == name


def test_a_gguf_file_is_recognised_whatever_it_is_called(tmp_path: Path, write_gguf: WriteGGUF) -> None:
    assert open_source(str(write_gguf(tmp_path / "sha256-0123"))).config["model_type"] == "llama"


def test_a_part_of_a_split_file_is_refused(tmp_path: Path, write_gguf: WriteGGUF, metadata: dict[str, Any]) -> None:
    path = write_gguf(tmp_path / "x-00001-of-00003.gguf", metadata | {"split.count": 3})
    with pytest.raises(ModelFileError, match="is one part of 3: join them with `llama-gguf-split --merge`"):
        open_source(str(path))


@pytest.fixture(scope="module")
def tiny_llama(sizes: Any) -> LlamaForCausalLM:
    """A random llama with every optional bias and untied embeddings, in float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=sizes.vocab,
        max_position_embeddings=128,
        rms_norm_eps=1e-5,
        attention_bias=True,
        mlp_bias=True,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def as_llama_cpp_writes_it(model: LlamaForCausalLM, sizes: Any) -> dict[str, np.ndarray]:
    """GGUF tensors: renamed, and q/k permuted as LlamaModel.permute of convert_hf_to_gguf.py."""

    def permute(weight: np.ndarray, heads: int) -> np.ndarray:
        halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
        return halves.swapaxes(1, 2).reshape(weight.shape)

    tensors = {}
    for name, parameter in model.state_dict().items():
        value = parameter.numpy()
        if not name.startswith("model.layers."):
            known = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
            tensors[known.get(name, "output.weight")] = value
            continue
        _, _, layer, part, kind = name.replace("self_attn.", "self_attn@").replace("mlp.", "mlp@").split(".")
        part = part.replace("@", ".")
        if part in ("self_attn.q_proj", "self_attn.k_proj"):
            value = permute(value, sizes.heads if part == "self_attn.q_proj" else sizes.kv_heads)
        tensors[f"blk.{layer}.{GGUF_PARTS[part]}.{kind}"] = value
    return tensors


def test_a_converted_model_comes_back_exactly(
    tiny_llama: LlamaForCausalLM, sizes: Any, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", tensors=as_llama_cpp_writes_it(tiny_llama, sizes))
    source = open_source(str(path))
    expected = {name: parameter.numpy() for name, parameter in tiny_llama.state_dict().items()}
    assert set(source.tensors) == set(expected)
    for name, value in expected.items():
        np.testing.assert_array_equal(source.read(name), value, err_msg=name)
    assert (source.config["attention_bias"], source.config["mlp_bias"]) == (True, True)
    assert source.config["tie_word_embeddings"] is False


def test_transformers_loads_what_was_rebuilt_and_gives_the_same_logits(
    tiny_llama: LlamaForCausalLM, sizes: Any, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    source = open_source(str(write_gguf(tmp_path / "tiny.gguf", tensors=as_llama_cpp_writes_it(tiny_llama, sizes))))
    folder = tmp_path / "folder"
    folder.mkdir()
    save_file({name: source.read(name) for name in source.tensors}, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(source.config))
    (folder / "generation_config.json").write_text(json.dumps(source.generation_config))
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = torch.arange(40)[None] * 5 % sizes.vocab
    with torch.no_grad():
        torch.testing.assert_close(model(tokens).logits, tiny_llama(tokens).logits, rtol=0, atol=0)


def test_transformers_own_gguf_reader_agrees(
    tiny_llama: LlamaForCausalLM, sizes: Any, tmp_path: Path, write_gguf: WriteGGUF
) -> None:
    tensors = {
        name: value for name, value in as_llama_cpp_writes_it(tiny_llama, sizes).items() if not name.endswith(".bias")
    }
    source = open_source(str(write_gguf(tmp_path / "tiny.gguf", tensors=tensors)))
    theirs = load_gguf_checkpoint(str(tmp_path / "tiny.gguf"), return_tensors=True, model_to_load=tiny_llama)
    assert set(theirs["tensors"]) == set(source.tensors)
    for name, value in theirs["tensors"].items():
        np.testing.assert_array_equal(source.read(name), value.numpy(), err_msg=name)
    config = theirs["config"]
    assert config.pop("rms_norm_eps") == pytest.approx(source.config["rms_norm_eps"], rel=1e-7)
    shared = set(config) & set(source.config)
    assert shared >= {"hidden_size", "num_key_value_heads", "rope_theta", "max_position_embeddings", "bos_token_id"}
    assert {field: source.config[field] for field in shared} == {field: config[field] for field in shared}
