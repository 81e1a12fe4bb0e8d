"""A connection: uvicorn's HTTP/1.1, with bounds on headers and an error object for what is no HTTP."""

import asyncio
import uuid
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .errors import HTTPError, error_response

_LINGER = 2.0  # seconds that a client may go on sending what is not read


class Connection(H11Protocol):
    """Closes a connection whose request head does not arrive in time, which uvicorn would keep for ever."""

    header_timeout = 20.0

    _deadline: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._deadline = self.loop.call_later(self.header_timeout, self.timeout_keep_alive_handler)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        begun = self.conn.their_state is h11.IDLE and bool(self.conn.trailing_data[0])
        if begun and self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout, self.timeout_keep_alive_handler)
        elif not begun:
            self._forget_deadline()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Uvicorn's answer to what is no HTTP, or to headers that are far too large."""
        error = HTTPError(400, "this is no HTTP request, or its headers are too large", "invalid_http")
        response = error_response(error)
        headers: list[Any] = [*response.raw_headers, (b"connection", b"close")]
        headers.append((b"x-request-id", f"req-{uuid.uuid4().hex}".encode()))
        for event in (
            h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        # Closing with bytes unread would reset the connection, and the client might never see the answer.
        self._refused = True
        self.transport.write_eof()
        self._forget_deadline()
        self._deadline = self.loop.call_later(min(_LINGER, self.header_timeout), self.transport.close)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


def connection(header_timeout: float) -> type[Connection]:
    """The class of a server's connections."""
    return type("Connection", (Connection,), {"header_timeout": header_timeout})
