"""POST /v1/chat/completions. https://platform.openai.com/docs/api-reference/chat/create"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..completion import Folder
from ..protocol import ChatCompletionRequest, ChatCompletionResponse
from .answers import ChoicesFormat, answer
from .body import read_request
from .openapi import documented
from .service import service_of

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    summary="Create a chat completion",
    **documented(ChatCompletionRequest, ChatCompletionResponse),
)
async def create_chat_completion(http: Request) -> Response:
    """Answer a conversation: one JSON body, or with `stream` server-sent events."""
    service = service_of(http)
    request = await read_request(http, service.settings, ChatCompletionRequest.parse)
    told = ChoicesFormat(request, Folder(), service.model_name)
    return await answer(http, request, service.engine.complete, told)
