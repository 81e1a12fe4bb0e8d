"""A library is refused in one line where it does not fit the machine, the runtime or the folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_model
from pydantic_core import _pydantic_core as extension

from mlc_llm.runtime import library as library_module
from mlc_llm.runtime.artifact import ChatConfig, load_chat_config
from mlc_llm.runtime.errors import ModelFileError
from mlc_llm.runtime.ffi import HOST
from mlc_llm.runtime.library import FUNCTIONS, Library, read_metadata


class FakeModule:
    """Functions by name, as a TVM module has them."""

    def __init__(self, functions: dict[str, Any]) -> None:
        self._functions = functions

    def implements_function(self, name: str, query_imports: bool = False) -> bool:
        return name in self._functions

    def get_function(self, name: str, query_imports: bool = False) -> Any:
        return self._functions[name]

    __getitem__ = get_function


Load = Callable[..., Library]


@pytest.fixture
def config() -> ChatConfig:
    return load_chat_config(tiny_model.built())


@pytest.fixture
def load(config: ChatConfig, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load a library whose metadata differ from the fitting ones in the fields given."""

    def loader(without: tuple[str, ...] = (), raw: str | None = None, **fields: Any) -> Library:
        says = raw if raw is not None else json.dumps({**tiny_model.metadata(config), **fields})
        functions = {name: print for name in FUNCTIONS if name not in without}
        machine = FakeModule({"_metadata": lambda: says, **functions})
        executable = FakeModule({name: print for name in ("transpose_head",) if name not in without})
        monkeypatch.setattr(library_module, "_load", lambda path, device: (executable, machine))
        monkeypatch.setattr(library_module, "read_device", lambda path: fields.get("device", "cpu"))
        return Library.load(Path("x.so"), config=config, device=HOST)

    return loader


def refusal(load: Load, **fields: Any) -> str:
    with pytest.raises(ModelFileError) as caught:
        load(**fields)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_real_library_loads_and_says_what_it_is(config: ChatConfig) -> None:
    path = tiny_model.library_path(tiny_model.built())
    library = Library.load(path, config=config)
    assert library.metadata == read_metadata(path)
    assert library.metadata.params[0].shape == [tiny_model.VOCAB, tiny_model.HIDDEN]
    assert callable(library["decode"])
    assert callable(library["transpose_head"])
    with pytest.raises(ModelFileError, match=r"x?.so has no function 'nothing': run `mlc compile"):
        library["nothing"]


def test_what_is_no_model_library(tmp_path: Path) -> None:
    text = tmp_path / "text.so"
    text.write_text("a library")
    with pytest.raises(ModelFileError, match=r"text\.so is not a model library"):
        Library.load(text)
    other = tmp_path / "other.so"
    shutil.copy(extension.__file__, other)
    with pytest.raises(ModelFileError, match=r"other\.so (is not a model library|cannot be loaded)"):
        read_metadata(other)


def test_a_library_replaced_by_another_is_loaded_anew(tmp_path: Path, config: ChatConfig) -> None:
    """A library is compiled again to the same path, within a process that refused it or that still uses it."""
    path, builder = tmp_path / "model.so", tiny_model.LibraryBuilder()
    (tmp_path / "link.so").symlink_to(path)
    fitting = builder.build(tmp_path / "fitting.so", tiny_model.metadata(config))
    stale = builder.build(tmp_path / "stale.so", {**tiny_model.metadata(config), "tvm_version": "0.1.0"})
    used = []
    for _ in range(3):
        for source, name in ((stale, "model.so"), (fitting, "model.so"), (stale, "link.so"), (fitting, "link.so")):
            shutil.copy(source, tmp_path / "new.so")
            (tmp_path / "new.so").replace(path)
            if source == fitting:
                used += [Library.load(tmp_path / name), Library.load(path)]
            else:
                with pytest.raises(ModelFileError, match=r"was compiled with TVM 0\.1\.0, installed is 0\.27"):
                    Library.load(tmp_path / name)
    assert {library["_metadata"]() for library in used} == {json.dumps(tiny_model.metadata(config))}


def test_a_library_that_fits(load: Load) -> None:
    assert load().metadata.model_type == "tiny"
    assert load(tvm_version="0.27.0+local", cpu_features=[]).metadata.quantization == "q0f32"


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "host_architecture", lambda: "z80")
    with pytest.raises(ModelFileError, match=r"was compiled for .*, this machine is z80: run `mlc compile"):
        Library.load(tiny_model.library_path(tiny_model.built()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("tvm_version", "0.26.0", "x.so was compiled with TVM 0.26.0, installed is 0.27"),
        ("package_version", "99.0.0", "x.so was compiled with mlc-aot 99.0.0, installed is "),
        ("device", "cuda", "x.so was compiled for cuda, the device here is cpu"),
        (
            "model_hash",
            "0" * 16,
            "x.so was compiled for another model (tiny q0f32, 0000000000000000) than the folder's",
        ),
    ],
)
def test_another_world(load: Load, field: str, value: str, message: str) -> None:
    line = refusal(load, **{field: value})
    assert line.startswith(message)
    assert line.endswith(": run `mlc compile <model folder> --device cpu`")


@pytest.mark.parametrize(
    ("theirs", "ours", "fits"),
    [("0.1.0", "0.1.7", True), ("0.1.0", "0.2.0", False), ("1.0.0", "1.4.0", True), ("1.0.0", "2.0.0", False)],
)
def test_versions_fit_by_their_generation(
    load: Load, theirs: str, ours: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "__version__", ours)
    if fits:
        load(package_version=theirs)
    else:
        assert f"compiled with mlc-aot {theirs}, installed is {ours}" in refusal(load, package_version=theirs)


def test_a_processor_without_the_instructions(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library_module, "cpu_features", lambda: frozenset({"fma", "avx2"}))
    load(cpu_features=["avx2"])
    features = ["fma", "avx512_vnni", "avx512f"]
    assert "was compiled for another CPU; this CPU lacks" in refusal(load, cpu_features=features, target={})
    line = refusal(load, cpu_features=features, target={"kind": "llvm", "mcpu": "znver4"})
    assert "was compiled for znver4; this CPU lacks avx512_vnni avx512f: run" in line
    monkeypatch.setattr(library_module, "cpu_features", frozenset)  # where the kernel tells nothing
    load(cpu_features=["avx512_vnni"])


@pytest.mark.parametrize("name", [*FUNCTIONS, "transpose_head"])
def test_a_missing_function_is_named(load: Load, name: str) -> None:
    assert f"x.so has no function {name!r}" in refusal(load, without=(name,))


def test_metadata_that_are_not_ours(load: Load) -> None:
    assert "its metadata is not ours (model_type is missing)" in refusal(load, raw="{}")
    older = refusal(load, interface="3")
    assert "its metadata is not ours (interface = '3': input should be '5'): run `mlc compile" in older
    assert "x.so is not a model library (Expecting value" in refusal(load, raw="no JSON")


def test_a_shared_library_that_is_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    path = tiny_model.library_path(tiny_model.built())

    class Loader:
        """Loads a module without functions, or fails."""

        error: Exception | None = None

        @classmethod
        def load_module(cls, path: str) -> FakeModule:
            if cls.error is not None:
                raise cls.error
            return FakeModule({})

    monkeypatch.setattr(library_module, "ffi", Loader)
    monkeypatch.setattr(library_module, "_executables", {})
    with pytest.raises(ModelFileError, match="it holds no compiled model"):
        Library.load(path)
    Loader.error = RuntimeError("undefined symbol: f\n  0: in a C++ frame")
    with pytest.raises(
        ModelFileError, match=r"cannot be loaded by TVM 0\.27.* \(undefined symbol: f\): run `mlc compile"
    ):
        Library.load(path)
