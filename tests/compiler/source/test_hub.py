"""`HF://org/name` as a source, through huggingface_hub, against a small hub on the loopback interface."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_hub import NOWHERE, TOKEN, Hub, answer_of, environment, serving
from safetensors.numpy import save

SCRIPT = """
import json, sys
from mlc_llm.compiler.source import open_source
from mlc_llm.runtime.errors import MLCError
seen = []
try:
    source = open_source(sys.argv[1], progress=lambda done, total, what: seen.append((done, total, what)))
    answer = {"name": source.name, "config": source.config, "tensors": list(source.tensors),
              "folder": str(source.folder), "files": sorted(path.name for path in source.folder.iterdir()),
              "progress": seen[-1:], "sum": float(source.read("b").sum())}
except MLCError as error:
    answer = {"error": type(error).__name__, "message": str(error)}
print(json.dumps(answer))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    shards = {
        "model-00001-of-00002.safetensors": save({"a": np.ones((2, 2), np.float32)}),
        "model-00002-of-00002.safetensors": save({"b": np.full((3,), 2, np.float16)}),
    }
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    hub = Hub(
        {
            "config.json": b'{"model_type": "llama"}',
            "tokenizer.json": b"{}",
            "model.safetensors.index.json": json.dumps(index).encode(),
            **shards,
            "README.md": b"not wanted",
            "pytorch_model.bin": b"not wanted",
            "original/model.safetensors": b"not wanted",
            "consolidated.safetensors": b"not wanted",
        }
    )
    with serving(hub):
        yield hub


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Any:
    """fetch(model, NAME=value...): what a process with these environment variables answers."""

    def run(model: str, **changes: str | None) -> dict[str, Any]:
        env = environment(hub, tmp_path, **({"MLC_LLM_HOME": None} | changes))
        return answer_of(SCRIPT, model, env=env)

    return run


def test_a_repository_is_downloaded_then_served_from_the_cache(hub: Hub, fetch: Any, tmp_path: Path) -> None:
    answer = fetch("HF://org/tiny")
    assert answer["name"] == "tiny"
    assert answer["config"] == {"model_type": "llama"}
    assert answer["tensors"] == ["a", "b"]
    assert answer["sum"] == 6
    assert answer["files"] == ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
                               "model.safetensors.index.json", "tokenizer.json"]  # fmt: skip
    assert Path(answer["folder"]).is_relative_to(tmp_path / "hf" / "hub")
    total = sum(len(hub.files[name]) for name in answer["files"])
    assert answer["progress"] == [[total, total, "HF://org/tiny"]]

    hub.requests.clear()
    assert fetch("hf://org/tiny", HF_HUB_OFFLINE="1")["folder"] == answer["folder"]
    assert hub.requests == []
    assert fetch("hf://org/tiny", HF_ENDPOINT=NOWHERE)["folder"] == answer["folder"]


def test_a_revision_and_a_home_of_its_own(fetch: Any, tmp_path: Path) -> None:
    answer = fetch("HF://org/tiny@v1", MLC_LLM_HOME=str(tmp_path / "home"))
    assert Path(answer["folder"]).is_relative_to(tmp_path / "home" / "hub")
    assert answer["name"] == "tiny"


def test_an_unknown_repository(fetch: Any) -> None:
    answer = fetch("HF://org/other")
    assert answer["error"] == "UsageError"
    assert answer["message"] == "HF://org/other does not exist, or is private: check the name, or set HF_TOKEN"


def test_an_unknown_revision(fetch: Any) -> None:
    answer = fetch("HF://org/tiny@v9")
    assert answer == {"error": "UsageError", "message": "HF://org/tiny@v9: the repository has no revision v9"}


def test_a_gated_repository_opens_with_a_token(hub: Hub, fetch: Any) -> None:
    hub.gated = True
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "UsageError"
    assert "HF://org/tiny is gated: accept its terms on its page, then set HF_TOKEN" in answer["message"]
    assert fetch("HF://org/tiny", HF_TOKEN=TOKEN)["name"] == "tiny"


def test_no_network_and_nothing_cached(fetch: Any) -> None:
    answer = fetch("HF://org/tiny", HF_ENDPOINT=NOWHERE)
    assert answer["error"] == "EngineError"
    assert "HF://org/tiny is not (fully) in the cache and the hub cannot be reached: " in answer["message"]


def test_a_repository_with_pickles_only(hub: Hub, fetch: Any) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"no"}
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "ModelFileError"
    assert "only safetensors and GGUF are read (no pickle)" in answer["message"]


def test_a_compiled_model_is_no_source(hub: Hub, fetch: Any) -> None:
    hub.files = {"mlc-chat-config.json": b"{}", "tensor-cache.json": b"{}", "params_shard_0.bin": b"x"}
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "ModelFileError"
    assert answer["message"] == (
        "HF://org/tiny is a compiled model (mlc-chat-config.json), not source weights: `mlc compile HF://org/tiny` "
        "builds its library"
    )
    assert "params_shard_0.bin" not in hub.fetched()


def test_the_cache_policy_is_mlcs(hub: Hub, fetch: Any) -> None:
    off = fetch("HF://org/tiny", MLC_DOWNLOAD_CACHE_POLICY="OFF")
    assert off["message"] == "HF://org/tiny cannot be used: MLC_DOWNLOAD_CACHE_POLICY is OFF: set it to ON"
    absent = fetch("HF://org/tiny", MLC_DOWNLOAD_CACHE_POLICY="READONLY")
    assert absent["message"] == (
        "HF://org/tiny cannot be used: MLC_DOWNLOAD_CACHE_POLICY is READONLY and it is not (fully) in the cache: "
        "set it to ON"
    )
    assert hub.requests == []
    folder = fetch("HF://org/tiny")["folder"]
    hub.requests.clear()
    assert fetch("HF://org/tiny", MLC_DOWNLOAD_CACHE_POLICY="READONLY")["folder"] == folder
    assert hub.requests == []
    assert fetch("HF://org/tiny", MLC_DOWNLOAD_CACHE_POLICY="REDO")["folder"] == folder
    assert "model-00001-of-00002.safetensors" in hub.fetched()
