"""From a chat completion request to the chunks of its answers; whole answers are the chunks folded."""

import os
import time
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from ..runtime.errors import RequestError
from ..runtime.events import Delta as TextDelta
from ..runtime.events import Event, Finish, RankedToken
from ..runtime.events import TokenLogprob as GeneratedLogprob
from ..runtime.job import Job
from ..runtime.sampling_params import SamplingParams
from .answer import choice_params, job
from .answer_chunks import AnswerChunks
from .forms import Asked
from .loading import LoadedModel
from .protocol import (
    ChatCompletionRequest,
    ChatCompletionResponse,
    ChatCompletionStreamResponse,
    Choice,
    CompletionTokensDetails,
    Delta,
    FinishReason,
    Logprobs,
    PromptTokensDetails,
    StreamChoice,
    TokenLogprob,
    TopLogprob,
    Usage,
)
from .template_variables import template_variables
from .tool_calls.deltas import MessageFolder

MAX_REQUEST_ID_CHARACTERS = 256


_Chunk = TypeVar("_Chunk", covariant=True)


class Chunked(Protocol[_Chunk]):
    """A request as jobs, whose events it turns into chunks; the last of these has no choices but the usage."""

    id: str
    jobs: list[Job]

    def chunks(self, events: Iterable[tuple[int, Event]]) -> Iterator[_Chunk]:
        """The chunks of all answers, from the events of each with its index."""
        ...

    def of_event(self, index: int, event: Event) -> Iterator[_Chunk]:
        """The chunks of one event of answer `index`."""
        ...


class Completion:
    """A chat completion request as jobs, one for each of its `n` answers, and their events as chunks."""

    def __init__(self, model: LoadedModel, request: ChatCompletionRequest) -> None:
        """Check the request, render its conversation and encode it. Raises RequestError."""
        check_model(model, request.model)
        self.id = answer_id(request.request_id, "chatcmpl")
        self._created, self._model = int(time.time()), model.name
        params, answers = request.sampling_params(model.config), range(request.n or 1)
        form = model.forms.form(asked(request))
        if form.grammar is not None:
            _check_end(params)
        self.jobs = [
            job(model, form.prompt_ids, choice_params(params, index), grammar=form.grammar, shown_ids=form.shown_ids)
            for index in answers
        ]
        self._answers = [model.forms.chunks(form) for _ in answers]
        self._finished: dict[int, Finish] = {}
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
        answer = self._answers[index]
        if isinstance(event, TextDelta):
            yield from self._pieces(index, answer.of_text(event))
            return
        assert isinstance(event, Finish)
        yield from self._pieces(index, answer.of_end())
        yield self._chunk(StreamChoice(index=index, delta=Delta(), finish_reason=answer.reason(event)))
        self._finished[index] = event
        if len(self._finished) == len(self.jobs):
            finished = list(self._finished.values())
            yield self._chunk(usage=usage_of([self._finished[0]], finished, self._answers))

    def _pieces(
        self, index: int, pieces: Iterable[tuple[Delta, tuple[GeneratedLogprob, ...]]]
    ) -> Iterator[ChatCompletionStreamResponse]:
        for delta, logprobs in pieces:
            yield self._chunk(StreamChoice(index=index, delta=delta, logprobs=_logprobs(logprobs)))

    def _chunk(self, *choices: StreamChoice, usage: Usage | None = None) -> ChatCompletionStreamResponse:
        return ChatCompletionStreamResponse(
            id=self.id, created=self._created, model=self._model, choices=list(choices), usage=usage
        )


def asked(request: ChatCompletionRequest) -> Asked:
    """The fields of a request that have to do with the form of its answers."""
    return Asked(
        messages=request.messages,
        tools=request.tools,
        tool_choice=request.tool_choice,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        text_format=request.text_format(),
        variables=template_variables(request.chat_template_kwargs, request.reasoning_effort),
    )


def _check_end(params: SamplingParams) -> None:
    """Raise RequestError for what keeps an answer from ending where its form does."""
    for param, value in (("ignore_eos", params.ignore_eos), ("min_tokens", params.min_tokens)):
        if value:
            raise RequestError(
                f"{param} is {value}: an answer whose form is given has to end where the form does",
                param=param,
                code="invalid_value",
            )


def check_model(model: LoadedModel, name: str | None) -> None:
    """Raise RequestError when a request names another model."""
    if name is not None and not is_name(name, model.names):
        raise RequestError(
            f"model {name[:200]!r} is not loaded: this engine has {model.name!r}", param="model", code="model_not_found"
        )


def is_name(asked: str, names: Collection[str]) -> bool:
    """Whether one of a model's names is asked for; a folder's path may be written in several ways."""
    return asked in names or os.path.normpath(asked) in names


def answer_id(request_id: str | None, kind: str) -> str:
    """The id that a request asks for, or a new one. Raises RequestError."""
    if request_id is None:
        return f"{kind}-{uuid.uuid4().hex}"
    if not 0 < len(request_id) <= MAX_REQUEST_ID_CHARACTERS or not request_id.isprintable():
        raise RequestError(
            f"request_id has {len(request_id)} characters: expected 1 to {MAX_REQUEST_ID_CHARACTERS} printable ones",
            param="request_id",
            code="invalid_value",
        )
    return request_id


def usage_of(prompts: Sequence[Finish], answers: Sequence[Finish], chunks: Sequence[AnswerChunks] = ()) -> Usage:
    """What a request took: a prompt counts once however many answers it has, and so does what of it was known."""
    prompt = sum(finish.prompt_tokens for finish in prompts)
    generated = sum(finish.completion_tokens for finish in answers)
    cached = sum(finish.cached_tokens for finish in prompts)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=generated,
        total_tokens=prompt + generated,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=sum(one.reasoning_tokens for one in chunks)),
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
    """The whole answers that a stream of chunks adds up to."""
    folder = Folder()
    for chunk in chunks:
        folder.add(chunk)
    return folder.response()


class Folder:
    """Adds the chunks of a stream up."""

    def __init__(self) -> None:
        self._answers: dict[int, _FoldedAnswer] = {}
        self._usage: Usage | None = None
        self._last: ChatCompletionStreamResponse | None = None

    def add(self, chunk: ChatCompletionStreamResponse) -> None:
        """One more chunk."""
        self._last = chunk
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices:
            self._answers.setdefault(choice.index, _FoldedAnswer()).add(choice)

    def response(self) -> ChatCompletionResponse:
        """The whole answers, after the last chunk."""
        last, usage = self._last, self._usage
        assert last is not None
        assert usage is not None
        choices = [self._answers[index].choice(index) for index in sorted(self._answers)]
        return ChatCompletionResponse(id=last.id, created=last.created, model=last.model, choices=choices, usage=usage)


class _FoldedAnswer:
    def __init__(self) -> None:
        self._message = MessageFolder()
        self._logprobs: list[TokenLogprob] | None = None
        self._reason: FinishReason = "stop"

    def add(self, choice: StreamChoice) -> None:
        self._message.add(choice.delta)
        self._reason = choice.finish_reason or self._reason
        if choice.logprobs is not None:
            self._logprobs = [*(self._logprobs or []), *choice.logprobs.content]

    def choice(self, index: int) -> Choice:
        logprobs = None if self._logprobs is None else Logprobs(content=self._logprobs)
        return Choice(index=index, finish_reason=self._reason, message=self._message.message(), logprobs=logprobs)
