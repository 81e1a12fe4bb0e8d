"""The compile driver: where things go, what is skipped, and what an interruption leaves behind."""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from mlc_llm.compiler import compile as driver
from mlc_llm.compiler import stages
from mlc_llm.compiler.compile import CompileOptions, compile_library, compile_model, convert_weight, gen_config, plan
from mlc_llm.runtime.artifact import ChatConfig, cache_home, load_chat_config, load_tensor_cache, model_hash
from mlc_llm.runtime.errors import EngineError, MLCError, ModelFileError, UsageError
from mlc_llm.runtime.locks import locked

BUILT = {"config": "built", "weights": "built", "library": "built"}
CURRENT = {"config": "up to date", "weights": "up to date", "library": "up to date"}


class Recorder:
    """A progress that keeps every call, and calls `on_note` when it is told something."""

    def __init__(self, on_note: Callable[[], None] = lambda: None) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.on_note = on_note

    def stage(self, name: str, total: int | None = None) -> None:
        self.calls.append(("stage", name, total))

    def advance(self, amount: int, what: str = "") -> None:
        self.calls.append(("advance", amount))

    def skip(self, name: str, why: str) -> None:
        self.calls.append(("skip", name, why))

    def note(self, text: str) -> None:
        self.calls.append(("note", text))
        self.on_note()


class FakeLibrary:
    """Stands for `build_library`: writes the hash of the config, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[ChatConfig, dict[str, Any]]] = []
        self.fail: BaseException | None = None

    def __call__(self, config: ChatConfig, output: Path, **options: Any) -> None:
        self.calls.append((config, options))
        options["progress"](1, 2, "linking")
        if self.fail is not None:
            raise self.fail
        output.write_text(model_hash(config))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> FakeLibrary:
    fake = FakeLibrary()
    monkeypatch.setattr("mlc_llm.compiler.library.build_library", fake)
    return fake


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in files(folder)}


def run(model: Path | str, **options: Any) -> driver.CompileResult:
    return compile_model(CompileOptions(str(model), **options))


def test_everything_goes_below_dist(llama_folder: Path, library: FakeLibrary) -> None:
    result = run(llama_folder)
    assert result.to_dict() == {
        "folder": "dist/Tiny-Llama-q4f16_1-MLC",
        "library": "dist/libs/Tiny-Llama-q4f16_1-cpu.so",
        "model_type": "llama",
        "quantization": "q4f16_1",
        "device": "cpu",
        "stages": BUILT,
        "found_by_itself": True,
    }
    assert list(result.stages) == ["config", "weights", "library"]
    assert files(Path("dist")) == {
        "Tiny-Llama-q4f16_1-MLC/mlc-chat-config.json",
        "Tiny-Llama-q4f16_1-MLC/params_shard_0.bin",
        "Tiny-Llama-q4f16_1-MLC/tensor-cache.json",
        "Tiny-Llama-q4f16_1-MLC/tokenizer.json",
        "Tiny-Llama-q4f16_1-MLC/tokenizer_config.json",
        "Tiny-Llama-q4f16_1-MLC/.mlc-stages.json",
        "libs/Tiny-Llama-q4f16_1-cpu.so",
        "libs/.Tiny-Llama-q4f16_1-cpu.so.json",
    }


def test_each_quantization_has_its_own_folder(llama_folder: Path, library: FakeLibrary) -> None:
    assert run(llama_folder, quantization="q0f32").folder == Path("dist/Tiny-Llama-q0f32-MLC")
    assert library.calls[0][0].quantization == "q0f32"


def test_the_second_time_nothing_is_done(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    before = {path: path.stat().st_mtime_ns for path in Path("dist").rglob("*") if path.is_file()}
    progress = Recorder()
    assert compile_model(CompileOptions(str(llama_folder)), progress).stages == CURRENT
    assert {path: path.stat().st_mtime_ns for path in Path("dist").rglob("*") if path.is_file()} == before
    assert len(library.calls) == 1
    assert progress.calls == [("skip", name, "up to date") for name in ("config", "weights", "library")]


def test_force_does_everything_again(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    before = contents(Path("dist"))
    assert run(llama_folder, force=True).stages == BUILT
    assert contents(Path("dist")) == before


def test_the_stages_add_up_to_their_totals(llama_folder: Path, library: FakeLibrary) -> None:
    progress = Recorder()
    result = compile_model(CompileOptions(str(llama_folder)), progress)
    names = [call[1] for call in progress.calls if call[0] == "stage"]
    assert names == ["config", "weights", "library"]
    start = next(i for i, call in enumerate(progress.calls) if call[:2] == ("stage", "weights"))
    end = next(i for i, call in enumerate(progress.calls) if call[:2] == ("stage", "library"))
    _, cache = load_tensor_cache(result.folder)
    total = sum(shard.nbytes for shard in cache.records)
    assert progress.calls[start] == ("stage", "weights", total)
    assert sum(call[1] for call in progress.calls[start + 1 : end]) == total


def test_other_weights_are_converted_again(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    path = llama_folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["model.norm.weight"] = np.full(64, 2, tensors["model.norm.weight"].dtype)
    path.unlink()
    safetensors.numpy.save_file(tensors, path)
    os.utime(path, (1, 1))
    assert run(llama_folder).stages == {"config": "built", "weights": "built", "library": "up to date"}


def test_other_sizes_need_another_config_and_library(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    stages = run(llama_folder, overrides="context_window_size=64").stages
    assert stages == {"config": "built", "weights": "up to date", "library": "built"}
    assert library.calls[-1][0].context_window_size == 64


@pytest.mark.parametrize("damage", ["remove", "cut"])
def test_damaged_weights_are_converted_again(damage: str, llama_folder: Path, library: FakeLibrary) -> None:
    shard = run(llama_folder).folder / "params_shard_0.bin"
    before = shard.read_bytes()
    shard.unlink() if damage == "remove" else shard.write_bytes(before[:-1])
    assert run(llama_folder).stages == {**CURRENT, "weights": "built"}
    assert shard.read_bytes() == before


def test_a_library_that_somebody_else_wrote_is_built_again(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder).library.write_text("not ours")
    assert run(llama_folder).stages == {**CURRENT, "library": "built"}


def test_another_level_of_optimisation_is_another_library(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    assert run(llama_folder, opt="O0").stages == {**CURRENT, "library": "built"}
    assert [options["opt"].passes for _, options in library.calls] == [2, 0]


def test_a_config_edited_by_hand_stays(llama_folder: Path, library: FakeLibrary) -> None:
    path = run(llama_folder).folder / "mlc-chat-config.json"
    edited = path.read_text().replace('"temperature": 0.6', '"temperature": 0.1')
    path.write_text(edited)
    assert run(llama_folder).stages == CURRENT
    assert path.read_text() == edited


def test_a_debug_dump_is_written_even_where_the_library_is_up_to_date(llama_folder: Path, library: FakeLibrary) -> None:
    run(llama_folder)
    assert run(llama_folder, debug_dump=Path("dump")).stages == {**CURRENT, "library": "built"}
    assert library.calls[-1][1]["debug_dump"] == Path("dump")


def test_a_folder_as_output_takes_the_lot(llama_folder: Path, library: FakeLibrary, tmp_path: Path) -> None:
    result = run(llama_folder, output=tmp_path / "out")
    assert (result.folder, result.library) == (tmp_path / "out", tmp_path / "out/Tiny-Llama-q4f16_1-cpu.so")
    assert {path.name for path in tmp_path.iterdir()} == {"here", "published", "out"}
    assert not Path("dist").exists()
    assert run(tmp_path / "out").library == result.library  # found where it is


def test_a_so_file_as_output_names_the_library(llama_folder: Path, library: FakeLibrary, tmp_path: Path) -> None:
    result = run(llama_folder, output=tmp_path / "libs" / "x.so")
    assert (result.folder, result.library) == (Path("dist/Tiny-Llama-q4f16_1-MLC"), tmp_path / "libs" / "x.so")
    assert not result.found_by_itself
    assert run(llama_folder).found_by_itself
    assert run(llama_folder, output=Path("dist/Tiny-Llama-q4f16_1-MLC/x.so")).found_by_itself is False
    assert result.library.is_file()


def test_another_model_in_the_same_folder_leaves_nothing_of_the_first(
    llama_folder: Path, library: FakeLibrary, tmp_path: Path
) -> None:
    (llama_folder / "vocab.json").write_text("{}")
    run(llama_folder, output=tmp_path / "out", quantization="q0f32")
    (llama_folder / "vocab.json").unlink()
    result = run(llama_folder, output=tmp_path / "out", quantization="q0f16")
    assert load_chat_config(result.folder).quantization == "q0f16"
    assert not (result.folder / "vocab.json").exists()


def test_a_compiled_folder_only_gets_its_library(llama_folder: Path, library: FakeLibrary) -> None:
    folder = run(llama_folder).folder
    before = contents(folder)
    for name in (folder, folder / "mlc-chat-config.json"):
        result = run(name, force=True)
        assert result.stages == {"library": "built"}
        assert result.library == Path("dist/libs/Tiny-Llama-q4f16_1-cpu.so")
    assert contents(folder) == before


@pytest.fixture
def published(llama_folder: Path) -> Path:
    """HF://org/Tiny-q0f16-MLC, downloaded before."""
    folder = cache_home() / "model_weights" / "hf" / "org" / "Tiny-q0f16-MLC"
    convert_weight(str(llama_folder), "q0f16", folder)
    gen_config(str(llama_folder), "q0f16", folder)
    return folder


def test_a_published_model_only_gets_its_library(published: Path, library: FakeLibrary, tmp_path: Path) -> None:
    before = contents(published)
    result = run("HF://org/Tiny-q0f16-MLC")
    cached = cache_home() / "model_lib" / f"Tiny-q0f16-{model_hash(load_chat_config(published))}-cpu.so"
    assert (result.folder, result.library, result.stages) == (published, cached, {"library": "built"})
    assert plan(CompileOptions("HF://org/Tiny-q0f16-MLC")).library == cached
    assert run("HF://org/Tiny-q0f16-MLC", output=tmp_path / "x.so").library == tmp_path / "x.so"
    assert contents(published) == before
    assert files(Path()) == set()


def test_a_published_model_keeps_its_quantization_and_its_place(published: Path) -> None:
    with pytest.raises(UsageError, match="is quantized as q0f16, not q4f16_1"):
        run("HF://org/Tiny-q0f16-MLC", quantization="q4f16_1")
    with pytest.raises(UsageError, match=r"-o out: HF://org/Tiny-q0f16-MLC is compiled already and only its library"):
        run("HF://org/Tiny-q0f16-MLC", output=Path("out"))


def test_a_library_with_other_sizes_still_fits_its_folder(
    llama_folder: Path, library: FakeLibrary, tmp_path: Path
) -> None:
    folder = run(llama_folder).folder
    before = contents(folder)
    output = compile_library(folder, tmp_path / "small.so", overrides="context_window_size=64;max_batch_size=1")
    config = library.calls[-1][0]
    assert (config.context_window_size, config.prefill_chunk_size) == (64, 64)
    assert (config.architecture["context_window_size"], config.architecture["max_batch_size"]) == (64, 1)
    assert output.read_text() == model_hash(load_chat_config(folder))
    assert contents(folder) == before


def test_the_stages_alone_make_the_same_folder(llama_folder: Path, library: FakeLibrary, tmp_path: Path) -> None:
    whole = run(llama_folder).folder
    alone = tmp_path / "alone"
    summary = convert_weight(str(llama_folder), "q4f16_1", alone)
    assert not (alone / "mlc-chat-config.json").exists()
    gen_config(str(llama_folder / "config.json"), "q4f16_1", alone)
    assert contents(alone) == contents(whole)
    _, cache = load_tensor_cache(alone)
    assert summary.file_bytes == sum(shard.nbytes for shard in cache.records)
    assert run(llama_folder, output=alone).stages == {**CURRENT, "library": "built"}


@pytest.mark.parametrize("interruption", [KeyboardInterrupt(), ModelFileError("damaged")])
def test_an_interruption_while_converting_leaves_what_was_there(
    interruption: BaseException, llama_folder: Path, library: FakeLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise interruption

    with monkeypatch.context() as patch:
        patch.setattr(stages, "convert_weights", fail)
        with pytest.raises(type(interruption)):
            run(llama_folder)
    assert not Path("dist/Tiny-Llama-q4f16_1-MLC").exists()

    run(llama_folder)
    before = contents(Path("dist"))
    with monkeypatch.context() as patch:
        patch.setattr(stages, "convert_weights", fail)
        with pytest.raises(type(interruption)):
            run(llama_folder, force=True)
    assert contents(Path("dist")) == before
    assert run(llama_folder).stages == CURRENT


def test_an_interruption_while_linking_leaves_the_old_library(llama_folder: Path, library: FakeLibrary) -> None:
    result = run(llama_folder)
    before = contents(Path("dist"))
    library.fail = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run(llama_folder, force=True)
    assert result.library.read_bytes() == before["libs/Tiny-Llama-q4f16_1-cpu.so"]
    assert files(Path("dist")) == set(before)


def test_what_a_killed_process_left_is_removed(llama_folder: Path, library: FakeLibrary) -> None:
    folder = run(llama_folder).folder
    before = contents(Path("dist"))
    (folder / ".mlc-staging-abc").mkdir()
    (folder / ".mlc-staging-abc" / "tokenizer.json").write_text("{")
    (folder / ".mlc-lock").touch()
    assert run(llama_folder).stages == CURRENT
    assert contents(Path("dist")) == before


def test_a_full_disk_is_one_line(llama_folder: Path, library: FakeLibrary) -> None:
    library.fail = OSError(28, "No space left on device", "dist/libs/x")
    line = r"^dist/libs/Tiny-Llama-q4f16_1-cpu\.so: disk full: make room, or choose another place with -o$"
    with pytest.raises(EngineError, match=line):
        run(llama_folder)


def test_a_place_that_cannot_be_written_is_one_line(llama_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match="cannot be written: Not a directory"):
        run(llama_folder, output=tmp_path / "file" / "out")


def test_without_a_c_compiler_nothing_begins(llama_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlc_llm.compiler.link._zig", lambda: None)
    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(EngineError, match=r"^no C compiler found: cc, gcc or clang on PATH is needed .*install gcc"):
        run(llama_folder)
    monkeypatch.setenv("CC", "mycc --fast")
    with pytest.raises(EngineError, match=r"\$CC is 'mycc --fast', and there is no such program"):
        run(llama_folder)
    assert not Path("dist").exists()


def test_two_compilations_of_one_folder_take_turns(llama_folder: Path, library: FakeLibrary) -> None:
    folder = Path("dist/Tiny-Llama-q4f16_1-MLC")
    folder.mkdir(parents=True)
    waiting = threading.Event()
    progress = Recorder(on_note=waiting.set)
    results: list[driver.CompileResult] = []
    work = threading.Thread(
        target=lambda: results.append(compile_model(CompileOptions(str(llama_folder)), progress)), daemon=True
    )
    with locked(folder / stages.LOCK_NAME, folder, Recorder().note):
        work.start()
        assert waiting.wait(60)
        assert not (folder / "mlc-chat-config.json").exists()
    work.join(60)
    assert results[0].stages == BUILT
    assert progress.calls[0] == ("note", f"another process is writing {folder}: waiting for it to end")
    assert not (folder / stages.LOCK_NAME).exists()


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"quantization": "q4f16"}, UsageError, r"unknown quantization 'q4f16': did you mean q4f16_"),
        ({"device": "gpu"}, UsageError, r"--device 'gpu'"),
        ({"opt": "O9"}, UsageError, r"--opt 'O9'"),
        ({"overrides": "max_batch=1"}, UsageError, r"--overrides 'max_batch'"),
        ({"conv_template": "nothing"}, UsageError, r"--conv-template.*'nothing'"),
        ({"model_type": "lama"}, UsageError, r"'lama': did you mean llama\?"),
        ({"output": Path("model.dll")}, UsageError, r"-o model\.dll: this version writes \.so and \.dylib libraries"),
        ({"output": Path("model.dylib")}, UsageError, r"-o model\.dylib: libraries for .*-linux-gnu are \.so files"),
        ({"overrides": "context_window_size=1024"}, UsageError, r"context_window_size=1024.*1\.\.256"),
    ],
)
def test_wrong_options_end_before_any_work(
    options: dict[str, Any], kind: type[MLCError], message: str, llama_folder: Path
) -> None:
    with pytest.raises(kind, match=message):
        run(llama_folder, **options)
    assert not Path("dist").exists()


def test_the_source_folder_is_never_the_output(llama_folder: Path) -> None:
    with pytest.raises(UsageError, match="is the folder of the source weights"):
        run(llama_folder, output=llama_folder)


def test_a_compiled_folder_is_not_quantized_again(llama_folder: Path, library: FakeLibrary, tmp_path: Path) -> None:
    folder = run(llama_folder).folder
    with pytest.raises(UsageError, match=r"is quantized as q4f16_1, not q0f16"):
        run(folder, quantization="q0f16")
    with pytest.raises(UsageError, match=r"is a llama model: leave --model-type gemma out"):
        run(folder, model_type="gemma")
    with pytest.raises(UsageError, match=r"keeps its conversation template: .* again with --conv-template llama-3"):
        run(folder, conv_template="llama-3")
    with pytest.raises(UsageError, match=r"is compiled already.*name a \.so file"):
        run(folder, output=tmp_path / "elsewhere")


def test_a_damaged_config_is_named(llama_folder: Path, library: FakeLibrary) -> None:
    folder = run(llama_folder).folder
    config = json.loads((folder / "mlc-chat-config.json").read_text())
    (folder / "mlc-chat-config.json").write_text(json.dumps({**config, "vocab_size": 0}))
    with pytest.raises(ModelFileError, match=r"mlc-chat-config\.json: vocab_size"):
        run(folder)
