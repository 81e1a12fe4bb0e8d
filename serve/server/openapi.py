"""/openapi.json: FastAPI's, with the request bodies that the routes read themselves."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from .errors import ErrorBody

_SCHEMA_PLACE = "#/components/schemas/{model}"

# Answers of every route that are errors.
ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": ErrorBody, "description": "The request is wrong, or there are too many"},
    "5XX": {"model": ErrorBody, "description": "The server cannot answer: loading, full, shutting down, or broken"},
}


def accepts(model: type[BaseModel]) -> dict[str, Any]:
    """The part of a route's documentation that says what its body is."""
    schema = {"$ref": _SCHEMA_PLACE.format(model=model.__name__)}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def documented(body: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    """The arguments of a route that answers `body` with `response`, or with a stream of events."""
    events = {200: {"content": {"text/event-stream": {}}, "description": "The whole answer, or a stream of events"}}
    return {"response_model": response, "responses": {**events, **ERRORS}, "openapi_extra": accepts(body)}


def add_openapi(app: FastAPI, bodies: Sequence[type[BaseModel]], with_key: bool) -> None:
    """Let `app.openapi()` describe the app with the models in `bodies`."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies, with_key)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way


def _document(app: FastAPI, bodies: Sequence[type[BaseModel]], with_key: bool) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = models_json_schema([(model, "validation") for model in bodies], ref_template=_SCHEMA_PLACE)
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas.get("$defs", {}))
    if with_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document
