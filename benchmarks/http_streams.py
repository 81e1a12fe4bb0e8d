"""For the benchmarks of the server: its process, and a client that costs next to nothing.

The clients run on the machine that they measure, so they keep what arrives with its time and look at it afterwards.
"""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

PATIENCE = 300  # seconds, for what should take none; the machine may be busy with other things


@dataclass
class Exchange:
    """One request and what came back: parts of the response, each with the time of its arrival."""

    began: float
    parts: list[tuple[float, bytes]] = field(default_factory=list)
    closed: Exception | None = None  # why the connection broke, if it did

    @property
    def response(self) -> bytes:
        return b"".join(part for _, part in self.parts)

    @property
    def status(self) -> int | None:
        """None: there was no response."""
        response = self.response
        return int(response[9:12]) if response.startswith(b"HTTP/1.1 ") else None

    @property
    def whole(self) -> bool:
        """Whether the response came to its end: that of the stream, or the number of bytes that it names."""
        head, _, body = self.response.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        return body.endswith(b"0\r\n\r\n") if length is None else len(body) == int(length[1])

    @property
    def headers(self) -> dict[str, str]:
        """Their names in lower case."""
        lines = self.response.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}

    def events(self) -> Iterator[tuple[float, Any]]:
        """The JSON of each event of the stream, with the time at which its end was there."""
        rest = b""
        for at, part in self.parts:
            rest += part
            while (end := rest.find(b"\n\n")) >= 0:
                event, rest = rest[:end], rest[end + 2 :]
                _, found, data = event.partition(b"data: ")
                if found and data != b"[DONE]":
                    yield at, json.loads(data)


class _Protocol(asyncio.Protocol):
    def __init__(
        self, request: bytes, exchange: Exchange, ended: "asyncio.Future[None]", most_parts: int | None
    ) -> None:
        self._request, self._exchange, self._ended, self._most_parts = request, exchange, ended, most_parts

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._exchange.parts.append((time.perf_counter(), data))
        if len(self._exchange.parts) == self._most_parts:
            self._transport.abort()

    def connection_lost(self, error: Exception | None) -> None:
        self._exchange.closed = error
        if not self._ended.done():
            self._ended.set_result(None)


async def post(url: str, path: str, body: dict[str, Any], hang_up_after: int | None = None) -> Exchange:
    """Post JSON on a connection of its own and wait for its end, or hang up after that many parts of the response."""
    at = urlsplit(url)
    content = json.dumps(body).encode()
    request = (
        f"POST {path} HTTP/1.1\r\nHost: {at.netloc}\r\nContent-Type: application/json\r\nConnection: close\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    ).encode() + content
    loop = asyncio.get_running_loop()
    exchange = Exchange(time.perf_counter())
    ended = loop.create_future()
    transport, _ = await loop.create_connection(
        lambda: _Protocol(request, exchange, ended, hang_up_after), at.hostname, at.port
    )
    try:
        await ended
    finally:
        transport.abort()
    return exchange


@contextmanager
def server(model: Path, library: Path | None, *options: str) -> Iterator[tuple[str, int]]:
    """(address, process id) of `mlc serve` with a model; it has to end with 0."""
    command = [sys.executable, "-m", "mlc_llm", "serve", str(model), "--port", "0", *options]
    command += [] if library is None else ["--model-lib", str(library)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0], process.pid
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
        finally:
            process.kill()


def metrics(url: str) -> dict[str, float]:
    """The values of /metrics that are no histogram's, by their names without labels."""
    with urlopen(f"{url}/metrics", timeout=PATIENCE) as response:
        lines = response.read().decode().splitlines()
    values = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name.partition("{")[0]: float(value) for name, _, value in values}


def in_use(url: str) -> tuple[float, float, float]:
    """Answers that run and that wait, and pages that they use."""
    values = metrics(url)
    return values["mlc_requests_running"], values["mlc_requests_waiting"], values["mlc_kv_cache_pages_used"]


def resident(process: int) -> int:
    """Bytes of memory that a process holds."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
