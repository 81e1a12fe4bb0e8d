"""`mlc compile --dry-run`: its numbers against transformers and against what a compilation really writes."""

from pathlib import Path

import pytest
import transformers

from mlc_llm.compiler.compile import CompileOptions, convert_weight, gen_config, plan
from mlc_llm.runtime.artifact import load_tensor_cache
from mlc_llm.runtime.errors import UsageError


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.mark.parametrize("quantization", ["q0f16", "q0f32", "q4f16_1", "q3f16_1", "q4f16_2", "q8f16_1"])
def test_the_plan_is_what_is_then_written(quantization: str, llama_folder: Path, tmp_path: Path) -> None:
    planned = plan(CompileOptions(str(llama_folder), quantization=quantization))
    convert_weight(str(llama_folder), quantization, tmp_path / "out")
    _, cache = load_tensor_cache(tmp_path / "out")
    assert planned.file_bytes == sum(shard.nbytes for shard in cache.records)
    assert planned.weight_bytes == cache.metadata["ParamBytes"]
    assert planned.bits_per_weight == cache.metadata["BitsPerParam"]


def test_parameters_are_counted_as_transformers_counts_them(llama_folder: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(llama_folder)
    assert plan(CompileOptions(str(llama_folder))).parameters == model.num_parameters()


@pytest.mark.parametrize(("quantization", "itemsize"), [("q4f16_1", 2), ("q4f32_1", 4)])
def test_the_kv_cache_holds_keys_and_values_of_every_layer(
    quantization: str, itemsize: int, llama_folder: Path
) -> None:
    planned = plan(CompileOptions(str(llama_folder), quantization=quantization, overrides="context_window_size=128"))
    assert planned.kv_bytes_per_token == 2 * 2 * 2 * 16 * itemsize  # layers, keys and values, KV heads, head size
    assert planned.kv_cache_bytes == 128 * planned.kv_bytes_per_token
    assert planned.memory_bytes == planned.weight_bytes + planned.kv_cache_bytes + planned.activation_bytes


def test_a_plan_writes_nothing(llama_folder: Path) -> None:
    planned = plan(CompileOptions(str(llama_folder)))
    assert planned.to_dict()["folder"] == "dist/Tiny-Llama-q4f16_1-MLC"
    assert list(Path().iterdir()) == []


def test_a_compiled_folder_can_be_planned_for(llama_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "Tiny-q0f16-MLC"
    gen_config(str(llama_folder), "q0f16", folder)
    planned, source = plan(CompileOptions(str(folder))), plan(CompileOptions(str(llama_folder), quantization="q0f16"))
    assert (planned.folder, planned.library) == (folder, tmp_path / "libs" / "Tiny-q0f16-cpu.so")
    numbers = {"folder", "library"}
    assert {k: v for k, v in planned.to_dict().items() if k not in numbers} == {
        k: v for k, v in source.to_dict().items() if k not in numbers
    }


def test_wrong_options_are_refused_as_by_a_compilation(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match="unknown quantization"):
        plan(CompileOptions(str(llama_folder), quantization="q9"))
