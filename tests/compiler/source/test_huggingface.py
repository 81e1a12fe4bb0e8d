"""Hugging Face folders: which files are weights, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mlc_llm.compiler.source import TensorSpec, open_source
from mlc_llm.runtime.errors import ModelFileError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Tiny-1B"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    return folder


def tensor(value: float) -> np.ndarray:
    return np.full((2, 3), value, np.float16)


def write_sharded(folder: Path, weight_map: dict[str, Any]) -> None:
    save_file({"a": tensor(1)}, folder / "model-00001-of-00002.safetensors")
    save_file({"b": tensor(2)}, folder / "model-00002-of-00002.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def complaint(folder: Path) -> str:
    with pytest.raises(ModelFileError) as error:
        open_source(str(folder))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_folder_with_one_weight_file(folder: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    source = open_source(str(folder))
    assert source.name == "Tiny-1B"
    assert source.config == {"model_type": "llama"}
    assert source.generation_config == {"eos_token_id": [1, 2]}
    assert source.tensors == {"a": TensorSpec((2, 3), "float16")}
    np.testing.assert_array_equal(source.read("a"), tensor(1))


def test_its_config_file_names_the_folder(folder: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    assert open_source(str(folder / "config.json")).name == "Tiny-1B"


def test_the_current_folder_has_its_real_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    monkeypatch.chdir(folder)
    assert open_source(".").name == "Tiny-1B"


def test_shards_named_by_an_index(folder: Path) -> None:
    write_sharded(folder, {"b": "model-00002-of-00002.safetensors", "a": "model-00001-of-00002.safetensors"})
    save_file({"a": tensor(9)}, folder / "consolidated.safetensors")
    source = open_source(str(folder))
    assert list(source.tensors) == ["a", "b"]
    np.testing.assert_array_equal(source.read("b"), tensor(2))


def test_shards_without_an_index(folder: Path) -> None:
    write_sharded(folder, {})
    (folder / "model.safetensors.index.json").unlink()
    assert list(open_source(str(folder)).tensors) == ["a", "b"]
    (folder / "model-00001-of-00002.safetensors").unlink()
    assert "lacks model-00001-of-00002.safetensors, which model-00002-of-00002.safetensors says there is" in complaint(
        folder
    )


def test_the_fingerprint_changes_with_the_files(folder: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    first = open_source(str(folder)).fingerprint
    assert open_source(str(folder)).fingerprint == first
    (folder / "config.json").write_text('{"model_type": "llama" }')
    assert open_source(str(folder)).fingerprint != first


def test_tokenizer_files_are_copied_as_they_are(folder: Path, tmp_path: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"):
        (folder / name).write_bytes(name.encode())
    target = tmp_path / "out"
    target.mkdir()
    names = open_source(str(folder)).write_tokenizer(target)
    assert names == ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
    assert {path.name: path.read_bytes() for path in target.iterdir()} == {name: name.encode() for name in names}


def test_a_missing_tokenizer_is_said_with_what_was_found(folder: Path, tmp_path: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    (folder / "vocab.json").write_bytes(b"")
    expected = r"has no tokenizer \(found: vocab.json\): expected tokenizer.json, tokenizer.model or vocab.json with"
    with pytest.raises(ModelFileError, match=expected):
        open_source(str(folder)).write_tokenizer(tmp_path)


@pytest.mark.parametrize("names", [["tokenizer.model"], ["vocab.json", "merges.txt"]])
def test_older_tokenizer_files_are_enough(names: list[str], folder: Path, tmp_path: Path) -> None:
    save_file({"a": tensor(1)}, folder / "model.safetensors")
    for name in names:
        (folder / name).write_bytes(b"")
    assert open_source(str(folder)).write_tokenizer(tmp_path) == names


def test_a_folder_without_config(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "has no config.json: expected the folder of a Hugging Face model, or a compiled one" in complaint(folder)
    (folder / "x.gguf").touch()
    assert "GGUF files: name one of them" in complaint(folder)
    (folder / "mlc-chat-config.json").touch()
    assert "is a compiled model (mlc-chat-config.json), not source weights" in complaint(folder)


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 100_000])
def test_a_config_that_is_not_an_object(folder: Path, content: str) -> None:
    (folder / "config.json").write_text(content)
    assert "config.json" in complaint(folder)


def test_pickles_are_not_read(folder: Path) -> None:
    (folder / "pytorch_model.bin").touch()
    assert "(found pytorch_model.bin): only safetensors and GGUF are read (no pickle)" in complaint(folder)
    assert "only safetensors and GGUF are read (no pickle)" in complaint(folder / "pytorch_model.bin")


def test_the_same_tensor_in_two_shards(folder: Path) -> None:
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"a": tensor(1)}, folder / name)
    assert "tensor a is both in" in complaint(folder)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "model-00003-of-00003.safetensors"}, "lacks model-00003-of-00003.safetensors, which"),
        ({"a": "../other/model.safetensors"}, "is outside its own folder"),
        ({"a": "/etc/model.safetensors"}, "is outside its own folder"),
        ({"a": "C:/model.safetensors"}, "is outside its own folder"),
        ({"a": "..\\model.safetensors"}, "expected a *.safetensors of its own folder"),
        ({"a": "pytorch_model.bin"}, "expected a *.safetensors of its own folder"),
        ({"a": "x\n.safetensors"}, "expected a *.safetensors of its own folder"),
        ({"a": 3}, "expected a *.safetensors of its own folder"),
        ({}, "has no weight_map"),
        ([], "has no weight_map"),
    ],
)
def test_an_index_that_lies(folder: Path, weight_map: Any, message: str) -> None:
    write_sharded(folder, weight_map)
    assert message in complaint(folder)


def test_an_index_that_names_a_tensor_which_its_shard_lacks(folder: Path) -> None:
    write_sharded(folder, {"a": "model-00001-of-00002.safetensors", "z": "model-00002-of-00002.safetensors"})
    assert "names tensor 'z' in model-00002-of-00002.safetensors, which does not hold it" in complaint(folder)
