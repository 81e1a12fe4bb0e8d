"""Work for a client that may hang up, in a server that may stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from .errors import HTTPError, busy

T = TypeVar("T")

CLIENT_GONE = 499  # nginx's status for it; nobody receives it, the log shows it


class ClientGoneError(HTTPError):
    """The client hung up."""

    def __init__(self) -> None:
        super().__init__(CLIENT_GONE, "the client closed the connection", "client_gone")


async def attended(work: Coroutine[Any, Any, T], receive: Receive, stopped: "asyncio.Future[None]") -> T:
    """The result of `work`, which is cancelled when the client hangs up or `stopped` is done.

    To be called when the request's body is read. Raises ClientGoneError, HTTPError 503, and what `work` raises.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(receive))
    try:
        ends: set[asyncio.Future[Any]] = {task, gone, stopped}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        if gone.done():
            raise ClientGoneError
        raise busy("the server is shutting down", 503, "shutting_down")
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
