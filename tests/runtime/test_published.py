"""Compiled models on the hub: what is downloaded, where it is kept, and what is asked for again."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import NOWHERE, Hub, answer_of, compiled_model, environment, serving, shard

from mlc_llm.runtime.artifact import cache_home
from mlc_llm.runtime.errors import UsageError
from mlc_llm.runtime.published import fetch_published, find_published, published_place
from mlc_llm.runtime.weights import WeightStore

SCRIPT = """
import json, sys
from mlc_llm.runtime.errors import MLCError
from mlc_llm.runtime.published import fetch_published
seen = []
try:
    folder = fetch_published(sys.argv[1], lambda *report: seen.append(report), weights=len(sys.argv) < 3)
    answer = {"folder": str(folder) if folder else None, "progress": seen[-1:],
              "files": sorted(path.name for path in folder.iterdir()) if folder else [],
              "asked": "huggingface_hub" in sys.modules}
except MLCError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""
DESCRIPTION = {"mlc-chat-config.json", "tensor-cache.json"}
WANTED = {*DESCRIPTION, "params_shard_0.bin", "params_shard_1.bin", "tokenizer.json", "tokenizer_config.json", "extra"}
Fetch = Callable[..., dict[str, Any]]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub(compiled_model())) as hub:
        yield hub


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Fetch:
    """fetch(model, NAME=value...): what a process with these environment variables answers."""

    def run(model: str, *argv: str, **changes: str | None) -> dict[str, Any]:
        env = environment(hub, tmp_path, **({"MLC_LLM_HOME": str(tmp_path / "home")} | changes))
        return answer_of(SCRIPT, model, *argv, env=env)

    return run


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where MLC-LLM keeps org/tiny."""
    return tmp_path / "home" / "model_weights" / "hf" / "org" / "tiny"


def put(folder: Path) -> Path:
    """A model that was downloaded before."""
    folder.mkdir(parents=True)
    (folder / "mlc-chat-config.json").write_text("{}")
    return folder


def test_a_model_is_downloaded_once_and_then_nobody_is_asked(hub: Hub, fetch: Fetch, place: Path) -> None:
    answer = fetch("HF://org/tiny")
    assert answer["folder"] == str(place)
    assert set(answer["files"]) == WANTED
    assert set(hub.fetched()) == WANTED
    assert [path.name for path in place.parent.iterdir() if any(path.iterdir())] == ["tiny"]
    ((done, total, what),) = answer["progress"]
    assert done == total == sum(len(hub.files[name]) for name in WANTED - DESCRIPTION)
    assert what == "HF://org/tiny"
    assert WeightStore(place).read("w1").tolist() == np.full((50, 2), 1).tolist()

    hub.requests.clear()
    again = fetch("hf://org/tiny", HF_HUB_OFFLINE="1")
    assert (again["folder"], again["asked"], hub.requests) == (str(place), False, [])


def test_folders_from_before_the_index_was_renamed(hub: Hub, fetch: Fetch) -> None:
    hub.files["ndarray-cache.json"] = hub.files.pop("tensor-cache.json")
    assert set(fetch("HF://org/tiny")["files"]) == WANTED - {"tensor-cache.json"} | {"ndarray-cache.json"}


def test_a_revision_has_a_folder_of_its_own(fetch: Fetch, place: Path) -> None:
    assert fetch("HF://org/tiny@v1")["folder"] == f"{place}@v1"
    assert fetch("HF://org/tiny@v9")["message"] == "HF://org/tiny@v9: the repository has no revision v9"
    assert published_place("HF://org/tiny@refs/pr/1").name == "tiny@refs%2Fpr%2F1"


def test_an_interrupted_download_goes_on(hub: Hub, fetch: Fetch, place: Path) -> None:
    hub.lost = {"params_shard_1.bin"}
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "EngineError"
    assert answer["message"].startswith("HF://org/tiny could not be downloaded: ")
    assert not place.exists()
    arrived = {path.name for path in (place.parent / ".download" / "tiny").iterdir() if path.is_file()}
    assert arrived >= DESCRIPTION
    hub.lost = set()
    hub.requests.clear()
    assert set(fetch("HF://org/tiny")["files"]) == WANTED
    assert set(hub.fetched()) == WANTED - arrived


def test_a_changed_repository_is_not_mixed_with_what_an_interruption_left(hub: Hub, fetch: Fetch, place: Path) -> None:
    hub.lost = {"params_shard_1.bin"}
    fetch("HF://org/tiny")
    hub.lost, hub.commit = set(), "f" * 40
    hub.files |= {"tokenizer.json": b'{"new": 1}', "mlc-chat-config.json": hub.files["mlc-chat-config.json"] + b" "}
    fetch("HF://org/tiny")
    assert {name: (place / name).read_bytes() for name in WANTED} == {name: hub.files[name] for name in WANTED}


def test_the_description_comes_alone_where_no_weights_are_needed(hub: Hub, fetch: Fetch, place: Path) -> None:
    answer = fetch("HF://org/tiny", "description")
    assert set(answer["files"]) - {".cache"} == DESCRIPTION
    assert Path(answer["folder"]).name == "tiny"
    assert not place.exists()
    fetch("HF://org/tiny")
    assert hub.fetched() == sorted(WANTED)
    assert fetch("HF://org/tiny", "description")["folder"] == str(place)


def test_two_processes_download_a_model_once(hub: Hub, tmp_path: Path, place: Path) -> None:
    env = environment(hub, tmp_path, MLC_LLM_HOME=str(tmp_path / "home"))
    command = [sys.executable, "-c", SCRIPT, "HF://org/tiny"]
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(2)]
    assert [json.loads(process.communicate(timeout=120)[0])["folder"] for process in both] == [str(place)] * 2
    assert hub.fetched() == sorted(WANTED)


def test_source_weights_are_no_compiled_model(hub: Hub, fetch: Fetch) -> None:
    hub.files = {"config.json": b"{}", "model.safetensors": b""}
    assert fetch("HF://org/tiny")["folder"] is None
    assert hub.fetched() == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tensor-cache.json": None},
         "HF://org/tiny holds mlc-chat-config.json but no tensor-cache.json (nor ndarray-cache.json): "
         "it is not a whole model folder"),
        ({"params_shard_1.bin": None},
         "HF://org/tiny has no file 'params_shard_1.bin', which tensor-cache.json names as a weight shard"),
        ({"tensor-cache.json": json.dumps({"records": [shard(0)[1] | {"dataPath": "../x"}]}).encode(), "../x": b"x"},
         "HF://org/tiny has no file '../x', which tensor-cache.json names as a weight shard"),
        ({"tensor-cache.json": b"{"}, "is not valid JSON"),
        ({"mlc-chat-config.json": b"{}"}, "mlc-chat-config.json: model_type is missing"),
    ],
)  # fmt: skip
def test_a_repository_that_is_no_whole_model_gets_one_line(
    change: dict[str, bytes | None], message: str, hub: Hub, fetch: Fetch, place: Path
) -> None:
    files: dict[str, bytes | None] = hub.files | change
    hub.files = {name: content for name, content in files.items() if content is not None}
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "ModelFileError"
    assert message in answer["message"]
    assert not place.exists()
    assert "params_shard_0.bin" not in hub.fetched()


def test_an_unknown_repository_and_no_network(fetch: Fetch) -> None:
    answer = fetch("HF://org/other")
    assert answer["message"] == "HF://org/other does not exist, or is private: check the name, or set HF_TOKEN"
    for changes in ({"HF_ENDPOINT": NOWHERE}, {"HF_HUB_OFFLINE": "1"}):
        answer = fetch("HF://org/tiny", **changes)
        assert answer["error"] == "EngineError"
        assert "HF://org/tiny is not in the cache and the hub cannot be reached: " in answer["message"]


def test_a_home_that_cannot_be_written(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    answer = fetch("HF://org/tiny", MLC_LLM_HOME=str(tmp_path / "file"))
    assert answer["error"] == "EngineError"
    assert "cannot be written: Not a directory (MLC_LLM_HOME names another place)" in answer["message"]


def test_redo_downloads_again(hub: Hub, fetch: Fetch, place: Path) -> None:
    fetch("HF://org/tiny")
    (place / "params_shard_0.bin").write_bytes(b"damaged")
    (place / "left.txt").touch()
    hub.requests.clear()
    answer = fetch("HF://org/tiny", MLC_DOWNLOAD_CACHE_POLICY="REDO")
    assert set(answer["files"]) == WANTED
    assert set(hub.fetched()) == WANTED
    assert (place / "params_shard_0.bin").read_bytes() == hub.files["params_shard_0.bin"]


def test_what_mlc_llm_downloaded_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = put(cache_home() / "model_weights" / "hf" / "mlc-ai" / "X-q4f16_1-MLC")
    assert fetch_published("HF://mlc-ai/X-q4f16_1-MLC") == folder
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", "READONLY")
    assert fetch_published("HF://mlc-ai/X-q4f16_1-MLC") == folder


def test_read_only_caches_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = put(cache_home() / "model_weights" / "hf" / "org" / "tiny")
    shared = put(tmp_path / "b" / "hf" / "org" / "tiny")
    assert find_published("HF://org/tiny") == own
    monkeypatch.setenv("MLC_LLM_READONLY_WEIGHT_CACHE", os.pathsep.join(["", str(tmp_path / "a"), str(tmp_path / "b")]))
    assert find_published("HF://org/tiny") == published_place("HF://org/tiny") == shared
    assert find_published("HF://org/tiny@v1") is None
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", "REDO")
    assert find_published("HF://org/tiny") == shared


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("OFF", r"^HF://org/tiny cannot be used: MLC_DOWNLOAD_CACHE_POLICY is OFF: set it to ON$"),
        ("READONLY", r"MLC_DOWNLOAD_CACHE_POLICY is READONLY and it is not \(fully\) in the cache: set it to ON$"),
        ("on", r"^MLC_DOWNLOAD_CACHE_POLICY is 'on': expected ON, OFF, REDO or READONLY$"),
    ],
)
def test_what_the_policy_forbids(policy: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_DOWNLOAD_CACHE_POLICY", policy)
    with pytest.raises(UsageError, match=message):
        fetch_published("HF://org/tiny")
