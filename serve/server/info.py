"""What a server says about itself: /health, /version and /v1/models."""

from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import JSONResponse

from ... import __version__
from ..models import ModelInfo, ModelList
from .openapi import ERRORS
from .service import Phase, service_of

router = APIRouter()


class Health(BaseModel):
    """Whether requests are taken."""

    status: Literal["loading", "ok", "draining"]


class Version(BaseModel):
    """The version of the package."""

    version: str


@router.get("/health", summary="Say whether requests are taken", response_model=Health,
            responses={503: {"model": Health, "description": "Loading the model, or shutting down"}})  # fmt: skip
async def health(http: Request) -> JSONResponse:
    """200 when the model is loaded and the server takes requests, else 503. Needs no API key."""
    phase = service_of(http).phase
    if phase is Phase.READY:
        return JSONResponse({"status": phase.value})
    return JSONResponse({"status": phase.value}, 503, {"retry-after": "2"})


@router.get("/version", summary="The server's version", responses=ERRORS)
async def version() -> Version:
    """The version of the package."""
    return Version(version=__version__)


@router.get("/v1/models", summary="List the models", responses=ERRORS)
async def list_models(http: Request) -> ModelList:
    """The model that this server answers with, and the one for embeddings where that is another."""
    service = service_of(http)
    names = {service.model_name: None, service.embedding_model_name or service.model_name: None}  # in this order
    return ModelList(data=[ModelInfo(id=name, created=service.created) for name in names])


@router.get("/v1/models/{model:path}", summary="One model", responses=ERRORS)
async def retrieve_model(http: Request, model: str) -> ModelInfo:
    """The model of that name, which may be any under which requests can ask for it."""
    service = service_of(http)
    if not service.has_model(model) and service.embedding_model_name is not None:
        return ModelInfo(id=service.check_embedding_model(model), created=service.created)
    service.check_model(model)
    return ModelInfo(id=service.model_name, created=service.created)
