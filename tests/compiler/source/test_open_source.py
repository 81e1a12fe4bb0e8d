"""What MODEL may be, and what anything else is told."""

from pathlib import Path
from typing import Any

import pytest

from mlc_llm.compiler.source import open_source
from mlc_llm.runtime.errors import ModelFileError, UsageError

FORMS = "a Hugging Face or compiled folder, its config.json, a .gguf file, HF://org/name or a built-in name"


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("", f"'' does not exist: expected {FORMS} (smollm2-135m-instruct)"),
        ("nothing-like-it", f"'nothing-like-it' does not exist: expected {FORMS}"),
        ("smolm2-135m-instruct", "does not exist (did you mean smollm2-135m-instruct?): expected"),
        ("a\0b", "'a\\x00b' does not exist"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("~no-such-user-here/model", "cannot be read: Could not determine home directory."),
        ("hf://", "'hf://' is not a Hugging Face repository: expected HF://org/name or HF://org/name@revision"),
        ("HF://name", "is not a Hugging Face repository"),
        ("HF://a/b/c", "is not a Hugging Face repository"),
        ("HF://../b", "is not a Hugging Face repository"),
        ("HF://a/..", "is not a Hugging Face repository"),
        ("HF://a/b@../main", "is not a Hugging Face repository"),
        ("HF://a/b@", "is not a Hugging Face repository"),
    ],
)
def test_what_names_no_model_gets_one_line(model: str, message: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as error:
        open_source(model)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_path_that_does_not_exist_is_told_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "Llama-3.2-1B").mkdir()
    with pytest.raises(UsageError, match=r"does not exist \(did you mean .*/Llama-3.2-1B\?\): expected"):
        open_source(str(tmp_path / "Llama-3.1-1B"))


@pytest.mark.parametrize("name", ["model.bin", "model.pt", "model.pth", "model.ckpt"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(ModelFileError, match=r"only safetensors and GGUF are read \(no pickle\)"):
        open_source(str(tmp_path / name))


def test_other_files_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UsageError, match=r"notes.txt is not a model: expected a Hugging Face or compiled folder"):
        open_source(str(tmp_path / "notes.txt"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UsageError, match=r"model.safetensors is not a model: name its folder, "):
        open_source(str(tmp_path / "model.safetensors"))


def test_a_file_called_gguf_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"<!DOCTYPE html>")
    with pytest.raises(ModelFileError, match=r"x.gguf is not a GGUF file: it starts with b'<!DO', not b'GGUF'"):
        open_source(str(tmp_path / "x.gguf"))


def test_an_existing_path_goes_before_a_built_in_name(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2-135m-instruct").mkdir()
    with pytest.raises(ModelFileError, match=r"has no config.json"):
        open_source("smollm2-135m-instruct")
