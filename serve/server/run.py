"""The process of a server: its socket, loading beside it, signals, and the end."""

import asyncio
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import uvicorn
from fastapi import FastAPI

from ...runtime.errors import EngineError, UsageError
from .app import create_app
from .connection import connection
from .engine import ServingEngine
from .service import Service
from .settings import Settings

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: `run` has its own, for a drain that keeps answering /health."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any. Raises UsageError for a bad host, EngineError when the port is in use."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise UsageError(f"--host {host!r} is no address of this machine: give one, as 127.0.0.1 or 0.0.0.0") from None
    try:
        return socket.create_server(address[:2], family=family, backlog=2048)
    except OSError as error:
        hint = "choose another --port, or --port 0 for any that is free"
        raise EngineError(f"cannot listen on {url(host, port)}: {os.strerror(error.errno or 0)}: {hint}") from None


def url(host: str, port: int) -> str:
    """The address of a server."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def server(app: FastAPI, settings: Settings) -> Server:
    """The uvicorn server of an app."""
    config = uvicorn.Config(
        app,
        http=connection(settings.header_timeout),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=settings.idle_timeout,  # type: ignore[arg-type]  # a timer takes any number
        h11_max_incomplete_event_size=2 * settings.max_header_bytes,  # from the limit up to here, the app answers
        timeout_graceful_shutdown=1,  # for what is no answer in the making: those were drained before
    )
    return Server(config)


def run(
    load: Callable[[], ServingEngine],
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[ServingEngine], None],
) -> None:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process at once.

    `load` makes the engine, in a thread, while the server already says that it is loading; `ready` is called when it
    takes requests. Raises what `load` raises.
    """
    asyncio.run(_run(load, settings, listener, ready))


async def _run(
    load: Callable[[], ServingEngine],
    settings: Settings,
    listener: socket.socket,
    ready: Callable[[ServingEngine], None],
) -> None:
    app = create_app(None, settings)
    service: Service = app.state.service
    signalled = _signalled()
    http = server(app, settings)
    serving = asyncio.ensure_future(http.serve(sockets=[listener]))
    loading = in_thread(load)
    engine: ServingEngine | None = None
    try:
        await _first({loading, signalled, serving})
        if loading.done():
            engine = loading.result()
            service.start(engine)
            ready(engine)
            await _first({signalled, serving})
        await service.drain()
    finally:
        http.should_exit = True
        await serving
        if engine is not None:
            engine.terminate()


async def _first(ends: "set[asyncio.Future[Any]]") -> None:
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)


def _signalled() -> "asyncio.Future[None]":
    """Done at the first signal; the second one ends the process."""
    loop = asyncio.get_running_loop()
    first: asyncio.Future[None] = loop.create_future()

    def on_signal(number: int) -> None:
        if first.done():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(128 + number)
        first.set_result(None)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    return first


def in_thread(load: Callable[[], ServingEngine]) -> "asyncio.Future[ServingEngine]":
    """Call `load` in a thread that does not keep the process from ending, as those of an executor do."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[ServingEngine] = loop.create_future()

    def work() -> None:
        try:
            settle: Callable[[Any], None] = result.set_result
            value: Any = load()
        except Exception as error:
            settle, value = result.set_exception, error
        with suppress(RuntimeError):  # the loop is closed: a signal came meanwhile
            loop.call_soon_threadsafe(settle, value)

    threading.Thread(target=work, name="load", daemon=True).start()
    return result
