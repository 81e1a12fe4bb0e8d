"""An answer as server-sent events. https://html.spec.whatwg.org/multipage/server-sent-events.html"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Generic, TypeVar

from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from .attend import ClientGoneError, attended
from .errors import error_response, problem
from .service import service_of
from .watch import watch_of

Chunk = TypeVar("Chunk")

_DONE = b"data: [DONE]\n\n"
_KEEP_ALIVE = b": keep-alive\n\n"


def data_event(value: object) -> bytes:
    """An event that carries JSON."""
    return b"data: %b\n\n" % to_json(value)


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
        encode: Callable[[Chunk], bytes],
        refusal: Callable[[Exception], Response] = error_response,
    ) -> None:
        """`encode` makes the event of a chunk, or nothing; `refusal` the answer to an error before the first chunk."""
        self.status_code = 200
        self.background = None
        self.init_headers(
            {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache", "x-accel-buffering": "no"}
        )
        self._service, self._watch = service_of(http), watch_of(http)
        self._chunks, self._encode, self._refusal = chunks, encode, refusal
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
            await self._write(data_event(problem(error).body), last=True)

    async def _pump(self) -> None:
        self._last_write = asyncio.get_running_loop().time()
        comments = asyncio.ensure_future(self._comment())
        try:
            async with aclosing(self._chunks) as chunks:
                async for chunk in chunks:
                    self._watch.saw(chunk)
                    if event := self._encode(chunk):
                        await self._write(event)
        finally:
            comments.cancel()
        await self._write(_DONE, last=True)

    async def _comment(self) -> None:
        interval = self._service.settings.keep_alive_interval
        loop = asyncio.get_running_loop()
        while True:
            left = self._last_write + interval - loop.time()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._write(_KEEP_ALIVE)

    async def _write(self, body: bytes, last: bool = False) -> None:
        self._last_write = asyncio.get_running_loop().time()
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await self._send({"type": "http.response.body", "body": body, "more_body": not last})
