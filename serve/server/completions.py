"""POST /v1/completions. https://platform.openai.com/docs/api-reference/completions/create"""

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..text_completion import TextFolder
from ..text_protocol import CompletionRequest, CompletionResponse
from .answers import ChoicesFormat, answer
from .body import read_request
from .openapi import documented
from .service import service_of

router = APIRouter()


@router.post(
    "/v1/completions",
    summary="Continue texts",
    **documented(CompletionRequest, CompletionResponse),
)
async def create_completion(http: Request) -> Response:
    """Continue one or more texts: one JSON body, or with `stream` server-sent events."""
    service = service_of(http)
    request = await read_request(http, service.settings, CompletionRequest.parse)
    told = ChoicesFormat(request, TextFolder(), service.model_name)
    return await answer(http, request, service.engine.complete_text, told)
