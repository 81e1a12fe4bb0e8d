"""Building and caching plug-ins: with tiny ones here; those of real devices have tests of their own."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_llm.runtime.artifact import cache_home
from mlc_llm.runtime.devices import plugin
from mlc_llm.runtime.errors import EngineError

Write = Callable[[str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the source of the plug-in "tiny", which then is the only one there is."""
    (tmp_path / "sources/shared").mkdir(parents=True)
    (tmp_path / "sources/tiny").mkdir()
    monkeypatch.setattr(plugin, "_HERE", tmp_path / "sources")
    monkeypatch.setattr(plugin, "PREBUILT", tmp_path / "sources/prebuilt")
    monkeypatch.setattr(plugin, "FOLDERS", {"tiny": "tiny"})
    monkeypatch.delenv("CXX", raising=False)

    def source(body: str) -> None:
        (tmp_path / "sources/tiny/tiny.cc").write_text(f'#include <tvm/ffi/c_api.h>\nextern "C" {body}\n')

    return source


def answer(path: Path) -> int:
    """What a tiny plug-in's function returns, asked in a process of its own."""
    program = "import ctypes, sys; print(ctypes.CDLL(sys.argv[1]).answer())"
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


EXPORTED = '__attribute__((visibility("default")))'


def test_a_plug_in_is_built_once_and_again_when_its_source_changes(write: Write) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    first = plugin.built("tiny")
    assert first.is_relative_to(cache_home())
    assert ctypes.CDLL(str(first)).answer() == 42
    inode = first.stat().st_ino
    assert plugin.built("tiny") == first
    assert first.stat().st_ino == inode
    write(f"{EXPORTED} int answer() {{ return 43; }}")
    second = plugin.built("tiny")
    assert second != first
    assert ctypes.CDLL(str(second)).answer() == 43
    assert {path.name for path in first.parent.iterdir()} == {first.name, second.name}


@pytest.mark.parametrize("keep", [0, 100, 4000, -1])
def test_a_damaged_plug_in_in_the_cache_is_built_again(write: Write, keep: int) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    path = plugin.built("tiny")
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    assert answer(plugin.built("tiny")) == 42
    assert len(path.read_bytes()) == len(whole)


def test_a_changed_byte_in_the_cache_is_seen(write: Write) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    path = plugin.built("tiny")
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    assert answer(plugin.built("tiny")) == 42


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The plug-ins that were loaded, or were to be: none is in this process."""
    opened: list[Path] = []

    def open_(path: Path) -> str:
        opened.append(path)
        return "" if b"ELF" in path.read_bytes()[:4] else "no library"

    monkeypatch.setattr(plugin, "_is_loaded", lambda kind: False)
    monkeypatch.setattr(plugin, "_open", open_)
    return opened


def test_a_prebuilt_plug_in_comes_first(write: Write, opened: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    plugin.PREBUILT.mkdir()
    fitting = plugin.PREBUILT / plugin.file_name("tiny")
    plugin.compile_plugin("tiny", fitting)
    monkeypatch.setenv("PATH", "")  # nothing can be built
    plugin.load("tiny")
    assert opened == [fitting]
    write(f"{EXPORTED} int answer() {{ return 43; }}")  # as with another TVM, whose version is in the name too
    with pytest.raises(EngineError, match=r"no C\+\+ compiler"):
        plugin.load("tiny")


def test_a_prebuilt_plug_in_that_does_not_load_here_is_built(write: Write, opened: list[Path]) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    plugin.PREBUILT.mkdir()
    foreign = plugin.PREBUILT / plugin.file_name("tiny")
    foreign.write_text("of another machine")
    plugin.load("tiny")
    assert opened == [foreign, plugin.built("tiny")]


def test_no_compiler_is_one_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("int answer() { return 42; }")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EngineError) as refusal:
        plugin.built("tiny")
    assert str(refusal.value) == (
        "the tiny plug-in has to be built once, and there is no C++ compiler: install g++ or clang++, "
        "or name one in $CXX"
    )


def test_a_compiler_that_is_not_there_is_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("int answer() { return 42; }")
    monkeypatch.setenv("CXX", "no-such-compiler -O3")
    with pytest.raises(EngineError, match=r"^no-such-compiler cannot be run: No such file or directory: \$CXX names"):
        plugin.built("tiny")


def test_of_what_a_compiler_says_the_first_error_is_told(write: Write) -> None:
    write("int answer() { return unknown_name; }")
    with pytest.raises(EngineError) as refusal:
        plugin.built("tiny")
    message = str(refusal.value)
    assert message.startswith("the tiny plug-in could not be built by ")
    assert "error: " in message
    assert "unknown_name" in message
    assert "\n" not in message
    assert not list((cache_home() / "plugins").iterdir())


def test_missing_headers_are_one_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("int answer() { return 42; }")
    monkeypatch.setattr(plugin, "find_spec", lambda package: None)
    plugin._folder.cache_clear()
    plugin._version.cache_clear()
    try:
        with pytest.raises(EngineError, match=r"^the folder tvm/lib of TVM is missing: run `pip install apache-tvm"):
            plugin.built("tiny")
    finally:
        plugin._folder.cache_clear()
        plugin._version.cache_clear()


def test_a_cache_that_cannot_be_written_is_one_line(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("int answer() { return 42; }")
    Path(os.environ["MLC_LLM_HOME"]).write_text("a file where the folder should be")
    with pytest.raises(EngineError, match=r"^the tiny plug-in cannot be written to .*: (Not a directory|File exists)$"):
        plugin.built("tiny")


def test_several_that_need_it_at_a_time_build_it_once(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(f"{EXPORTED} int answer() {{ return 42; }}")
    log = tmp_path / "runs of the compiler"
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\necho run >> "{log}"\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    program = (
        "import sys; from pathlib import Path; from mlc_llm.runtime.devices import plugin\n"
        "plugin._HERE = Path(sys.argv[1]); plugin.FOLDERS = {'tiny': 'tiny'}\n"
        "print(plugin.built('tiny'))"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "sources")], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    paths = {process.communicate(timeout=600)[0] for process in processes}
    assert len(paths) == 1
    assert log.read_text() == "run\n" * 2  # to compile and to link
    assert answer(Path(paths.pop().strip())) == 42


def test_threads_load_a_plug_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    monkeypatch.setattr(plugin, "_is_loaded", lambda kind: bool(loads))
    monkeypatch.setattr(plugin, "prebuilt", lambda kind: None)
    monkeypatch.setattr(plugin, "built", lambda kind: Path(kind))
    monkeypatch.setattr(plugin, "_open", lambda path: loads.append(path.name) or "")
    threads = [threading.Thread(target=plugin.load, args=("opencl",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert loads == ["opencl"]


def test_a_kind_that_has_no_plug_in_is_refused() -> None:
    with pytest.raises(EngineError, match=r"^there is no plug-in for 'abacus': expected opencl, vulkan, rocm$"):
        plugin.load("abacus")
