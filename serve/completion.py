"""From a chat completion request to the chunks of its answers; whole answers are the chunks folded."""

import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.events import Delta as TextDelta
from ..runtime.events import Event, Finish, RankedToken
from ..runtime.events import TokenLogprob as GeneratedLogprob
from ..runtime.sampling_params import SamplingParams
from .answer import job, prompt_ids
from .loading import LoadedModel
from .protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    Choice,
    Delta,
    FinishReason,
    Logprobs,
    Message,
    PromptTokensDetails,
    StreamChoice,
    TokenLogprob,
    TopLogprob,
    Usage,
)

MAX_REQUEST_ID_CHARACTERS = 256


class Completion:
    """A chat completion request as jobs, one for each of its `n` answers, and their events as chunks."""

    def __init__(self, model: LoadedModel, request: ChatCompletionRequest) -> None:
        """Check the request, render its conversation and encode it. Raises RequestError."""
        _check_model(model, request.model)
        self.id = _answer_id(request.request_id)
        self._created, self._model = int(time.time()), model.name
        params = request.sampling_params(model.config)
        tokens = prompt_ids(model, request.messages)
        self.jobs = [job(model, tokens, _of_choice(params, index)) for index in range(request.n or 1)]
        self._finished: list[Finish] = []
        self._begun: set[int] = set()

    def chunks(self, events: Iterable[tuple[int, Event]]) -> Iterator[ChatCompletionStreamResponse]:
        """The chunks of all answers, from the events of each with its index."""
        for index, event in events:
            yield from self.of_event(index, event)

    def of_event(self, index: int, event: Event) -> Iterator[ChatCompletionStreamResponse]:
        """The chunks of one event of answer `index`; the usage comes after the last event of all."""
        if (
            index not in self._begun
        ):  # not before there is an answer: what fails until then is an error, no broken stream
            self._begun.add(index)
            yield self._chunk(StreamChoice(index=index, delta=Delta(role="assistant", content="")))
        if isinstance(event, TextDelta):
            yield self._chunk(
                StreamChoice(index=index, delta=Delta(content=event.text), logprobs=_logprobs(event.logprobs))
            )
            return
        yield self._chunk(StreamChoice(index=index, delta=Delta(), finish_reason=event.reason))
        self._finished.append(event)
        if len(self._finished) == len(self.jobs):
            yield self._chunk(usage=self._usage())

    def _chunk(self, *choices: StreamChoice, usage: Usage | None = None) -> ChatCompletionStreamResponse:
        return ChatCompletionStreamResponse(
            id=self.id, created=self._created, model=self._model, choices=list(choices), usage=usage
        )

    def _usage(self) -> Usage:
        """The prompt counts once, however many answers it has; so does what of it was known before the request."""
        prompt = self._finished[0].prompt_tokens
        generated = sum(finish.completion_tokens for finish in self._finished)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=generated,
            total_tokens=prompt + generated,
            prompt_tokens_details=PromptTokensDetails(
                cached_tokens=min(finish.cached_tokens for finish in self._finished)
            ),
        )


def _of_choice(params: SamplingParams, index: int) -> SamplingParams:
    """A seed of its own for each answer."""
    if params.seed is None or not index:
        return params
    return replace(params, seed=(params.seed + index + 2**63) % 2**64 - 2**63)


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
    """The whole answers that a stream of chunks adds up to."""
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder.response()


class Folder:
    """Adds the chunks of a stream up."""

    def __init__(self) -> None:
        self._text: dict[int, list[str]] = {}
        self._logprobs: dict[int, list[TokenLogprob]] = {}
        self._reasons: dict[int, FinishReason] = {}
        self._usage: Usage | None = None
        self._last: ChatCompletionStreamResponse | None = None

    def add(self, chunk: ChatCompletionStreamResponse) -> None:
        """One more chunk."""
        self._last = chunk
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self._text.setdefault(choice.index, []).append(choice.delta.content or "")
            if choice.finish_reason is not None:
                self._reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                self._logprobs.setdefault(choice.index, []).extend(choice.logprobs.content)

    def response(self) -> ChatCompletionResponse:
        """The whole answers, after the last chunk."""
        last, usage = self._last, self._usage
        assert last is not None
        assert usage is not None
        choices = [
            Choice(
                index=index,
                finish_reason=self._reasons[index],
                message=Message(content="".join(self._text[index])),
                logprobs=Logprobs(content=self._logprobs[index]) if index in self._logprobs else None,
            )
            for index in sorted(self._text)
        ]
        return ChatCompletionResponse(id=last.id, created=last.created, model=last.model, choices=choices, usage=usage)
