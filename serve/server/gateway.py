"""The chat completion of MLflow's AI gateway, under its path and by its contract (`--gateway`).

https://mlflow.org/docs/latest/llms/deployments: the same answers as /v1/chat/completions, other defaults and errors.
"""

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from ...runtime.errors import RequestError
from ..completion import Folder
from ..protocol import ChatCompletionRequest, ChatCompletionResponse
from .answers import ChoicesFormat, answer
from .body import read_request
from .errors import problem
from .openapi import accepts
from .service import service_of
from .unity_catalog import function_tool

router = APIRouter()

PATH = "/api/v1/compatibility/openai/v1/chat/completions"
MAX_TOOLS = 128
_MEDIA = {"image_url": "image", "input_audio": "audio"}


def _only_text(content: object) -> object:
    """Refuse what a model that reads text cannot take, in words."""
    for part in content if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind in _MEDIA:
            raise ValueError(f"{_MEDIA[kind]} parts are not supported: the model reads text")
    return content


class _Payload(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class GatewayTextPart(_Payload):
    """A piece of a message."""

    type: Literal["text"]
    text: str


class GatewayCalledFunction(_Payload):
    """A function that the model called; `arguments` is JSON."""

    name: str
    arguments: str


class GatewayToolCall(_Payload):
    """A call in an earlier answer."""

    id: str
    type: Literal["function"]
    function: GatewayCalledFunction


class GatewayMessage(_Payload):
    """One turn of the conversation."""

    role: str
    content: Annotated[str | list[GatewayTextPart] | None, BeforeValidator(_only_text)] = None
    tool_calls: list[GatewayToolCall] | None = None
    refusal: str | None = None
    tool_call_id: str | None = None


class GatewayFunction(_Payload):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class GatewayCatalogFunction(_Payload):
    """A function of the Unity Catalog server that the operator named, as catalog.schema.function."""

    name: str


class GatewayFunctionTool(_Payload):
    """A tool of the request."""

    type: Literal["function"]
    function: GatewayFunction


class GatewayCatalogTool(_Payload):
    """A tool that the Unity Catalog server describes."""

    type: Literal["uc_function"]
    uc_function: GatewayCatalogFunction


GatewayTool = Annotated[GatewayFunctionTool | GatewayCatalogTool, Field(discriminator="type")]


class GatewayStreamOptions(_Payload):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class ChatCompletionsRequestPayload(_Payload):
    """The request; everything but the messages has a default."""

    messages: list[GatewayMessage] = Field(min_length=1)
    model: str | None = None
    temperature: float = Field(0.0, ge=0, le=2)
    n: int = Field(1, ge=1)
    stop: list[str] | None = Field(None, min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool | None = None
    stream_options: GatewayStreamOptions | None = None
    tools: list[GatewayTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: Any = None
    seed: int | None = None


class GatewayProblem(BaseModel):
    """One thing that is wrong with a request, and where."""

    loc: list[str | int]
    msg: str
    type: str


class GatewayErrors(BaseModel):
    """All that is wrong with a request."""

    detail: list[GatewayProblem]


@router.post(
    PATH,
    summary="Create a chat completion, as MLflow's gateway does",
    response_model=ChatCompletionResponse,
    responses={
        400: {"description": "The model is not ready"},
        404: {"description": "Another model"},
        422: {"model": GatewayErrors, "description": "The request is wrong"},
        "4XX": {"description": "The request is refused"},
        "5XX": {"description": "The server cannot answer"},
    },
    openapi_extra=accepts(ChatCompletionsRequestPayload),
)
async def create_gateway_completion(http: Request) -> Response:
    """Answer a conversation. Without a temperature it is 0."""
    try:
        service = service_of(http)
        payload = await read_request(http, service.settings, ChatCompletionsRequestPayload.model_validate)
        tools = await _tools(payload.tools, service.settings.unity_catalog_url)
        request = chat_request(payload, tools)
        told = ChoicesFormat(request, Folder(), service.model_name)
        return await answer(http, request, service.engine.complete, told, refusal)
    except Exception as error:
        return refusal(error)


async def _tools(tools: list[GatewayTool] | None, catalog: str | None) -> list[dict[str, Any]] | None:
    """The tools as OpenAI has them, those of the catalog resolved. Raises RequestError, HTTPError."""
    if tools is None:
        return None
    found = []
    for tool in tools:
        if isinstance(tool, GatewayFunctionTool):
            found.append(tool.model_dump(exclude_none=True))
            continue
        if catalog is None:
            message = "a uc_function needs a catalog: start the server with --unity-catalog-url"
            raise RequestError(message, param="tools", code="unsupported_value")
        found.append(await asyncio.to_thread(function_tool, catalog, tool.uc_function.name))
    return found


def chat_request(payload: ChatCompletionsRequestPayload, tools: list[dict[str, Any]] | None) -> ChatCompletionRequest:
    """The chat completion request that a payload stands for. Raises RequestError."""
    given = payload.model_dump(exclude_none=True, exclude={"tools"})
    for message, dumped in zip(payload.messages, given["messages"], strict=True):
        dumped["content"] = message.model_dump()["content"]  # a null of a message that calls tools means something
    return ChatCompletionRequest.parse({**given, "tools": tools})


def refusal(error: Exception) -> JSONResponse:
    """An error as the gateway tells it: a list of `detail` for a wrong request, else one line."""
    if isinstance(error, ValidationError):
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        found = [GatewayProblem(loc=["body", *item["loc"]], msg=item["msg"], type=item["type"]) for item in problems]
        return JSONResponse(GatewayErrors(detail=found).model_dump(), 422)
    if isinstance(error, RequestError) and error.code != "model_not_found":
        where = GatewayProblem(
            loc=["body", *([error.param] if error.param else [])], msg=str(error), type=error.code or "value_error"
        )
        return JSONResponse(GatewayErrors(detail=[where]).model_dump(), 422)
    told = problem(error)
    status = 400 if told.detail.code == "model_loading" else told.status
    return JSONResponse({"detail": told.detail.message}, status, dict(told.headers))
