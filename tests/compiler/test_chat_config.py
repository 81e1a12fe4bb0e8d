"""mlc-chat-config.json as it is made of a Hugging Face folder."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from mlc_llm.compiler.compile import gen_config
from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.errors import ModelFileError, UsageError

# The fields of MLC's schema 0.1.0 (python/mlc_llm/protocol/mlc_chat_config.py)
MLC_FIELDS = {
    *("version", "model_type", "quantization", "model_config", "vocab_size", "context_window_size"),
    *("sliding_window_size", "prefill_chunk_size", "attention_sink_size", "tensor_parallel_shards"),
    *("pipeline_parallel_stages", "active_vocab_size", "temperature", "presence_penalty", "frequency_penalty"),
    *("repetition_penalty", "top_p", "tokenizer_files", "tokenizer_info", "conv_template", "pad_token_id"),
    *("bos_token_id", "eos_token_id", "model_task"),
}


class Notes:
    """A progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def stage(self, name: str, total: int | None = None) -> None: ...

    def advance(self, amount: int, what: str = "") -> None: ...

    def skip(self, name: str, why: str) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)


def change(path: Path, **values: Any) -> None:
    """Change fields of a JSON file; None removes one."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({key: value for key, value in {**content, **values}.items() if value is not None}))


def generate(folder: Path, **options: Any) -> tuple[ChatConfig, dict[str, Any]]:
    output = folder.parent / "out"
    config = gen_config(str(folder), "q4f16_1", output, **options)
    return config, json.loads((output / "mlc-chat-config.json").read_text())


def test_every_field_of_mlcs_schema_is_written(llama_folder: Path) -> None:
    config, written = generate(llama_folder)
    assert set(written) >= MLC_FIELDS
    assert written["version"] == "0.1.0"
    assert written["model_type"] == "llama"
    assert written["model_config"]["num_key_value_heads"] == 2
    assert written["model_config"]["context_window_size"] == 256
    assert config.context_window_size == 256
    assert config.prefill_chunk_size == 256
    assert config.vocab_size == 272
    assert config.active_vocab_size == 259


def test_sampling_defaults_and_end_tokens_are_those_that_transformers_reads(llama_folder: Path) -> None:
    oracle = transformers.GenerationConfig.from_pretrained(llama_folder)
    config, _ = generate(llama_folder)
    assert (config.temperature, config.top_p) == (oracle.temperature, oracle.top_p)
    assert config.eos_token_id == oracle.eos_token_id == [257, 258]
    assert (config.bos_token_id, config.pad_token_id) == (oracle.bos_token_id, oracle.pad_token_id)
    assert (config.presence_penalty, config.frequency_penalty, config.repetition_penalty) == (0.0, 0.0, 1.0)


def test_without_a_generation_config_the_model_config_tells(llama_folder: Path) -> None:
    (llama_folder / "generation_config.json").unlink()
    config, _ = generate(llama_folder)
    assert (config.eos_token_id, config.temperature, config.top_p) == (257, 1.0, 1.0)


def test_tokenizer_files_are_listed_and_load_in_transformers(llama_folder: Path) -> None:
    config, _ = generate(llama_folder)
    output = llama_folder.parent / "out"
    assert all((output / name).is_file() for name in config.tokenizer_files)
    original = transformers.AutoTokenizer.from_pretrained(llama_folder)
    copied = transformers.AutoTokenizer.from_pretrained(output)
    assert copied("<|im_start|>user\nHi there").input_ids == original("<|im_start|>user\nHi there").input_ids
    assert config.tokenizer_info is not None
    assert config.tokenizer_info.token_postproc_method == "byte_level"


def test_a_models_own_chat_template_comes_first_and_mlc_gets_the_same_format(llama_folder: Path) -> None:
    config, _ = generate(llama_folder)
    assert config.prompt_format == "jinja"
    assert config.conv_template is not None
    assert config.conv_template["roles"]["user"] == "<|im_start|>user"
    assert config.conv_template["stop_token_ids"] == [257, 258]  # this model's ids, not those of another tokenizer


def test_a_named_template_overrules_the_models_own(llama_folder: Path) -> None:
    config, _ = generate(llama_folder, conv_template="llama-3")
    assert config.prompt_format == "conv_template"
    assert config.conv_template is not None
    assert config.conv_template["name"] == "llama-3"
    assert config.conv_template["system_prefix_token_ids"] == [256]


def test_a_model_without_chat_template_gets_one_by_its_tokens_and_says_so(llama_folder: Path) -> None:
    change(llama_folder / "tokenizer_config.json", chat_template=None)
    progress = Notes()
    config, _ = generate(llama_folder, progress=progress)
    assert config.prompt_format == "conv_template"
    assert config.conv_template is not None
    assert config.conv_template["name"] == "chatml"
    assert progress.notes == [
        "Tiny-Llama brings no chat template: 'chatml' is used; --conv-template NAME chooses another"
    ]


def test_a_base_model_gets_its_text_as_it_is(llama_folder: Path) -> None:
    change(llama_folder / "tokenizer_config.json", chat_template=None)
    change(llama_folder / "tokenizer.json", added_tokens=[])
    config, _ = generate(llama_folder)
    assert config.conv_template is not None
    assert config.conv_template["name"] == "plain"
    assert config.conv_template["stop_token_ids"] == [257, 258]


def test_overrides_change_the_sizes(llama_folder: Path) -> None:
    config, written = generate(llama_folder, overrides="context_window_size=128;prefill_chunk_size=32;max_batch_size=2")
    assert (config.context_window_size, config.prefill_chunk_size) == (128, 32)
    assert written["model_config"]["context_window_size"] == 128
    assert written["model_config"]["max_batch_size"] == 2


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("generation_config.json", {"temperature": -1}, r"temperature = -1: expected a number in \[0, 2\]"),
        ("generation_config.json", {"temperature": "hot"}, r"temperature = 'hot'"),
        ("generation_config.json", {"top_p": 0}, r"top_p = 0: expected a number in \(0, 1\]"),
        ("generation_config.json", {"eos_token_id": [257, 9999]}, r"eos_token_id = \[257, 9999\].*0\.\.271"),
        ("generation_config.json", {"bos_token_id": "<s>"}, r"bos_token_id = '<s>'"),
        ("tokenizer_config.json", {"chat_template": "{% for %}"}, r"--conv-template"),
        ("config.json", {"model_type": "mamba"}, r"unknown architecture 'mamba'"),
        ("config.json", {"model_type": None}, r"--model-type"),
    ],
)
def test_nonsense_in_the_source_is_named(llama_folder: Path, file: str, values: dict[str, Any], message: str) -> None:
    change(llama_folder / file, **values)
    with pytest.raises(ModelFileError, match=message):
        generate(llama_folder)
    assert not (llama_folder.parent / "out").exists()


def test_an_unknown_template_is_refused_with_the_nearest_name(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match=r"'llama3'.*llama-3"):
        generate(llama_folder, conv_template="llama3")
