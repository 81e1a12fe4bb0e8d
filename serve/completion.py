"""From a chat completion request to the chunks of its answer; a whole answer is the chunks folded."""

import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.events import Delta as TextDelta
from ..runtime.events import Event, RankedToken
from ..runtime.events import TokenLogprob as GeneratedLogprob
from .answer import answer
from .loading import LoadedModel
from .protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    Choice,
    Delta,
    Logprobs,
    Message,
    PromptTokensDetails,
    StreamChoice,
    TokenLogprob,
    TopLogprob,
    Usage,
)

MAX_REQUEST_ID_CHARACTERS = 256


def complete(model: LoadedModel, request: ChatCompletionRequest) -> Iterator[ChatCompletionStreamResponse]:
    """The chunks of the answer, the last of which has no choices but the usage.

    The request is checked before anything is generated: raises RequestError here, and EngineError from the iterator.
    """
    _check_model(model, request.model)
    events = answer(model, request.messages, request.sampling_params(model.config))
    return _chunks(events, _answer_id(request.request_id), int(time.time()), model.name)


def _check_model(model: LoadedModel, name: str | None) -> None:
    if name is not None and name not in model.names:
        raise RequestError(
            f"model {name[:200]!r} is not loaded: this engine has {model.name!r}", param="model", code="model_not_found"
        )


def _answer_id(request_id: str | None) -> str:
    if request_id is None:
        return f"chatcmpl-{uuid.uuid4().hex}"
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise RequestError(
            f"request_id has {len(request_id)} characters: expected 1 to {MAX_REQUEST_ID_CHARACTERS} printable ones",
            param="request_id",
            code="invalid_value",
        )
    return request_id


def _chunks(
    events: Iterator[Event], answer_id: str, created: int, model: str
) -> Iterator[ChatCompletionStreamResponse]:
    def chunk(*choices: StreamChoice, usage: Usage | None = None) -> ChatCompletionStreamResponse:
        return ChatCompletionStreamResponse(
            id=answer_id, created=created, model=model, choices=list(choices), usage=usage
        )

    begun = False
    for event in events:
        if not begun:  # not before there is an answer: what fails until then is an error, not a broken stream
            yield chunk(StreamChoice(delta=Delta(role="assistant", content="")))
            begun = True
        if isinstance(event, TextDelta):
            yield chunk(StreamChoice(delta=Delta(content=event.text), logprobs=_logprobs(event.logprobs)))
        else:
            yield chunk(StreamChoice(delta=Delta(), finish_reason=event.reason))
            yield chunk(
                usage=Usage(
                    prompt_tokens=event.prompt_tokens,
                    completion_tokens=event.completion_tokens,
                    total_tokens=event.prompt_tokens + event.completion_tokens,
                    prompt_tokens_details=PromptTokensDetails(cached_tokens=event.cached_tokens),
                )
            )


def _logprobs(tokens: tuple[GeneratedLogprob, ...]) -> Logprobs | None:
    if not tokens:
        return None
    content = []
    for token in tokens:
        top = [TopLogprob(**_ranked(other)) for other in token.top]
        content.append(TokenLogprob(**_ranked(token), top_logprobs=top))
    return Logprobs(content=content)


def _ranked(token: RankedToken) -> dict[str, Any]:
    """A token as OpenAI shows it: as text (with U+FFFD for a part of a character) and as bytes."""
    return {"token": token.bytes.decode("utf-8", "replace"), "bytes": list(token.bytes), "logprob": token.logprob}


def fold(chunks: Iterable[ChatCompletionStreamResponse]) -> ChatCompletionResponse:
    """The whole answer that a stream of chunks adds up to."""
    text: list[str] = []
    logprobs: list[TokenLogprob] | None = None
    finish_reason, usage = None, None
    for chunk in chunks:
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text.append(choice.delta.content or "")
            finish_reason = choice.finish_reason or finish_reason
            if choice.logprobs is not None:
                logprobs = [*(logprobs or []), *choice.logprobs.content]
    assert finish_reason is not None
    assert usage is not None
    answer = Choice(
        finish_reason=finish_reason,
        message=Message(content="".join(text)),
        logprobs=None if logprobs is None else Logprobs(content=logprobs),
    )
    return ChatCompletionResponse(id=chunk.id, created=chunk.created, model=chunk.model, choices=[answer], usage=usage)
