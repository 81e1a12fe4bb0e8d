"""`HF://org/name` of a compiled model on the command line."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_hub import Hub, compiled_model, environment, serving

from mlc_llm.cli import models
from mlc_llm.runtime.artifact import cache_home
from mlc_llm.runtime.errors import UsageError

MLC = "import sys; from mlc_llm.cli.main import run; sys.exit(run(sys.argv[1:]))"
LOADED = "import sys; from mlc_llm.cli.models import find_or_compile as f; "
Mlc = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub(compiled_model())) as hub:
        yield hub


@pytest.fixture
def python(hub: Hub, tmp_path: Path) -> Mlc:
    """python(code, *argv, NAME=value): exit code, stdout and stderr of a process that uses the hub."""

    def call(code: str, *argv: str, **changes: str | None) -> tuple[int, str, str]:
        env = environment(hub, tmp_path, **({"MLC_LLM_HOME": str(tmp_path / "home")} | changes))
        command = [sys.executable, "-c", code, *argv]
        run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
        return run.returncode, run.stdout, run.stderr

    return call


@pytest.fixture
def downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HF://org/tiny, downloaded before."""
    monkeypatch.chdir(tmp_path)
    folder = cache_home() / "model_weights" / "hf" / "org" / "tiny"
    folder.mkdir(parents=True)
    for name, content in compiled_model().items():
        if "/" not in name:
            (folder / name).write_bytes(content)
    return folder


def test_show_downloads_the_configuration_only(python: Mlc, hub: Hub, tmp_path: Path) -> None:
    code, out, err = python(MLC, "show", "HF://org/tiny")
    assert (code, err) == (0, "")
    place = tmp_path / "home" / "model_weights" / "hf" / "org" / "tiny"
    assert f"model folder  {place}\n" in out
    assert "in 2 files; not downloaded yet\n" in out
    assert hub.fetched() == ["mlc-chat-config.json", "tensor-cache.json"]


def test_a_chat_downloads_the_model_and_compiles_no_weights(python: Mlc, tmp_path: Path) -> None:
    code, out, err = python(LOADED + "print(f('HF://org/tiny', None, 'auto', '').folder, 'tvm' in sys.modules)")
    assert (code, out) == (0, f"{tmp_path / 'home' / 'model_weights' / 'hf' / 'org' / 'tiny'} False\n")
    assert [line.partition(": ")[0] for line in err.splitlines()] == ["download HF://org/tiny"]


def test_a_download_that_is_forbidden_is_one_line(python: Mlc) -> None:
    code, out, err = python(MLC, "chat", "HF://org/tiny", "-p", "hi", MLC_DOWNLOAD_CACHE_POLICY="OFF")
    assert (code, out) == (2, "")
    assert err == "Error: HF://org/tiny cannot be used: MLC_DOWNLOAD_CACHE_POLICY is OFF: set it to ON\n"


def test_what_was_downloaded_is_found_and_has_to_be_what_is_asked_for(downloaded: Path) -> None:
    assert models.find_compiled("hf://org/tiny", None) == downloaded
    assert models.find_or_compile("HF://org/tiny", "q4f16_1", "auto", "context_window_size=64").context_limit == 64
    with pytest.raises(UsageError, match="is quantized to q4f16_1, not q0f32: leave -q out"):
        models.find_or_compile("HF://org/tiny", "q0f32", "auto", "")


def test_show_of_what_was_downloaded_is_whole(downloaded: Path, mlc: Mlc) -> None:
    code, out, _ = mlc("show", "HF://org/tiny", "--json")
    facts = json.loads(out)
    assert (code, facts["path"], facts["missing_shards"]) == (0, str(downloaded), [])


@pytest.mark.parametrize("policy", ["OFF", "READONLY"])
def test_a_source_is_not_compiled_where_that_is_forbidden(
    policy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_JIT_POLICY", policy)
    with pytest.raises(
        UsageError, match=f"^x.gguf has to be compiled first, and MLC_JIT_POLICY is {policy}: run `mlc compile x.gguf`$"
    ):
        models.find_or_compile("x.gguf", None, "auto", "")


def test_redo_takes_neither_what_was_compiled_nor_what_was_downloaded(
    downloaded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = models.cache_folder("HF://org/tiny", None)
    compiled.mkdir(parents=True)
    for name in ("mlc-chat-config.json", "tensor-cache.json"):
        (compiled / name).write_bytes((downloaded / name).read_bytes())
    assert models.find_compiled("HF://org/tiny", None) == compiled
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", "REDO")
    assert models.find_compiled("HF://org/tiny", None) is None
