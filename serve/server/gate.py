"""What a request has to pass before a route sees it: its headers, its host, its key, and room for its answer."""

import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .errors import HTTPError, error_response
from .page import is_page_request, page_response
from .service import Service

OPEN_PATHS = frozenset({"/health"})


class HostGate:
    """Refuses headers that are too large, and on loopback a `Host` that is another name."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._limit, self._hosts = app, service.settings.max_header_bytes, service.settings.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        size = len(scope["query_string"]) + sum(len(name) + len(value) for name, value in scope["headers"])
        host = _without_port(Headers(scope=scope).get("host", ""))
        if size > self._limit:
            refusal = HTTPError(
                431, f"the headers have {size} bytes: at most {self._limit} are read", "headers_too_large"
            )
        elif self._hosts is not None and host not in self._hosts:
            message = (
                f"host {host[:200]!r} is not served: ask for one of {', '.join(sorted(self._hosts))}, or name it in "
            )
            refusal = HTTPError(403, message + "--allowed-hosts when the server starts", "host_not_allowed",
                                "permission_error")  # fmt: skip
        else:
            await self._app(scope, receive, send)
            return
        await error_response(refusal)(scope, receive, send)


class KeyGate:
    """Asks for the API key everywhere but on the open paths, and lets in as many posts as may run at a time.

    A browser that opens the chat page cannot send a key: the body of its 401 is the page, which asks the user for one.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._service = app, service
        key = service.settings.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self._app(scope, receive, send)
            return
        try:
            self._check_key(Headers(scope=scope).get("authorization", ""))
            end = self._service.take() if scope["method"] == "POST" else None
        except HTTPError as refusal:
            response = page_response(refusal.status) if is_page_request(scope) else error_response(refusal)
            await response(scope, receive, send)
            return
        if end is None:
            await self._app(scope, receive, send)
            return

        async def ending(message: Message) -> None:
            if message["type"] == "http.response.body" and not message.get("more_body"):
                end()  # before the client can know, so that its next request finds the room
            await send(message)

        try:
            await self._app(scope, receive, ending)
        finally:
            end()

    def _check_key(self, authorization: str) -> None:
        if self._key is None:
            return
        scheme, _, given = authorization.partition(" ")
        if not hmac.compare_digest(given.strip().encode(), self._key) or scheme.lower() != "bearer":
            state = "wrong" if authorization else "missing"
            message = f"the API key is {state}: send it as `Authorization: Bearer KEY`"
            raise HTTPError(401, message, "invalid_api_key", "authentication_error", {"www-authenticate": "Bearer"})


def _without_port(host: str) -> str:
    """The name or address of a `Host` header, in lower case; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()
