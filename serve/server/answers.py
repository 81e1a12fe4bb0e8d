"""From a request to the response with its answer: events while it is made, or one JSON body with the whole of it."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from ..request import GenerationRequest
from .attend import attended
from .errors import error_response
from .events import EventStream, data_event
from .service import service_of
from .watch import Watch, watch_of

Asked = TypeVar("Asked", bound=GenerationRequest)
Chunk = TypeVar("Chunk", bound=BaseModel)
Taken = TypeVar("Taken", contravariant=True)


class Folds(Protocol[Taken]):
    """Adds the chunks of a stream up to the whole answer."""

    def add(self, chunk: Taken) -> None: ...

    def response(self) -> BaseModel: ...


class JSONBody(Response):
    """A JSON answer; text stays as it is."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


async def answer(
    http: Request,
    request: Asked,
    complete: Callable[[Asked], AsyncGenerator[Chunk, None]],
    folder: Folds[Chunk],
    refusal: Callable[[Exception], Response] = error_response,
) -> Response:
    """The answer to a request, whose chunks `complete` makes.

    `refusal` makes the response to what is wrong before a stream begins; without a stream, errors are raised.
    """
    service = service_of(http)
    service.check_model(request.model)
    service.settings.limits.apply(request)
    request.model = None  # the engine has its own name for it
    chunks, model = complete(request), service.model_name
    if not request.stream:
        whole = await attended(_fold(chunks, folder, watch_of(http)), http.receive, service.stopped)
        return JSONBody(response_object(whole, model))
    with_usage = request.stream_options is not None and request.stream_options.include_usage
    return EventStream(http, chunks, lambda chunk: chunk_event(chunk, model, with_usage), refusal)


async def _fold(chunks: AsyncGenerator[Chunk, None], folder: Folds[Chunk], watch: Watch) -> BaseModel:
    async with aclosing(chunks):
        async for chunk in chunks:
            watch.saw(chunk)
            folder.add(chunk)
    return folder.response()


def chunk_event(chunk: BaseModel, model: str, with_usage: bool) -> bytes:
    """The event of a chunk; the one with the usage is only sent `with_usage`, and then the others have it as null."""
    fields = {**chunk.model_dump(), "model": model}
    if not with_usage:
        del fields["usage"]
        if not fields["choices"]:
            return b""
    for choice in fields["choices"]:
        if "delta" in choice:
            choice["delta"] = _without_nulls(choice["delta"])
    return data_event(fields)


def response_object(response: BaseModel, model: str) -> dict[str, Any]:
    """The body of a whole answer; of what a message need not have, only what there is."""
    fields = {**response.model_dump(), "model": model}
    for choice in fields["choices"]:
        if "message" in choice:
            choice["message"] = _without_nulls(choice["message"], keep=("content", "refusal"))
    return fields


def _without_nulls(fields: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None or name in keep}
