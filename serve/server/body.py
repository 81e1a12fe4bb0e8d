"""Reading a request's JSON body: bounded in size and time, and parsed beside the event loop when it is large."""

import asyncio
from collections.abc import Callable, Mapping
from reprlib import repr as short_repr
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import Request

from ...runtime.errors import RequestError
from .errors import HTTPError
from .settings import Settings

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)

_LARGE = 32 << 10  # bytes that take about a millisecond to parse


async def read_request(request: Request, settings: Settings, parse: Callable[[Mapping[str, Any]], T]) -> T:
    """The request that `parse` makes of the fields of the body.

    Raises HTTPError 408, 413, 415, RequestError for what is no JSON object, and what `parse` raises.
    """
    _check_type(request.headers.get("content-type", ""))
    body = await read_body(request, settings)
    if len(body) < _LARGE:
        return parse(_fields(body))
    return await asyncio.to_thread(lambda: parse(_fields(body)))


async def read_body(request: Request, settings: Settings) -> bytes:
    """The body as it came. Raises HTTPError 408, 413."""
    try:
        return await asyncio.wait_for(_read(request, settings.max_body_bytes), settings.body_timeout)
    except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
        message = f"the body did not arrive within {settings.body_timeout:g} seconds"
        raise HTTPError(408, message, "timeout", headers={"connection": "close"}) from None


def _check_type(value: str) -> None:
    """A type that forms cannot send also keeps web pages from posting without a CORS preflight."""
    if value.partition(";")[0].strip().lower() != "application/json":
        shown = f"is {value[:100]!r}" if value else "is missing"
        raise HTTPError(415, f"the content-type {shown}: send JSON as application/json", "unsupported_media_type")


async def _read(request: Request, limit: int) -> bytes:
    length = request.headers.get("content-length", "0")
    size = int(length) if length.isdecimal() else 0
    parts: list[bytes] = []
    received = 0
    async for part in request.stream():
        received += len(part)
        size = max(size, received)
        if received > 2 * limit:
            break
        if size <= limit:
            parts.append(part)
        else:  # a client that is still sending would miss the answer if the connection broke
            parts.clear()
    if size > limit:
        message = f"the body has more than {limit} bytes: send less, or start the server with a larger --max-body-size"
        raise HTTPError(413, message, "body_too_large", headers={"connection": "close"})
    return b"".join(parts)


def _fields(body: bytes) -> Mapping[str, Any]:
    """The JSON object of the body; numbers are finite, text is UTF-8, nesting is bounded."""
    try:
        fields = from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not JSON: {str(error)[:200]}", code="invalid_json") from None
    if not isinstance(fields, dict):
        raise RequestError(f"the body is a JSON {_kind(fields)}: expected an object", code="invalid_type")
    return fields


def parse_fields(model: type[Model], fields: Mapping[str, Any]) -> Model:
    """A request of the server's own kinds. Raises RequestError that names the field."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(map(str, problem["loc"]))[:80]
    if problem["type"] == "extra_forbidden":
        message = f"{param!r} is not a field of this request: the fields are {', '.join(model.model_fields)}"
        raise RequestError(message, param=param, code="unknown_field")
    if problem["type"] == "missing":
        raise RequestError(f"{param} is missing", param=param, code="missing_field")
    raise RequestError(f"{param} is {short_repr(problem['input'])}: {problem['msg']}", param=param, code="invalid_type")


def _kind(value: object) -> str:
    if value is None:
        return "null"
    kinds: dict[type, str] = {bool: "boolean", int: "number", float: "number", str: "string", list: "array"}
    return kinds[type(value)]
