"""POST /v1/embeddings. https://platform.openai.com/docs/api-reference/embeddings/create"""

import asyncio

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from ..embedding_protocol import CreateEmbeddingResponse, EmbeddingRequest
from .answers import JSONBody
from .attend import attended
from .body import read_request
from .openapi import ERRORS, accepts
from .service import service_of

router = APIRouter()


@router.post(
    "/v1/embeddings",
    summary="Embed texts",
    response_model=CreateEmbeddingResponse,
    responses=ERRORS,
    openapi_extra=accepts(EmbeddingRequest),
)
async def create_embeddings(http: Request) -> Response:
    """The embedding of a text, or of each of several, as numbers or base64."""
    service = service_of(http)
    request = await read_request(http, service.settings, EmbeddingRequest.parse)
    model = service.check_embedding_model(request.model)
    service.settings.limits.check_inputs(request)
    request.model = None  # the engine has its own name for it
    response = await attended(service.engine.embed(request), http.receive, service.stopped)
    response.model = model
    return await asyncio.to_thread(JSONBody, response)
