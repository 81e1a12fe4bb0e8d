"""Where an engine finds a model and its library, and when it compiles one."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import tiny_model

from mlc_llm.compiler.target import target
from mlc_llm.runtime.artifact import cache_home, load_chat_config, model_hash
from mlc_llm.runtime.errors import EngineError, ModelFileError, UsageError
from mlc_llm.runtime.library import Library
from mlc_llm.serve import artifacts
from mlc_llm.serve.artifacts import find_folder, open_library


@pytest.fixture
def dist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a `dist` that has the tiny model's folder, but no library."""
    monkeypatch.chdir(tmp_path)
    tiny_model.write_folder(tmp_path / "dist" / "tiny-q0f32-MLC")
    return tmp_path / "dist"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Where a compiler that has the tiny model's library ready was asked to put it."""
    outputs: list[Path] = []

    def compile_library(folder: Path, output: Path, *, device: str = "auto", force: bool = False) -> Path:
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(tiny_model.library_path(tiny_model.built()), output)
        outputs.append(output)
        return output

    module = ModuleType("mlc_llm.compiler.compile")
    module.compile_library = compile_library  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlc_llm.compiler.compile", module)
    return outputs


def opened(folder: Path, model_lib: str | None = None) -> Library:
    return open_library(folder, load_chat_config(folder), "cpu", model_lib)


@pytest.mark.parametrize(
    "spelled", ["dist/tiny-q0f32-MLC", "dist/tiny-q0f32-MLC/mlc-chat-config.json", "tiny-q0f32-MLC", "tiny-q0f32"]
)
def test_a_model_is_found_by_path_and_by_name(dist: Path, spelled: str) -> None:
    assert find_folder(spelled).resolve() == dist / "tiny-q0f32-MLC"


def test_what_is_no_model_folder_says_what_to_run(dist: Path) -> None:
    (dist / "weights").mkdir()
    with pytest.raises(ModelFileError, match=r"dist/weights has no mlc-chat-config\.json: run `mlc compile dist/w"):
        find_folder("dist/weights")
    with pytest.raises(ModelFileError, match="nothing is neither a model folder nor the name of one in dist/: run"):
        find_folder("nothing")


def place(library: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copy(library, target))


@pytest.mark.parametrize("where", ["inside", "beside", "cached", "named"])
def test_a_library_that_fits_is_taken_without_compiling(
    dist: Path, compiled: list[Path], where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = dist / "tiny-q0f32-MLC"
    target = {
        "inside": folder / "any-cpu.so",
        "beside": dist / "libs" / "tiny-q0f32-cpu.so",
        "cached": cache_home() / "model_lib" / f"tiny-q0f32-{model_hash(load_chat_config(folder))}-cpu.so",
        "named": dist / "named.so",
    }[where]
    place(tiny_model.library_path(tiny_model.built()), target)
    assert opened(folder, str(target) if where == "named" else None).path == target
    assert not compiled
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("libs", [True, False])
def test_a_missing_library_is_compiled_with_a_line(
    dist: Path, compiled: list[Path], libs: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if libs:
        (dist / "libs").mkdir()
    library = opened(dist / "tiny-q0f32-MLC")
    assert compiled == [library.path]
    assert library.path.is_relative_to(dist / "libs" if libs else cache_home())
    line = f"{dist}/tiny-q0f32-MLC has no library for cpu: compiling {library.path}\n"
    assert capsys.readouterr().err == line
    assert opened(dist / "tiny-q0f32-MLC").path == library.path
    assert len(compiled) == 1


def test_a_found_library_that_does_not_fit_is_compiled_again(
    dist: Path, compiled: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    target = dist / "libs" / "tiny-q0f32-cpu.so"
    target.parent.mkdir()
    target.write_text("not a library")
    assert opened(dist / "tiny-q0f32-MLC").path == target
    assert compiled == [target]
    reason = "is not a model library: expected a 64-bit ELF shared object (.so)"
    assert capsys.readouterr().err == f"{target} {reason}: compiling {target}\n"


def test_a_named_library_that_does_not_fit_is_an_error(dist: Path, compiled: list[Path]) -> None:
    wrong = dist / "wrong.so"
    wrong.write_text("not a library")
    place(tiny_model.library_path(tiny_model.built()), dist / "libs" / "tiny-q0f32-cpu.so")
    with pytest.raises(ModelFileError, match=r"wrong\.so is not a model library"):
        opened(dist / "tiny-q0f32-MLC", str(wrong))
    assert not compiled


def test_several_libraries_inside_a_folder_are_none_of_it(dist: Path, compiled: list[Path]) -> None:
    folder = dist / "tiny-q0f32-MLC"
    for name in ("a-cpu.so", "b-cpu.so"):
        (folder / name).write_text("?")
    opened(folder)
    assert compiled[0].is_relative_to(cache_home())


def test_what_the_compiler_says_is_passed_on(dist: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> Path:
        raise EngineError("no C compiler found")

    monkeypatch.setattr(sys.modules["mlc_llm.compiler.compile"], "compile_library", fail)
    with pytest.raises(EngineError, match="no C compiler found"):
        opened(dist / "tiny-q0f32-MLC")


@pytest.mark.parametrize("policy", ["OFF", "READONLY"])
def test_nothing_is_compiled_where_that_is_forbidden(
    dist: Path, compiled: list[Path], policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_JIT_POLICY", policy)
    folder = dist / "tiny-q0f32-MLC"
    forbidden = f", and MLC_JIT_POLICY is {policy}: run `mlc compile {folder} --device cpu`"
    with pytest.raises(ModelFileError, match=f"^{folder} has no library for cpu{forbidden}$"):
        opened(folder)
    (dist / "libs").mkdir()
    target = dist / "libs" / "tiny-q0f32-cpu.so"
    target.write_text("not a library")
    with pytest.raises(ModelFileError, match=rf"expected a 64-bit ELF shared object \(\.so\){forbidden}$"):
        opened(folder)
    assert opened(folder, str(place(tiny_model.library_path(tiny_model.built()), target))).path == target
    assert opened(folder).path == target
    assert not compiled


def test_redo_compiles_what_is_there_again(
    dist: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = place(tiny_model.library_path(tiny_model.built()), dist / "libs" / "tiny-q0f32-cpu.so")
    monkeypatch.setenv("MLC_JIT_POLICY", "REDO")
    assert opened(dist / "tiny-q0f32-MLC").path == target
    assert compiled == [target]
    assert capsys.readouterr().err == f"MLC_JIT_POLICY is REDO: compiling {target}\n"


def test_an_unknown_policy_is_refused(dist: Path, compiled: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_JIT_POLICY", "maybe")
    with pytest.raises(UsageError, match=r"^MLC_JIT_POLICY is 'maybe': expected ON, OFF, REDO or READONLY$"):
        opened(dist / "tiny-q0f32-MLC")


def test_auto_is_a_device_that_can_be_compiled_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny_model.write_folder(tmp_path / "model")
    monkeypatch.setattr(artifacts, "resolve_device", lambda name: "vulkan:1" if name == "auto" else name)
    assert artifacts.choose_device("auto", tmp_path / "model", config) == "vulkan:1"
    assert artifacts.choose_device("cpu", tmp_path / "model", config) == "cpu"

    def without_compiler(name: str) -> None:
        raise EngineError(f"no compiler for {name}")

    monkeypatch.setattr(target, "resolve_target", without_compiler)
    assert artifacts.choose_device("auto", tmp_path / "model", config) == "cpu"
    assert capsys.readouterr().err == "vulkan:1 is here, but is not used: no compiler for vulkan\n"
    # what is compiled already needs no compiler
    (tmp_path / "model" / "model-vulkan.so").touch()
    assert artifacts.choose_device("auto", tmp_path / "model", config) == "vulkan:1"


def test_auto_is_what_a_named_library_was_compiled_for(tmp_path: Path) -> None:
    config = tiny_model.write_folder(tmp_path / "model")
    library = tiny_model.library_path(tiny_model.built())
    assert artifacts.choose_device("auto", tmp_path / "model", config, str(library)) == "cpu"
