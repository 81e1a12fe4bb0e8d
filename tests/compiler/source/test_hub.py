"""`HF://org/name` through huggingface_hub, against a small hub on the loopback interface.

huggingface_hub reads its environment when it is imported, so each download runs in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
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


@dataclass
class Hub:
    files: dict[str, bytes]
    gated: bool = False
    requests: list[str] = field(default_factory=list)
    port: int = 0


def make_handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    """The three endpoints that a snapshot download needs: repository info, file tree, files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            return None

        def answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def fail(self, status: int, code: str) -> None:
            self.answer(status, b"{}", X_Error_Code=code, X_Error_Message=code)

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            hub.requests.append(f"{self.command} {path}")
            if "/org/tiny" not in path:
                self.fail(404, "RepoNotFound")
            elif hub.gated and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                self.fail(403, "GatedRepo")
            elif path.startswith("/api/models/org/tiny/tree/"):
                tree = [
                    {"type": "file", "oid": hashlib.sha1(content).hexdigest(), "size": len(content), "path": name}
                    for name, content in hub.files.items()
                ]
                self.answer(200, json.dumps(tree).encode(), Content_Type="application/json")
            elif path.startswith("/api/models/"):
                revision = path.partition("/revision/")[2]
                if revision not in ("", "main", "v1", SHA):
                    self.fail(404, "RevisionNotFound")
                    return
                siblings = [{"rfilename": name} for name in hub.files]
                info = {"id": "org/tiny", "modelId": "org/tiny", "sha": SHA, "siblings": siblings, "private": False,
                        "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            else:
                content = hub.files[path.partition(f"/resolve/{SHA}/")[2]]
                self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=SHA)

        do_HEAD = do_GET

    return Handler


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
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(hub: Hub, tmp_path: Path) -> Any:
    """fetch(model, NAME=value...): what a process with these environment variables answers."""

    def run(model: str, **changes: str | None) -> dict[str, Any]:
        environment = os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}",
            "HF_HOME": str(tmp_path / "hf"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
            "PYTHONWARNINGS": "ignore",
        }
        for name, value in ({"MLC_LLM_HOME": None, "HF_TOKEN": None} | changes).items():
            environment.pop(name, None)
            environment |= {name: value} if value is not None else {}
        result = subprocess.run(
            [sys.executable, "-c", SCRIPT, model],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        answer: dict[str, Any] = json.loads(result.stdout)
        assert "\n" not in answer.get("message", "")
        return answer

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
    assert fetch("hf://org/tiny", HF_ENDPOINT="http://127.0.0.1:9")["folder"] == answer["folder"]


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
    answer = fetch("HF://org/tiny", HF_ENDPOINT="http://127.0.0.1:9")
    assert answer["error"] == "EngineError"
    assert "HF://org/tiny is not (fully) in the cache and the hub cannot be reached: " in answer["message"]


def test_a_repository_with_pickles_only(hub: Hub, fetch: Any) -> None:
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"no"}
    answer = fetch("HF://org/tiny")
    assert answer["error"] == "ModelFileError"
    assert "only safetensors and GGUF are read (no pickle)" in answer["message"]
