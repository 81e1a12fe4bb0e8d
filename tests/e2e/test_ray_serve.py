"""Two replicas on this machine, as docs/ray.md says to start them: `serve run` with its config file, the tiny model."""

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import tiny_model

import mlc_llm
from mlc_llm.serve.ray_app import RayArguments

pytest.importorskip("ray.exceptions", reason="ray is an extra: pip install 'mlc-aot[ray]'")
yaml = pytest.importorskip("yaml", reason="ray brings it")

pytestmark = pytest.mark.slow

PATIENCE = 180  # seconds, on a machine that has other things to do
MARK = "MLC_TEST_RAY"
CONTEXT = 100_000
KEY = "sk-test"
NAME = "tiny-q0f32-MLC"
LONG = {"max_tokens": CONTEXT // 2, "extra_body": {"ignore_eos": True}}


@dataclass(frozen=True)
class Served:
    """An application that runs: clients for it, and its processes."""

    http: httpx.Client
    openai: openai.OpenAI
    mark: str

    def chat(self, *messages: dict[str, str], **fields: Any) -> tuple[str, Any]:
        """The replica that answers, and its answer or stream."""
        asked: list[Any] = list(messages)
        fields = {"model": NAME, "max_tokens": 4, **fields}
        raw = self.openai.chat.completions.with_raw_response.create(messages=asked, **fields)
        return raw.headers["x-replica"], raw.parse()

    def figure(self, name: str) -> dict[str, float]:
        """A figure of each replica."""
        text = self.http.get("/metrics").raise_for_status().text
        found = re.findall(rf'^{name}{{.*replica="(\w+)".*}} (\S+)$', text, re.MULTILINE)
        return {replica: float(value) for replica, value in found}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def until(holds: Callable[[], bool], what: str) -> None:
    """Ask again until it holds."""
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.05)


def marked(mark: str) -> dict[int, str]:
    """The processes that were started below a process with this mark in its environment, and what they are called."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes().split(b"\0"):
                found[int(process.name)] = (process / "cmdline").read_text().replace("\0", " ")
    return found


def documented() -> dict[str, Any]:
    """The config file of docs/ray.md."""
    text = (Path(__file__).parents[2] / "docs/ray.md").read_text(encoding="utf-8")
    block = re.search(r"^    # ray.yaml\n((?:    .*\n)+)", text, re.MULTILINE)
    assert block is not None
    config: dict[str, Any] = yaml.safe_load(textwrap.dedent(block[1]))
    return config


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A folder with a short name, for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def config(home: Path) -> Path:
    """The documented file, with the tiny model, a free port and small replicas."""
    folder = home / NAME
    chat_config = tiny_model.write_folder(folder, context_window_size=CONTEXT)
    library = tiny_model.LibraryBuilder().build(home / "tiny.so", tiny_model.metadata(chat_config))
    file, fields = home / "ray.yaml", documented()
    with socket.create_server(("127.0.0.1", 0)) as free:
        fields["http_options"]["port"] = free.getsockname()[1]
    fields["applications"][0]["args"] |= {
        "model": str(folder), "model_lib": str(library), "device": "cpu", "num_threads": 1, "mode": "local",
        "max_batch_size": 4, "max_total_seq_length": CONTEXT, "max_replicas": 2, "shutdown_timeout": 5,
        "ray_actor_options": {"num_cpus": 0.5},
    }  # fmt: skip
    file.write_text(yaml.safe_dump(fields))
    return file


@pytest.fixture(scope="module")
def served(config: Path, home: Path) -> Iterator[Served]:
    """The application, as `serve run` runs it. No process of it is left afterwards."""
    mark = uuid.uuid4().hex
    package = Path(mlc_llm.__file__).parent
    path = [str(package.parent)] if package.name == "mlc_llm" else []  # otherwise it is installed under another name
    environment = {
        **os.environ, MARK: mark, "HOME": str(home), "RAY_TMPDIR": str(home), "RAY_USAGE_STATS_ENABLED": "0",
        "MLC_SERVE_API_KEY": KEY, "PYTHONPATH": os.pathsep.join([*path, *sys.path]),
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    log = home / "serve.log"
    port = yaml.safe_load(config.read_text())["http_options"]["port"]
    command = [sys.executable, "-m", "ray.serve.scripts", "run", str(config)]
    with log.open("wb") as output:
        driver = subprocess.Popen(command, env=environment, stdout=output, stderr=output, cwd=home)
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(
            base_url=url, headers={"authorization": f"Bearer {KEY}"}, timeout=PATIENCE, trust_env=False
        ) as http:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, http_client=http)
            until(lambda: is_ready(http, driver), "the application starts")
            yield Served(http, client, mark)
    finally:
        print(log.read_text(errors="replace"))  # pytest shows it where a test fails
        driver.send_signal(signal.SIGTERM)
        driver.wait(PATIENCE)
        for process in marked(mark):  # Ray's agents, which end themselves after a while
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        until(lambda: not marked(mark), "its processes end")


def is_ready(http: httpx.Client, driver: "subprocess.Popen[bytes]") -> bool:
    assert driver.poll() is None, "serve run has ended"
    with suppress(httpx.TransportError):
        return (
            http.get("/health").status_code == 200 and len(http.get("/metrics").text.split("mlc_kv_cache_pages{")) > 2
        )
    return False


def test_the_documented_arguments_are_those_of_the_application() -> None:
    [application] = documented()["applications"]
    assert RayArguments.model_validate(application["args"]).scaling()["num_replicas"] == "auto"


def test_both_replicas_answer(served: Served) -> None:
    replicas = Counter(served.chat(user(f"{number} is a number"))[0] for number in range(40))
    assert len(replicas) == 2  # one in 2^39 that chance gives all of them to one


def test_conversations_with_one_system_prompt_go_to_the_replica_that_knows_it(served: Served) -> None:
    system = {"role": "system", "content": "You are terse. " * 40}
    answers = [served.chat(system, user(f"Question {number}")) for number in range(8)]
    assert len({replica for replica, _ in answers}) == 1
    usages = [answer.usage for _, answer in answers]
    assert usages[0].prompt_tokens_details.cached_tokens == 0
    assert all(usage.prompt_tokens_details.cached_tokens >= 600 for usage in usages[1:])


def test_the_turns_of_a_conversation_go_to_one_replica(served: Served) -> None:
    turns = [user("Why is the sky blue?")]
    seen = []
    for _ in range(4):
        replica, answer = served.chat(*turns, max_tokens=20)
        seen.append((replica, answer.usage.prompt_tokens_details.cached_tokens))
        turns += [{"role": "assistant", "content": "Because."}, user("But why?")]
    assert len({replica for replica, _ in seen}) == 1
    assert [cached for _, cached in seen] == sorted(cached for _, cached in seen)
    assert seen[-1][1] > seen[1][1] > 0


def test_a_stream_arrives_while_it_is_made_and_ends_on_the_replica_when_its_client_hangs_up(served: Served) -> None:
    before = served.figure("mlc_generated_tokens_total")
    replica, stream = served.chat(user("Count"), stream=True, **LONG)
    next(stream)
    chunk = next(stream)
    assert chunk.object == "chat.completion.chunk"
    assert served.figure("mlc_requests_running")[replica] == 1
    assert served.figure("mlc_kv_cache_pages_used")[replica] > 0
    stream.close()
    until(lambda: served.figure("mlc_requests_running")[replica] == 0, "the answer ends")
    until(lambda: served.figure("mlc_kv_cache_pages_used") == dict.fromkeys(before, 0), "its pages are free")
    assert served.figure("mlc_generated_tokens_total")[replica] < before[replica] + CONTEXT // 2


def test_a_whole_stream_has_its_end_and_usage(served: Served) -> None:
    _, stream = served.chat(user("Tell"), max_tokens=30, stream=True, stream_options={"include_usage": True})
    chunks = list(stream)
    assert len({chunk.id for chunk in chunks}) == 1
    assert chunks[-2].choices[0].finish_reason in ("length", "stop")
    assert 0 < chunks[-1].usage.completion_tokens <= 30


def test_errors_are_those_of_the_server(served: Served) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        served.chat(user("hello"), model="another")
    assert missing.value.code == "model_not_found"
    refused = served.http.get("/v1/models", headers={"authorization": "Bearer wrong", "x-request-id": "mine"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (401, "invalid_api_key")
    assert refused.headers.get_list("x-request-id") == ["mine"]
    assert served.http.get("/metrics", headers={"authorization": ""}).status_code == 401
    assert served.http.post("/v1/chat/completions", json={"messages": 5}).json()["error"]["param"] == "messages"


def test_a_replica_that_dies_is_told_of_and_replaced(served: Served) -> None:
    before = served.figure("mlc_requests_running")
    _, stream = served.chat(user("Count"), stream=True, **LONG)
    next(stream)
    replicas = [
        process for process, name in marked(served.mark).items() if name.startswith("ray::ServeReplica:mlc:Engine")
    ]
    assert len(replicas) == 2
    for process in replicas:
        os.kill(process, signal.SIGKILL)
    with pytest.raises(openai.APIError, match="replica that was to answer is gone"):
        list(stream)

    def replaced() -> bool:
        with suppress(httpx.HTTPStatusError):
            running = served.figure("mlc_requests_running")
            return len(running) == 2 and not running.keys() & before.keys()
        return False

    until(replaced, "new replicas start")
    assert served.chat(user("And again"))[1].choices
