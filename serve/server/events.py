"""An answer as server-sent events. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .attend import ClientGoneError, attended
from .errors import Problem, error_response, problem
from .service import service_of
from .watch import watch_of

Chunk = TypeVar("Chunk")
Taken = TypeVar("Taken", contravariant=True)

_KEEP_ALIVE = b": keep-alive\n\n"


def data_event(value: object, name: str | None = None) -> bytes:
    """An event that carries JSON."""
    head = b"" if name is None else b"event: %b\n" % name.encode()
    return b"%bdata: %b\n\n" % (head, to_json(value))


class AnswerFormat(Protocol[Taken]):
    """How one answer is told to a client, from the chunks that the engine makes of it: as events, or as one body."""

    def events(self, chunk: Taken) -> Iterable[bytes]:
        """The events of a chunk."""
        ...

    def end(self) -> Iterable[bytes]:
        """The events after the last chunk, at least one."""
        ...

    def failure(self, error: Problem) -> Iterable[bytes]:
        """The events that end a stream that goes wrong, at least one."""
        ...

    def add(self, chunk: Taken) -> None:
        """One more chunk of an answer that is no stream."""
        ...

    def body(self) -> dict[str, Any]:
        """The whole answer, after its last chunk."""
        ...


class EventStream(Response, Generic[Chunk]):
    """Sends chunks while they are made.

    An error before the first chunk is an answer of its own with its status; one in the middle is an event. While
    nothing comes, comments keep proxies and clients from giving up. The chunks' generator is closed in every case, as
    soon as the client hangs up.
    """

    def __init__(
        self,
        http: Request,
        chunks: AsyncGenerator[Chunk, None],
        told: AnswerFormat[Chunk],
        refusal: Callable[[Exception], Response] = error_response,
    ) -> None:
        """`told` makes the events; `refusal` the answer to an error before the first of them."""
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        self._service, self._watch = service_of(http), watch_of(http)
        self._chunks, self._told, self._refusal = chunks, told, refusal
        self._started = False
        self._last_write = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = send
        try:
            await attended(self._pump(), receive, self._service.stopped)
        except ClientGoneError:
            return
        except Exception as error:
            if not self._started:
                await self._refusal(error)(scope, receive, send)
                return
            await self._write_last(self._told.failure(problem(error)))

    async def _pump(self) -> None:
        self._last_write = asyncio.get_running_loop().time()
        comments = asyncio.ensure_future(self._comment())
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    self._watch.saw(chunk)
                    for event in self._told.events(chunk):
                        await self._write(event)
        finally:
            comments.cancel()
        await self._write_last(self._told.end())

    async def _comment(self) -> None:
        interval = self._service.settings.keep_alive_interval
        loop = asyncio.get_running_loop()
        while True:
            left = self._last_write + interval - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._write(_KEEP_ALIVE)

    async def _write_last(self, events: Iterable[bytes]) -> None:
        *others, last = events
        for event in others:
            await self._write(event)
        await self._write(last, last=True)

    async def _write(self, body: bytes, last: bool = False) -> None:
        self._last_write = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
