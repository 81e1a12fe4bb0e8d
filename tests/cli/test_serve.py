"""`mlc serve` as a process: flags, the line that says it is ready, signals, and the end."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "served_fake.py"
TIMEOUT = 60


class Process:
    """A server in a process of its own."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, str(SCRIPT), "serve", "tiny", "--port", "0", *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip

    def ready(self) -> httpx.Client:
        """Wait for the line; a client for the address in it."""
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        address = self.line.partition(" ")[0]
        return httpx.Client(base_url=address, timeout=TIMEOUT, trust_env=False)

    def log_line(self) -> str:
        """The next line on standard error."""
        assert self.process.stderr is not None
        return self.process.stderr.readline()

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Its exit code and the rest of its log."""
        _, log = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, log


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Start a server; it is killed when the test ends, if it still runs."""
    started: list[Process] = []

    def begin(*arguments: str, **environment: str) -> Process:
        started.append(Process(*arguments, **environment))
        return started[-1]

    yield begin
    for server in started:
        server.process.kill()
        server.process.communicate()


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


def test_a_server_says_when_it_is_ready_and_ends_at_sigterm(start: Callable[..., Process]) -> None:
    server = start("--api-key", "sk-1")
    with server.ready() as client:
        address = re.escape(str(client.base_url).rstrip("/"))
        assert re.fullmatch(
            rf"{address} serves tiny: context 256 tokens, KV cache 1024 tokens in float16, 4 answers at once; "
            rf"a page to chat is there, the API at {address}/docs\n",
            server.line,
        )
        assert client.get("/v1/models").status_code == 401
        headers = {"authorization": "Bearer sk-1", "x-request-id": "mine"}
        answer = client.post("/v1/chat/completions", json=ask("hello"), headers=headers)
        assert answer.json()["model"] == "tiny"
        server.signal(signal.SIGTERM)
        code, log = server.end()
    assert code == 0
    assert re.search(r"INFO POST /v1/chat/completions 200 \d+\.\d+ s, 5\+1 tokens, first after \d+\.\d+ s mine\n", log)
    assert "sk-1" not in log
    assert "Traceback" not in log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_answers_end_before_the_process_does(number: int, start: Callable[..., Process]) -> None:
    server = start("--shutdown-timeout", "0.2")
    with (
        server.ready() as client,
        client.stream("POST", "/v1/chat/completions", json=ask("one <wait> two", stream=True)) as answer,
    ):
        lines = answer.iter_lines()
        assert "data" in next(lines)
        server.signal(number)
        rest = "\n".join(lines)
    assert '"code":"shutting_down"' in rest
    assert "[DONE]" not in rest
    code, log = server.end()
    assert code == 0
    assert "Traceback" not in log


def test_a_server_that_drains_says_so_and_takes_nothing_new(start: Callable[..., Process]) -> None:
    server = start("--shutdown-timeout", "3600")
    with (
        server.ready() as client,
        client.stream("POST", "/v1/chat/completions", json=ask("one <wait> two", stream=True)) as answer,
    ):
        next(answer.iter_lines())
        server.signal(signal.SIGTERM)
        while (health := client.get("/health")).status_code == 200:
            pass
        assert (health.status_code, health.json()) == (503, {"status": "draining"})
        refused = client.post("/v1/chat/completions", json=ask("hello"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 128 + signal.SIGTERM


def test_the_last_answer_to_end_lets_the_process_end(start: Callable[..., Process]) -> None:
    server = start("--shutdown-timeout", "3600")
    with server.ready() as client:
        with client.stream("POST", "/v1/chat/completions", json=ask("one <wait> two", stream=True)) as answer:
            next(answer.iter_lines())
            server.signal(signal.SIGTERM)
            while client.get("/health").status_code == 200:
                pass
        assert server.end()[0] == 0  # the client hung up


def test_health_answers_while_the_model_is_loaded(start: Callable[..., Process]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    server = start("--port", str(port), MLC_TEST_LOAD="wait")
    assert server.log_line().startswith("loading")
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT, trust_env=False) as client:
        assert client.get("/health").json() == {"status": "loading"}
        server.signal(signal.SIGTERM)
        assert server.end()[0] == 0


@pytest.mark.parametrize(
    ("how", "line"),
    [
        ("fail", "Error: the folder is damaged: compile it again\n"),
        ("crash", "Error: internal error: KeyError: 'a bug' (run `mlc --debug ...` for the traceback)\n"),
    ],
)
def test_a_model_that_does_not_load_ends_the_server(how: str, line: str, start: Callable[..., Process]) -> None:
    code, log = start(MLC_TEST_LOAD=how).end()
    assert (code, log.splitlines(keepends=True)[-1]) == (1, line)
    assert "Traceback" not in log


def test_a_port_in_use_is_one_line(mlc: Callable[..., tuple[int, str, str]]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        code, out, err = mlc("serve", "tiny", "--port", port)
    assert (code, out) == (1, "")
    assert err == (
        f"Error: cannot listen on http://127.0.0.1:{port}: Address already in use: "
        "choose another --port, or --port 0 for any that is free\n"
    )


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--port", "70000"], "'--port': 70000 is not in the range"),
        (["--host", "no.such.host.invalid"], "--host 'no.such.host.invalid' is no address of this machine"),
        (["--allowed-origins", "*"], """'*': expected a JSON list of strings, as '["*"]'"""),
        (["--allow-origins", "[]"], "'[]': expected a JSON list of strings"),
        (["--allow-methods", "[1]"], "'[1]': expected a JSON list of strings"),
        (["--allow-headers", "[" * 100_000], "expected a JSON list of strings"),
        (["--allow-credentials"], "name the origins"),
        (["--api-key", ""], "the API key is empty"),
        (["--api-key", "a b"], "the API key is empty or has characters"),
        (["--max-body-size", "0"], "'0': expected a number of bytes"),
        (["--max-body-size", "many"], "'many': expected a number of bytes"),
        (["--unity-catalog-url", "file:///etc"], "expected http:// or https://"),
        (["--shutdown-timeout", "-1"], "is not in the range"),
        (["--mode", "fast"], "'fast' is not one of"),
        (["--overrides", "max_num_sequence=many"], "--overrides max_num_sequence=many: expected a number"),
        (["--speculative-mode", "eagle"], "--speculative-mode eagle: is not supported yet"),
        (["--embedding-model-lib", "x.so"], "--embedding-model-lib is the library of --embedding-model"),
        (["--max-inputs", "2049"], "2049 is not in the range"),
        (["--enable-tracing"], "--enable-tracing: give --enable-debug too"),
        (["--prefill-chunk-size", "0"], "0 is not in the range"),
    ],
)
def test_a_wrong_flag_is_one_line(flags: list[str], line: str, mlc: Callable[..., tuple[int, str, str]]) -> None:
    code, out, err = mlc("serve", "tiny", "--port", "0", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_flags_can_be_environment_variables(
    mlc: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLC_SERVE_PORT", "70000")
    assert "70000 is not in the range" in mlc("serve", "tiny")[2]
    monkeypatch.setenv("MLC_SERVE_PORT", "0")
    monkeypatch.setenv("MLC_SERVE_ALLOWED_ORIGINS", "x")
    monkeypatch.setenv("MLC_SERVE_MODEL", "tiny")
    assert "'x': expected a JSON list of strings" in mlc("serve")[2]


def test_limits_and_names_reach_the_engine(start: Callable[..., Process]) -> None:
    server = start(
        "--max-batch-size", "2", "--overrides", "gpu_memory_utilization=0.5;max_total_seq_length=512", "--threads", "1",
        "--max-waiting", "7", "--speculative-mode", "disable", "--prefill-chunk-size", "64",
        "--embedding-model", "other", "--embedding-model-lib", "other.so",
        MLC_TEST_LOAD="fail", MLC_SERVE_PREFIX_CACHE_MODE="disable",
    )  # fmt: skip
    assert server.log_line() == (
        "loading dist/tiny EngineConfig(max_num_sequence=2, max_total_sequence_length=512, "
        "prefill_chunk_size=64, gpu_memory_utilization=0.5, num_threads=1, speculative_mode='disable', "
        "spec_draft_length=0, additional_models=(), prefix_cache_mode='disable') 7 dist/other other.so\n"
    )
    assert server.end()[0] == 1
