"""POST /debug/...: what --enable-debug adds, at MLC-LLM's paths."""

import asyncio
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import Response

from ...runtime.errors import RequestError
from .answers import JSONBody
from .body import parse_fields, read_request
from .engine import ServingEngine
from .openapi import ERRORS, accepts
from .service import service_of

router = APIRouter(prefix="/debug", responses=ERRORS)


class DebugRequest(BaseModel):
    """The model that is meant; there is one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "DebugRequest":
        """Raises RequestError."""
        return parse_fields(cls, fields)


_ASKED = accepts(DebugRequest)


async def _engine(http: Request) -> ServingEngine:
    service = service_of(http)
    request = await read_request(http, service.settings, DebugRequest.parse)
    service.check_model(request.model)
    return service.engine


@router.post("/dump_event_trace", summary="What the engine did when", openapi_extra=_ASKED)
async def dump_event_trace(http: Request) -> Response:
    """The events of a Chrome trace, of --enable-tracing: a file for chrome://tracing or https://ui.perfetto.dev."""
    trace = (await _engine(http)).trace
    if trace is None:
        raise RequestError("nothing is traced: start the server with --enable-tracing", code="unsupported_value")
    return await asyncio.to_thread(lambda: JSONBody(trace.events()))


@router.post("/dump_engine_metrics", summary="The engine's figures", openapi_extra=_ASKED)
async def dump_engine_metrics(http: Request) -> Response:
    """The engine's figures and limits as JSON."""
    engine = await _engine(http)
    return JSONBody({**asdict(engine.metrics()), "limits": asdict(engine.limits)})


@router.post("/reset_engine", summary="End all answers and forget all texts", openapi_extra=_ASKED)
async def reset_engine(http: Request) -> Response:
    """Running and waiting answers end with an error, nothing is kept of their texts, and the figures begin anew."""
    await (await _engine(http)).reset()
    return JSONBody(None)


@router.post("/cuda_profiler_start", summary="Start the CUDA profiler")
@router.post("/cuda_profiler_stop", summary="Stop the CUDA profiler")
async def cuda_profiler() -> Response:
    """Refused: models run on the processor."""
    raise RequestError("there is no CUDA profiler: this model runs on the processor", code="unsupported_value")
