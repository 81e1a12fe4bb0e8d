"""The outermost layer: every answer has an `x-request-id`, every failure an answer, every request a line in the log."""

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .attend import CLIENT_GONE
from .errors import error_response
from .service import Service
from .watch import Watch

log = logging.getLogger(__name__)

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:/+=-]{1,128}")


class Access:
    """Wraps the whole app. A client's own `x-request-id` is kept when it is short and plain."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._histograms = app, service.histograms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req-{uuid.uuid4().hex}"
        watch = Watch(self._histograms)
        scope.setdefault("state", {})["watch"] = watch
        status = 0

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, labelled)
        except Exception as error:
            if status:
                raise
            await error_response(error)(scope, receive, labelled)
        finally:
            status = status or CLIENT_GONE
            route = getattr(scope.get("route"), "path", "other")
            self._histograms.requests.labels(route, status).inc()
            took = ", ".join(filter(None, (f"{time.monotonic() - watch.begun:.3f} s", str(watch))))
            log.info("%s %s %d %s %s", scope["method"], scope["path"][:200], status, took, request_id)
