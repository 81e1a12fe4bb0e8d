"""Models that keep the blocks of their GGUF file: which format each weight gets, and what stands in the folder."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_files import SIZES, as_blocks, llama_metadata, llama_tensors, stored_weight, write_gguf

from mlc_llm.compiler.compile import CompileOptions, convert_weight, gen_config, plan
from mlc_llm.compiler.inputs import folder_config, open_model
from mlc_llm.compiler.model.architecture import Weight
from mlc_llm.compiler.progress import SILENT
from mlc_llm.compiler.quantization.blocks import BlockFormat
from mlc_llm.compiler.quantization.choice import choose_scheme, folder_scheme
from mlc_llm.compiler.quantization.kept import BlockScheme
from mlc_llm.compiler.source import open_source
from mlc_llm.runtime.artifact import load_chat_config, load_tensor_cache, model_hash
from mlc_llm.runtime.errors import ModelFileError, UsageError
from mlc_llm.runtime.weights import WeightStore

LAYER = "model.layers.0.self_attn."
# The tiny llama's rows have 64 and 96 inputs: types of 32
TYPES = {"attn_q": "Q4_0", "attn_k": "Q4_0", "attn_v": "Q8_0", "attn_output": "Q5_1", "ffn_gate": "Q4_1",
         "ffn_up": "Q4_1", "ffn_down": "Q5_0", "token_embd": "Q8_0"}  # fmt: skip


def tensors(**types: str) -> dict[str, Any]:
    """The tiny llama in TYPES, or others."""
    chosen = {**TYPES, **types}
    result: dict[str, Any] = {}
    for name, value in llama_tensors().items():
        part = name.removesuffix(".weight").rpartition(".")[2]
        result[name] = as_blocks(value, chosen[part]) if part in chosen and value.ndim == 2 else value
    return result


def write(path: Path, content: dict[str, Any] | None = None, **metadata: int) -> Path:
    keys = {f"general.{key}": value for key, value in metadata.items()}
    return write_gguf(path, {**llama_metadata(), **keys}, tensors() if content is None else content)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "Tiny.gguf")


def scheme_of(path: Path, name: str | None = None) -> Any:
    model = open_model(str(path), "auto", {}, SILENT)
    return choose_scheme(name, model.source, model.weights)


def test_each_matrix_has_the_format_of_its_blocks(source: Path) -> None:
    scheme = scheme_of(source)
    assert scheme.formats == {
        "model.embed_tokens.weight": "q8_0",
        "model.layers.*.self_attn.qkv_proj.weight": "q4_0+q8_0",
        "model.layers.*.self_attn.o_proj.weight": "q5_1",
        "model.layers.*.mlp.gate_up_proj.weight": "q4_1",
        "model.layers.*.mlp.down_proj.weight": "q5_0",
    }


def test_layers_that_differ_from_most_are_named(tmp_path: Path) -> None:
    content = tensors()
    content["blk.1.ffn_down.weight"] = as_blocks(llama_tensors()["blk.1.ffn_down.weight"], "Q8_0")
    scheme = scheme_of(write(tmp_path / "x.gguf", content))
    assert scheme.formats["model.layers.*.mlp.down_proj.weight"] == "q5_0"
    assert scheme.formats["model.layers.1.mlp.down_proj.weight"] == "q8_0"

    def form(layer: int) -> Any:
        return scheme.format_of(Weight(f"model.layers.{layer}.mlp.down_proj.weight", (), (64, 96), "linear")).name

    assert (form(0), form(1), form(17)) == ("q5_0", "q8_0", "q5_0")


@pytest.mark.parametrize(
    ("types", "expected"),
    [
        (("F16", "F16", "F16"), "float16"),
        (("BF16", "BF16", "BF16"), "bfloat16"),
        (("F32", "F32", "F32"), "float32"),
        (("F16", "F16", "BF16"), "float32"),
        (("Q8_0", "Q8_0", "F16"), "float32"),
    ],
)
def test_plain_matrices_stay_plain(types: tuple[str, str, str], expected: str, tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", tensors(attn_q=types[0], attn_k=types[1], attn_v=types[2]))
    assert scheme_of(path).formats["model.layers.*.self_attn.qkv_proj.weight"] == expected
    convert_weight(str(path), scheme_of(path).name, tmp_path / "out")
    stored = WeightStore(tmp_path / "out")
    assert stored.records[f"{LAYER}qkv_proj.weight"].dtype == expected
    read = stored.read(f"{LAYER}qkv_proj.weight")
    if expected == "bfloat16":
        read = (read.astype(np.uint32) << 16).view(np.float32)
    source = open_source(str(path))
    whole = np.concatenate([source.read(f"{LAYER}{part}_proj.weight") for part in "qkv"])
    np.testing.assert_array_equal(read.astype(np.float32), whole)


def test_the_folder_holds_the_weights_of_the_file_exactly(source: Path, tmp_path: Path) -> None:
    """Rows of q and k included, which GGUF stores in another order."""
    planned = plan(CompileOptions(str(source)))
    summary = convert_weight(str(source), planned.quantization, tmp_path / "out")
    stored, opened, scheme = WeightStore(tmp_path / "out"), open_source(str(source)), scheme_of(source)
    matrices = 0
    for weight in open_model(str(source), "auto", {}, SILENT).weights:
        expected = np.concatenate([opened.read(name) for name in weight.sources])
        names = [record.name for record in scheme.stored(weight)]
        form = scheme.format_of(weight)
        if isinstance(form, BlockFormat):
            matrices += 1
            np.testing.assert_array_equal(stored_weight(tuple(stored.read(name) for name in names), form), expected)
        else:
            assert stored.records[names[0]].dtype == "float32"
            np.testing.assert_array_equal(stored.read(names[0]), expected)
    assert matrices == 9
    _, cache = load_tensor_cache(tmp_path / "out")
    assert planned.file_bytes == summary.file_bytes == sum(shard.nbytes for shard in cache.records)
    assert planned.weight_bytes == cache.metadata["ParamBytes"]


def test_the_folder_and_its_library_agree_on_every_format(source: Path, tmp_path: Path) -> None:
    config = gen_config(str(source), "q4_1", tmp_path / "out")
    assert folder_scheme(load_chat_config(tmp_path / "out")) == scheme_of(source)
    assert config.quantization == "q4_1"
    assert config.weight_formats is not None
    other = config.model_copy(update={"weight_formats": {**config.weight_formats, "model.embed_tokens.weight": "q4_0"}})
    assert model_hash(config) != model_hash(other)
    assert model_hash(folder_config(tmp_path / "out", {"context_window_size": 64})) == model_hash(config)


@pytest.mark.parametrize("damage", ["mxfp4", "", "q4_0+"])
def test_a_folder_with_a_format_that_nobody_knows_is_refused(damage: str, source: Path, tmp_path: Path) -> None:
    config = gen_config(str(source), "q4_1", tmp_path / "out")
    assert config.weight_formats is not None
    config.weight_formats["model.embed_tokens.weight"] = damage
    (tmp_path / "out" / "mlc-chat-config.json").write_text(config.to_json())
    with pytest.raises(ModelFileError, match=r"out/mlc-chat-config\.json: weight_formats has .* expected q4_0, q4_1, "):
        plan(CompileOptions(str(tmp_path / "out")))


def test_a_weight_without_a_format_is_named() -> None:
    with pytest.raises(ModelFileError, match=r"weight_formats has None for head\.weight: expected q4_0"):
        BlockScheme("q4_0", {}).stored(Weight("head.weight", (), (32, 64), "head"))


# Names


@pytest.mark.parametrize(
    ("file_type", "expected"),
    [
        (8, "q5_0"),
        (2, "q4_0"),
        (15, "q4_1"),
        (1, "q4_1"),
        (9999, "q4_1"),
    ],  # 15 is Q4_K_M, 1 is F16: no such blocks here
)
def test_a_mixture_is_called_what_the_file_says_if_that_fits(file_type: int, expected: str, tmp_path: Path) -> None:
    assert scheme_of(write(tmp_path / "x.gguf", file_type=file_type)).name == expected


def test_k_mixtures_are_called_as_llama_cpp_calls_them(tmp_path: Path) -> None:
    wide = llama_tensors()["token_embd.weight"].repeat(4, axis=1)
    content = tensors() | {"token_embd.weight": as_blocks(wide, "Q4_K")}
    opened = open_source(str(write(tmp_path / "x.gguf", content, file_type=15)))
    assert opened.file_type == "q4_k_m"


def test_files_without_blocks_are_quantized_as_any_other_source(tmp_path: Path) -> None:
    path = write(tmp_path / "x.gguf", llama_tensors())
    assert scheme_of(path).name == "q4f16_1"
    with pytest.raises(UsageError, match=r"^-q q4_0 keeps the blocks of a GGUF file, and x has none: "):
        scheme_of(path, "q4_0")


def test_a_name_asks_for_the_blocks_that_are_there_or_for_a_scheme(source: Path) -> None:
    assert scheme_of(source, "q4_1") == scheme_of(source)
    assert scheme_of(source, "q4f16_1").name == "q4f16_1"
    with pytest.raises(
        UsageError,
        match=r"^-q q4_k_m .* and those of Tiny are q4_1: leave -q out to keep them, or name one of q0f16, q0bf16",
    ):
        plan(CompileOptions(str(source), quantization="q4_k_m"))


def test_a_damaged_scale_is_refused(tmp_path: Path) -> None:
    content = tensors()
    blocks, type_ = content["blk.1.ffn_up.weight"]
    blocks = blocks.copy()
    blocks[3, 0:2] = np.array([np.inf], np.float16).view(np.uint8)
    content["blk.1.ffn_up.weight"] = blocks, type_
    path = write(tmp_path / "x.gguf", content)
    with pytest.raises(ModelFileError, match=r"x: tensor model\.layers\.1\.mlp\.up_proj\.weight has NaN or infinite"):
        convert_weight(str(path), "q4_1", tmp_path / "out")


def test_blocks_are_read_in_pieces_and_a_file_that_shrinks_is_noticed(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_source(str(source))
    whole = opened.read_blocks(f"{LAYER}q_proj.weight")
    assert whole.shape == (SIZES.heads * SIZES.head_dim, SIZES.hidden // 32 * gguf.GGML_QUANT_SIZES[2][1])
    monkeypatch.setattr("mlc_llm.compiler.source.gguf._CHUNK_BYTES", 1000)
    np.testing.assert_array_equal(opened.read_blocks(f"{LAYER}q_proj.weight"), whole)
    source.write_bytes(source.read_bytes()[:-9000])
    with pytest.raises(ModelFileError, match="the file changed while it was read"):
        opened.read_blocks("model.layers.1.mlp.up_proj.weight")
