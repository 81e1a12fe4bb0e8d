"""A Hugging Face hub on the loopback interface, with one repository: org/tiny.

huggingface_hub reads its environment when it is imported, so whatever downloads runs in a process of its own.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from mlc_llm.runtime.artifact import ChatConfig

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_secret"
NOWHERE = "http://127.0.0.1:9"  # an endpoint that refuses connections


@dataclass
class Hub:
    """What the hub has, and what it was asked. `lost` are files that it lists but does not find."""

    files: dict[str, bytes]
    gated: bool = False
    lost: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    commit: str = SHA
    port: int = 0

    def fetched(self) -> list[str]:
        """The names of the files whose content was asked for, each time."""
        return sorted(line.rpartition("/")[2] for line in self.requests if line.startswith("GET /org/"))


def shard(number: int) -> tuple[bytes, dict[str, Any]]:
    """A shard of one tensor, and its entry in the index."""
    data = np.full((50, number + 1), number, np.float16).tobytes()
    record = {"name": f"w{number}", "shape": [50, number + 1], "dtype": "float16", "format": "f32-to-bf16",
              "nbytes": len(data), "byteOffset": 0}  # fmt: skip
    return data, {"dataPath": f"params_shard_{number}.bin", "format": "raw-shard", "nbytes": len(data),
                  "md5sum": hashlib.md5(data).hexdigest(), "records": [record]}  # fmt: skip


def compiled_model() -> dict[str, bytes]:
    """A model folder as MLC publishes one, with files beside that a model does not need."""
    config = ChatConfig(
        model_type="llama", quantization="q4f16_1", model_config={}, vocab_size=10, context_window_size=128,
        prefill_chunk_size=64, tokenizer_files=["tokenizer.json", "extra", "../outside", "absent.json"],
    )  # fmt: skip
    shards = [shard(0), shard(1)]
    return {
        "mlc-chat-config.json": config.to_json().encode(),
        "tensor-cache.json": json.dumps({"metadata": {}, "records": [entry for _, entry in shards]}).encode(),
        **{entry["dataPath"]: data for data, entry in shards},
        **dict.fromkeys(("tokenizer.json", "tokenizer_config.json", "extra"), b"{}"),
        **dict.fromkeys(("README.md", ".gitattributes", "params_shard_2.bin", "logs/x.json"), b"not wanted"),
    }


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
                if path.partition("/revision/")[2] not in ("", "main", "v1", hub.commit):
                    self.fail(404, "RevisionNotFound")
                    return
                siblings = [{"rfilename": name} for name in hub.files]
                info = {"id": "org/tiny", "modelId": "org/tiny", "sha": hub.commit, "siblings": siblings,
                        "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
                self.answer(200, json.dumps(info).encode(), Content_Type="application/json")
            else:
                name = path.partition(f"/resolve/{hub.commit}/")[2]
                if name in hub.lost:
                    self.fail(404, "EntryNotFound")
                    return
                content = hub.files[name]
                self.answer(200, content, ETag=f'"{hashlib.sha1(content).hexdigest()}"', X_Repo_Commit=hub.commit)

        do_HEAD = do_GET

    return Handler


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at 127.0.0.1:`hub.port` while the block runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), make_handler(hub))
    hub.port = server.server_port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def environment(hub: Hub, home: Path, **changes: str | None) -> dict[str, str]:
    """The variables of a process that uses this hub and keeps everything in `home`; None takes a variable away."""
    variables = os.environ | {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.port}",
        "HF_HOME": str(home / "hf"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "PYTHONWARNINGS": "ignore",
    }
    for name, value in ({"HF_TOKEN": None} | changes).items():
        variables.pop(name, None)
        variables |= {name: value} if value is not None else {}
    return variables


def answer_of(script: str, *argv: str, env: dict[str, str]) -> dict[str, Any]:
    """The JSON object that a Python script prints, in a process of its own."""
    command = [sys.executable, "-c", script, *argv]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    answer: dict[str, Any] = json.loads(result.stdout)
    assert "\n" not in answer.get("message", "")
    return answer
