"""The app: what there is at which path, and what stands before it."""

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from ... import __version__
from ...runtime.errors import MLCError
from ..embedding_protocol import EmbeddingRequest
from ..protocol import ChatCompletionRequest
from ..responses.request import ResponsesRequest
from ..text_protocol import CompletionRequest
from . import chat, completions, debug, embeddings, gateway, info, metrics, page, responses, tokens
from .access import Access
from .docs import add_docs
from .engine import ServingEngine
from .errors import HTTPError, handle
from .gate import HostGate, KeyGate
from .openapi import add_openapi
from .service import Service
from .settings import Settings

_ROUTERS = (
    chat.router,
    completions.router,
    responses.router,
    embeddings.router,
    info.router,
    metrics.router,
    page.router,
    tokens.router,
)
_BODIES = (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
    EmbeddingRequest,
    tokens.TokenizeRequest,
    tokens.DetokenizeRequest,
)
_ERRORS = (MLCError, HTTPError, HTTPException, RequestValidationError)


def create_app(engine: ServingEngine | None, settings: Settings) -> FastAPI:
    """An ASGI app that answers OpenAI's API with `engine`; its `state.service` is the `Service`.

    Without an engine the app says that it is loading, until `app.state.service.start(engine)`.
    """
    app = FastAPI(
        title="mlc serve",
        version=__version__,
        description="OpenAI's API for one model",
        docs_url=None,
        redoc_url=None,
    )
    app.state.service = service = Service(engine, settings)
    service.histograms.registry.register(metrics.EngineCollector(service))
    routers = list(_ROUTERS)
    bodies: list[type[BaseModel]] = list(_BODIES)
    if settings.gateway:
        routers.append(gateway.router)
        bodies.append(gateway.ChatCompletionsRequestPayload)
    if settings.debug:
        routers.append(debug.router)
        bodies.append(debug.DebugRequest)
    for router in routers:
        app.include_router(router)
    for kind in _ERRORS:
        app.add_exception_handler(kind, handle)
    add_docs(app)
    add_openapi(app, bodies, with_key=settings.api_key is not None)
    cors = settings.cross_origin
    # The last one added is the first that a request meets.
    app.add_middleware(KeyGate, service=service)
    app.add_middleware(
        CORSMiddleware,
        allow_origins=cors.origins,
        allow_methods=cors.methods,
        allow_headers=cors.headers,
        allow_credentials=cors.credentials,
        expose_headers=("x-request-id", "retry-after"),
    )
    app.add_middleware(HostGate, service=service)
    app.add_middleware(Access, service=service)
    return app
