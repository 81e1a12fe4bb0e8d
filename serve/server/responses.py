"""POST /v1/responses. https://platform.openai.com/docs/api-reference/responses/create"""

from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.errors import RequestError
from ..protocol import ChatCompletionStreamResponse
from ..responses.chat import chat_request, renamed
from ..responses.events import ResponseEvents
from ..responses.protocol import ResponseEvent, ResponseObject
from ..responses.request import ResponsesRequest
from .answers import answer
from .body import read_request
from .engine import ServingEngine
from .errors import Problem
from .events import data_event
from .openapi import documented
from .service import service_of

router = APIRouter()


class ResponseFormat:
    """A response: a chunk is any number of events, the last of which has the whole of it."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        """`model` is what the model is called in the response."""
        self._events = ResponseEvents(request, model)

    def events(self, chunk: ChatCompletionStreamResponse) -> Iterator[bytes]:
        """The events of a chunk."""
        return map(_sent, self._events.of_chunk(chunk))

    def end(self) -> Iterator[bytes]:
        """The event that says how it ended."""
        yield _sent(self._events.of_end())

    def failure(self, error: Problem) -> Iterator[bytes]:
        """An event with the error, and one with the response as far as it came."""
        detail = error.detail
        return map(_sent, self._events.of_failure(detail.type, detail.message, detail.param, detail.code))

    def add(self, chunk: ChatCompletionStreamResponse) -> None:
        """One more chunk of the whole response."""
        for _ in self._events.of_chunk(chunk):
            pass

    def body(self) -> dict[str, Any]:
        """The whole response."""
        return self._events.of_end().response.model_dump()


def _sent(event: ResponseEvent) -> bytes:
    return data_event(event, event.type)


@router.post("/v1/responses", summary="Create a response", **documented(ResponsesRequest, ResponseObject))
async def create_response(http: Request) -> Response:
    """Answer a text or a list of items: one JSON body, or with `stream` server-sent events. Nothing is stored."""
    service = service_of(http)
    engine = service.engine
    request = await read_request(http, service.settings, ResponsesRequest.parse)
    told = ResponseFormat(request, service.model_name)
    return await answer(http, request, lambda asked: complete(engine, asked), told)


async def complete(
    engine: ServingEngine, request: ResponsesRequest
) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
    """The chunks of the chat completion that a request stands for. Raises RequestError in terms of the request."""
    chat, places = chat_request(request)
    try:
        async with aclosing(engine.complete(chat)) as chunks:
            async for chunk in chunks:
                yield chunk
    except RequestError as error:
        raise renamed(error, places) from None
