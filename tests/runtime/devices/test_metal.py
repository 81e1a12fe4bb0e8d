"""Metal where there is none, and where TVM's runtime for it would be found."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlc_llm.runtime import tvm_runtime
from mlc_llm.runtime.devices import metal
from mlc_llm.runtime.devices.drivers import open_device
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.ffi import Device


@pytest.mark.skipif(sys.platform == "darwin", reason="this is a Mac")
def test_metal_is_missing_in_one_line() -> None:
    with pytest.raises(EngineError, match=r"^device metal is not there: this is no Mac$"):
        open_device(Device("metal"))


def test_tvms_libraries_have_other_names_on_a_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/libtvm_runtime_metal.dylib").write_text("not a library\nat all")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(tvm_runtime, "find_spec", lambda name: spec)
    monkeypatch.setattr(metal, "load_runtime", lambda: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert metal.problem() == ""
    with pytest.raises(EngineError, match=r"lib/libtvm_runtime_metal\.dylib cannot be loaded: .*$"):
        metal.load()
    with pytest.raises(EngineError, match=r"^the TVM runtime \(libtvm_ffi\.dylib\) is missing: run `pip install"):
        tvm_runtime.package_file("tvm", tvm_runtime.library_file("tvm_ffi"))
