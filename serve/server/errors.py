"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}` and a status.

https://platform.openai.com/docs/guides/error-codes
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from ...runtime.errors import MLCError, OverloadedError, RequestError

log = logging.getLogger(__name__)


class ErrorDetail(BaseModel):
    """What went wrong; `param` names the field of the request."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    """The body of every answer that is an error, and of an error event in a stream."""

    error: ErrorDetail


@dataclass
class HTTPError(Exception):
    """A request that the server itself refuses."""

    status: int
    message: str
    code: str | None = None
    type: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """An error, ready to be sent."""

    status: int
    detail: ErrorDetail
    headers: Mapping[str, str]

    @property
    def body(self) -> dict[str, object]:
        return ErrorBody(error=self.detail).model_dump()


def busy(message: str, status: int, code: str, retry_after: float = 1.0) -> HTTPError:
    """A refusal that passes: try again after so many seconds."""
    kind = "rate_limit_error" if status == HTTPStatus.TOO_MANY_REQUESTS else "overloaded_error"
    return HTTPError(status, message, code, kind, {"retry-after": str(max(1, math.ceil(retry_after)))})


def problem(error: Exception) -> Problem:
    """How to tell a client of an error. What is no error of ours is logged with its traceback, and told as 500."""
    refusal = _refusal(error)
    param = error.param if isinstance(error, RequestError) else None
    detail = ErrorDetail(message=refusal.message, type=refusal.type, param=param, code=refusal.code)
    return Problem(refusal.status, detail, refusal.headers)


def _refusal(error: Exception) -> HTTPError:
    if isinstance(error, HTTPError):
        return error
    if isinstance(error, RequestError):
        return HTTPError(404 if error.code == "model_not_found" else 400, str(error), error.code)
    if isinstance(error, OverloadedError):
        return busy(str(error), 503, "overloaded", error.retry_after)
    if isinstance(error, HTTPException):
        headers = error.headers or {}
        return HTTPError(
            error.status_code, str(error.detail), HTTPStatus(error.status_code).name.lower(), headers=headers
        )
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return HTTPError(400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}", "invalid_value")
    # The same request would fail again, so clients need not try.
    never = {"x-should-retry": "false"}
    if isinstance(error, MLCError):
        log.error("engine: %s", error)
        return HTTPError(500, str(error), "engine_error", "server_error", never)
    log.error("internal error", exc_info=error)
    return HTTPError(500, "internal error: the server's log has the traceback", "internal_error", "server_error", never)


def error_response(error: Exception) -> JSONResponse:
    """The answer that tells of an error."""
    told = problem(error)
    return JSONResponse(told.body, told.status, dict(told.headers))


async def handle(request: Request, error: Exception) -> JSONResponse:
    """Starlette's exception handler for all errors that a route raises."""
    if isinstance(error, HTTPException) and error.status_code == HTTPStatus.NOT_FOUND:
        error = HTTPError(404, f"there is no {request.url.path[:200]!r}: see /docs for what there is", "not_found")
    elif isinstance(error, HTTPException) and error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        message = f"{request.method} is not for {request.url.path[:200]!r}: use {allowed}"
        error = HTTPError(405, message, "method_not_allowed", headers=error.headers or {})
    return error_response(error)
