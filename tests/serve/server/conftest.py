"""A server with a scripted engine, on a port of the loopback, in a thread of its own."""

import asyncio
import json
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fake_async_engine import TIMEOUT, FakeEngine
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service as ChromeDriver

import mlc_llm.serve.async_engine as module
from mlc_llm.serve import AsyncMLCEngine
from mlc_llm.serve.server.app import create_app
from mlc_llm.serve.server.run import listen, server
from mlc_llm.serve.server.service import Service
from mlc_llm.serve.server.settings import Settings


@dataclass(frozen=True)
class Running:
    """A server that runs: its engine, its state, and a client for it."""

    listener: tuple[str, int]
    engine: Any
    service: Service
    client: httpx.Client
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener[1]}"

    def chat(self, text: str = "hello world", **fields: Any) -> httpx.Response:
        return self.client.post("/v1/chat/completions", json=body(text, **fields))

    def stream(self, text: str, **fields: Any) -> Any:
        """A context manager with the response, whose body comes as it is made."""
        return self.client.stream("POST", "/v1/chat/completions", json=body(text, stream=True, **fields))

    def connect(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(self.listener, timeout=TIMEOUT)

    def post_raw(
        self, content: bytes | dict[str, Any], length: int | None = None, path: str = "/v1/chat/completions"
    ) -> socket.socket:
        """A bare connection with a request under way; `length` is what its header says."""
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        raw = self.connect()
        raw.sendall(f"{head}Content-Length: {length or len(data)}\r\n\r\n".encode() + data)
        return raw


def body(text: str = "hello world", **fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


@contextmanager
def run_server(engine: Any = None, loaded: bool = True, **settings: Any) -> Iterator[Running]:
    """A server in a thread."""
    engine = engine or FakeEngine()
    wanted = Settings(**settings)
    app = create_app(engine if loaded else None, wanted)
    listener = listen("127.0.0.1", 0)
    http = server(app, wanted)
    loop = asyncio.new_event_loop()

    def work() -> None:
        asyncio.set_event_loop(loop)
        loop.run_until_complete(http.serve(sockets=[listener]))
        loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    address = listener.getsockname()
    headers = {} if wanted.api_key is None else {"authorization": f"Bearer {wanted.api_key}"}
    try:
        with httpx.Client(
            base_url=f"http://127.0.0.1:{address[1]}", headers=headers, timeout=TIMEOUT, trust_env=False
        ) as client:
            yield Running(address, engine, app.state.service, client, loop)
    finally:
        if isinstance(engine, FakeEngine):
            engine.release()
        http.should_exit = True
        thread.join(TIMEOUT)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running() -> Callable[..., Any]:
    """A context manager that runs a server with settings of its own."""
    return run_server


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """Start a server with settings of its own."""
    with ExitStack() as stack:
        yield lambda *args, **settings: stack.enter_context(run_server(*args, **settings))


@pytest.fixture
def openai_client() -> Iterator[Callable[[Running], openai.OpenAI]]:
    """Make OpenAI's client of a server; it is closed after the test, as garbage it would warn in another one."""
    with ExitStack() as stack:

        def make(server: Running) -> openai.OpenAI:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=TIMEOUT)
            return stack.enter_context(client)

        yield make


@pytest.fixture(scope="module")
def plain() -> Iterator[Running]:
    """A server as it is without flags, for tests that change nothing."""
    with run_server() as server:
        yield server


@pytest.fixture
def plain_server() -> Iterator[Running]:
    """As `plain`, for tests that make its engine wait."""
    with run_server() as server:
        yield server


@pytest.fixture
def start(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Start a server whose model answers a text and then ends; without a text its answers are noise."""
    with ExitStack() as stack:

        def begin(
            text: str | None = None,
            max_waiting: int | None = None,
            settings: Any = None,
            embedding_model: str | None = None,
            **options: Any,
        ) -> Any:
            other = scripted(text, **options)
            monkeypatch.setattr(module, "load_model", lambda name, *_: replace(other._loaded(), name=name))
            engine = AsyncMLCEngine("dist/tiny", max_waiting=max_waiting, embedding_model=embedding_model)
            stack.callback(engine.terminate)
            return stack.enter_context(run_server(engine, **(settings or {})))

        yield begin


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A headless Chromium with a profile of its own, which keeps a record of what it asks for."""
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed (Debian: chromium chromium-driver)")
    profile: Path = tmp_path_factory.mktemp("chromium")
    options = ChromeOptions()
    options.binary_location = program
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage", "disable-quic", "no-first-run",
                 "disable-background-networking", "disable-component-update", "disable-sync",
                 f"user-data-dir={profile}"):  # fmt: skip
        options.add_argument(f"--{flag}")
    with Chrome(options, ChromeDriver(driver)) as chrome:
        chrome.set_window_size(1200, 800)
        chrome.set_script_timeout(TIMEOUT)
        yield chrome
