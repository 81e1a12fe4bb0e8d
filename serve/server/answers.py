"""From a request to the response with its answer: events while it is made, or one JSON body with the whole of it."""

from collections.abc import AsyncGenerator, Callable, Iterable, Iterator
from contextlib import aclosing
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from ..request import ChoicesRequest, GenerationRequest
from .attend import attended
from .errors import Problem, error_response
from .events import AnswerFormat, EventStream, data_event
from .service import service_of
from .watch import Watch, watch_of

Asked = TypeVar("Asked", bound=GenerationRequest)
Chunk = TypeVar("Chunk")
Choices = TypeVar("Choices", bound=BaseModel)
Taken = TypeVar("Taken", contravariant=True)


class JSONBody(Response):
    """A JSON answer; text stays as it is."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return to_json(content)


async def answer(
    http: Request,
    request: Asked,
    complete: Callable[[Asked], AsyncGenerator[Chunk, None]],
    told: AnswerFormat[Chunk],
    refusal: Callable[[Exception], Response] = error_response,
) -> Response:
    """The answer to a request, whose chunks `complete` makes, as `told` tells it.

    `refusal` makes the response to what is wrong before a stream begins; without a stream, errors are raised.
    """
    service = service_of(http)
    service.check_model(request.model)
    service.settings.limits.apply(request)
    request.model = None  # the engine has its own name for it
    chunks = complete(request)
    if request.stream:
        return EventStream(http, chunks, told, refusal)
    return JSONBody(await attended(_whole(chunks, told, watch_of(http)), http.receive, service.stopped))


async def _whole(chunks: AsyncGenerator[Chunk, None], told: AnswerFormat[Chunk], watch: Watch) -> dict[str, Any]:
    async with aclosing(chunks):
        async for chunk in chunks:
            watch.saw(chunk)
            told.add(chunk)
    return told.body()


class Folds(Protocol[Taken]):
    """Adds the chunks of a stream up to the whole answer."""

    def add(self, chunk: Taken) -> None: ...

    def response(self) -> BaseModel: ...


class ChoicesFormat(Generic[Choices]):
    """Chat completions and text completions: each chunk is an event, and a marker is the last one."""

    def __init__(self, request: ChoicesRequest, folder: Folds[Choices], model: str) -> None:
        """`model` is what the model is called in the answer."""
        self._folder, self._model = folder, model
        self._with_usage = request.wants_usage

    def events(self, chunk: Choices) -> Iterable[bytes]:
        """The chunk; the one with the usage is only sent when it is asked for, and then the others have it as null."""
        fields = {**chunk.model_dump(), "model": self._model}
        if not self._with_usage:
            del fields["usage"]
            if not fields["choices"]:
                return ()
        for choice in fields["choices"]:
            if "delta" in choice:
                choice["delta"] = _without_nulls(choice["delta"])
        return (data_event(fields),)

    def end(self) -> Iterator[bytes]:
        """OpenAI's marker."""
        yield b"data: [DONE]\n\n"

    def failure(self, error: Problem) -> Iterator[bytes]:
        """The error object, in the place of the marker."""
        yield data_event(error.body)

    def add(self, chunk: Choices) -> None:
        """One more chunk of the whole answer."""
        self._folder.add(chunk)

    def body(self) -> dict[str, Any]:
        """The whole answer; of what a message need not have, only what there is."""
        fields = {**self._folder.response().model_dump(), "model": self._model}
        for choice in fields["choices"]:
            if "message" in choice:
                choice["message"] = _without_nulls(choice["message"], keep=("content", "refusal"))
        return fields


def _without_nulls(fields: dict[str, Any], keep: tuple[str, ...] = ()) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None or name in keep}
