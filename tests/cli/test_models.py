"""What a user may call a model, and where it is found."""

from pathlib import Path
from typing import Any

import pytest

from mlc_llm.cli import models
from mlc_llm.compiler import compile as driver
from mlc_llm.runtime import published
from mlc_llm.runtime.artifact import ChatConfig, cache_home
from mlc_llm.runtime.errors import UsageError

CONFIG = ChatConfig(
    model_type="llama", quantization="q4f16_1", model_config={"max_batch_size": 4}, vocab_size=10,
    context_window_size=2048, prefill_chunk_size=512,
)  # fmt: skip


def make(folder: Path, *, weights: bool = True) -> Path:
    """A folder with the files by which a compiled model is known."""
    folder.mkdir(parents=True)
    (folder / "mlc-chat-config.json").write_text(CONFIG.to_json())
    if weights:
        (folder / "tensor-cache.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The options of compilations that were asked for, none of which happens."""
    seen: list[Any] = []

    def compile_model(options: Any, progress: Any) -> driver.CompileResult:
        seen.append(options)
        progress.stage("config")
        folder = options.output or Path("dist/x-q4f16_1-MLC")
        return driver.CompileResult(folder, folder / "x.so", "llama", "q4f16_1", "cpu", {})

    monkeypatch.setattr(driver, "compile_model", compile_model)
    return seen


@pytest.mark.parametrize("name", ["Tiny-q4f16_1-MLC", "Tiny-q4f16_1", "Tiny", "tiny", "TINY-q4f16_1-mlc"])
@pytest.mark.parametrize("where", ["dist", "cache"])
def test_a_name_is_found_in_dist_and_in_the_cache(name: str, where: str) -> None:
    root = Path("dist") if where == "dist" else cache_home() / "models"
    folder = make(root / "Tiny-q4f16_1-MLC")
    assert models.find_compiled(name, None) == folder


def test_a_folder_and_its_config_are_found_by_path(place: Path) -> None:
    folder = make(place / "anywhere")
    assert models.find_compiled(str(folder), None) == folder
    assert models.find_compiled(str(folder / "mlc-chat-config.json"), None) == folder


def test_the_default_quantization_wins_and_others_are_taken_when_alone() -> None:
    make(Path("dist/Tiny-q0f32-MLC"))
    assert models.find_compiled("tiny", None) == Path("dist/Tiny-q0f32-MLC")
    make(Path("dist/Tiny-q4f16_1-MLC"))
    assert models.find_compiled("tiny", None) == Path("dist/Tiny-q4f16_1-MLC")
    assert models.find_compiled("tiny", "q0f32") == Path("dist/Tiny-q0f32-MLC")
    assert models.find_compiled("tiny", "q3f16_1") is None


def test_a_name_with_two_meanings_is_refused() -> None:
    make(Path("dist/Tiny-q0f32-MLC"))
    make(Path("dist/Tiny-q3f16_1-MLC"))
    with pytest.raises(
        UsageError, match=r"^tiny is compiled in several quantizations: name one of Tiny-q0f32-MLC, Tiny-q3"
    ):
        models.find_compiled("tiny", None)


def test_a_longer_name_is_another_model() -> None:
    make(Path("dist/Tiny-Chat-q4f16_1-MLC"))
    assert models.find_compiled("tiny", None) is None


def test_what_an_interrupted_compilation_left_is_not_found() -> None:
    make(Path("dist/Tiny-q4f16_1-MLC"), weights=False)
    assert models.find_compiled("tiny", None) is None


def test_a_built_in_name_is_compiled_into_the_cache_once(
    compiled: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    found = models.find_or_compile(models.DEMO_MODEL, None, "auto", "")
    folder = cache_home() / "models" / "smollm2-135m-instruct-q4_1-MLC"
    assert (found.folder, compiled[0].model, compiled[0].output) == (folder, "smollm2-135m-instruct", folder)
    assert capsys.readouterr().err.startswith(f"smollm2-135m-instruct is compiled first, into {folder}\nconfig: ")
    make(folder)
    assert models.find_or_compile(models.DEMO_MODEL, None, "auto", "").folder == folder
    assert len(compiled) == 1


def test_an_address_of_source_weights_is_compiled_into_a_cache_folder_of_its_own(
    compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "fetch_published", lambda model, progress: None)
    models.find_or_compile("HF://org/name@main", "q0f32", "auto", "context_window_size=9")
    assert compiled[0].output == cache_home() / "models" / "org--name--main-q0f32-MLC"
    assert (compiled[0].quantization, compiled[0].overrides) == ("q0f32", "context_window_size=9")
    make(compiled[0].output)
    assert models.find_compiled("hf://org/name@main", "q0f32") == compiled[0].output


def test_a_source_is_compiled_into_dist(compiled: list[Any], place: Path) -> None:
    (place / "x.gguf").write_bytes(b"")
    models.find_or_compile("x.gguf", None, "auto", "")
    assert compiled[0].output is None


def test_a_shorter_context_is_a_limit_and_needs_no_compilation(place: Path, compiled: list[Any]) -> None:
    folder = make(place / "x")
    found = models.find_or_compile(str(folder), None, "auto", "context_window_size=1024;prefill_chunk_size=512")
    assert found.context_limit == 1024
    assert not compiled


@pytest.mark.parametrize(
    ("quantization", "overrides", "line"),
    [
        ("q0f32", "", "x is quantized to q4f16_1, not q0f32: leave -q out"),
        (None, "context_window_size=4096",
         "--overrides context_window_size=4096: x was compiled with 2048: compile its source again with "
         "`mlc compile --overrides context_window_size=4096`"),
        (None, "max_batch_size=8",
         "--overrides max_batch_size=8: x was compiled with 4: compile its source again with "
         "`mlc compile --overrides max_batch_size=8`"),
    ],
)  # fmt: skip
def test_a_compiled_folder_that_is_not_what_was_asked_for_is_refused(
    quantization: str | None, overrides: str, line: str
) -> None:
    make(Path("x"))
    with pytest.raises(UsageError) as error:
        models.find_or_compile("x", quantization, "auto", overrides)
    assert str(error.value) == line


def test_what_is_neither_gets_the_compilers_line() -> None:
    with pytest.raises(UsageError, match=r"^'nothing' does not exist"):
        models.find_or_compile("nothing", None, "auto", "")
