"""POST /tokenize and /detokenize, as vLLM has them."""

import asyncio
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request

from ...runtime.errors import RequestError
from ..answer import prompt_ids
from .body import parse_fields, read_request
from .openapi import ERRORS, accepts
from .service import service_of

router = APIRouter()

MAX_TOKENS = 1 << 20


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    model: str | None = None


class TokenizeRequest(_Fields):
    """A text, or the messages of a conversation as the model would see them."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "TokenizeRequest":
        """Raises RequestError."""
        request = parse_fields(cls, fields)
        if (request.prompt is None) == (request.messages is None):
            raise RequestError("give one of prompt and messages", param="prompt", code="missing_field")
        return request


class TokenizeResponse(BaseModel):
    """The tokens, how many there are, and how many a conversation may have."""

    count: int
    max_model_len: int
    tokens: list[int]


class DetokenizeRequest(_Fields):
    """Ids of tokens."""

    tokens: list[int]

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "DetokenizeRequest":
        """Raises RequestError."""
        request = parse_fields(cls, fields)
        if len(request.tokens) > MAX_TOKENS:
            raise RequestError(f"tokens has {len(request.tokens)} ids: expected at most {MAX_TOKENS}", param="tokens",
                               code="invalid_value")  # fmt: skip
        return request


class DetokenizeResponse(BaseModel):
    """The text of the tokens, special ones included."""

    prompt: str


@router.post("/tokenize", summary="Text to tokens", responses=ERRORS, openapi_extra=accepts(TokenizeRequest))
async def tokenize(http: Request) -> TokenizeResponse:
    """The tokens of a text, or of a conversation up to where its answer would begin."""
    service = service_of(http)
    request = await read_request(http, service.settings, TokenizeRequest.parse)
    service.check_model(request.model)
    engine = service.engine

    def work() -> list[int]:
        if request.messages is not None:
            return prompt_ids(engine.model, request.messages)
        return engine.model.tokenizer.encode(request.prompt or "", add_special_tokens=request.add_special_tokens)

    tokens = await asyncio.to_thread(work)
    return TokenizeResponse(count=len(tokens), max_model_len=engine.context_window_size, tokens=tokens)


@router.post("/detokenize", summary="Tokens to text", responses=ERRORS, openapi_extra=accepts(DetokenizeRequest))
async def detokenize(http: Request) -> DetokenizeResponse:
    """The text of tokens."""
    service = service_of(http)
    request = await read_request(http, service.settings, DetokenizeRequest.parse)
    service.check_model(request.model)
    tokenizer = service.engine.model.tokenizer

    def work() -> str:
        for index, token in enumerate(request.tokens):
            if not 0 <= token < tokenizer.vocab_size:
                raise RequestError(f"tokens[{index}] is {str(token)[:20]}: expected 0 to {tokenizer.vocab_size - 1}",
                                   param="tokens", code="invalid_value")  # fmt: skip
        return tokenizer.decode(request.tokens, skip_special_tokens=False)

    return DetokenizeResponse(prompt=await asyncio.to_thread(work))
