"""From the chunks of a chat completion to the events of a response."""

import time
from collections.abc import Iterator
from typing import Literal, TypeVar

from ..protocol import ChatCompletionStreamResponse, Delta, TokenLogprob, Usage
from .items import CallInProgress, ItemInProgress, MessageInProgress, ReasoningInProgress
from .protocol import (
    ErrorEvent,
    IncompleteDetails,
    InputTokensDetails,
    LifecycleEvent,
    OutputTokensDetails,
    ResponseEvent,
    ResponseFailure,
    ResponseObject,
    ResponseUsage,
    ToldTool,
)
from .request import Reasoning, ResponsesRequest, TextConfig

_Event = TypeVar("_Event", bound=ResponseEvent)

# How OpenAI calls the kinds of errors in a response.
_FAILURES: dict[str, Literal["invalid_prompt", "rate_limit_exceeded"]] = {
    "invalid_request_error": "invalid_prompt",
    "overloaded_error": "rate_limit_exceeded",
}


class ResponseEvents:
    """Tells one response, while the chunks of its chat completion come."""

    def __init__(self, request: ResponsesRequest, model: str) -> None:
        """`model` is what the model is called in the response."""
        self._request, self._model = request, model
        self._response: ResponseObject | None = None
        self._items: list[ItemInProgress] = []  # the last one may be in progress
        self._sequence = 0

    def of_chunk(self, chunk: ChatCompletionStreamResponse) -> Iterator[ResponseEvent]:
        """The events of a chunk."""
        return map(self._numbered, self._events(chunk))

    def of_end(self) -> LifecycleEvent:
        """The last event, with the whole response, after the last chunk."""
        response = self._whole()
        if response.status == "incomplete":
            return self._numbered(LifecycleEvent(type="response.incomplete", response=response))
        return self._numbered(LifecycleEvent(type="response.completed", response=response))

    def of_failure(self, kind: str, message: str, param: str | None, code: str | None) -> Iterator[ResponseEvent]:
        """The events of an error in the middle, which are the last ones; `kind` is the type in its error object."""
        error = {"message": message, "type": kind, "param": param, "code": code}
        yield self._numbered(ErrorEvent(code=code, message=message, param=param, error=error))
        if self._response is not None:
            if self._items and self._items[-1].status == "in_progress":
                self._items[-1].status = "incomplete"
            failure = ResponseFailure(code=_FAILURES.get(kind, "server_error"), message=message)
            response = self._whole().model_copy(update={"status": "failed", "error": failure})
            yield self._numbered(LifecycleEvent(type="response.failed", response=response))

    def _numbered(self, event: _Event) -> _Event:
        event.sequence_number = self._sequence
        self._sequence += 1
        return event

    def _whole(self) -> ResponseObject:
        assert self._response is not None
        return self._response.model_copy(update={"output": [item.output() for item in self._items]})

    def _events(self, chunk: ChatCompletionStreamResponse) -> Iterator[ResponseEvent]:
        if self._response is None:
            self._response = _begun(self._request, chunk.id, chunk.created, self._model)
            yield LifecycleEvent(type="response.created", response=self._response)
            yield LifecycleEvent(type="response.in_progress", response=self._response)
        for choice in chunk.choices:
            yield from self._delta(choice.delta, choice.logprobs.content if choice.logprobs else [])
            if choice.finish_reason is not None:
                yield from self._finish("incomplete" if choice.finish_reason == "length" else "completed")
        if chunk.usage is not None:
            self._response = self._response.model_copy(update={"usage": _usage(chunk.usage)})

    def _delta(self, delta: Delta, logprobs: list[TokenLogprob]) -> Iterator[ResponseEvent]:
        item = self._items[-1] if self._items else None
        if delta.reasoning_content:
            if not isinstance(item, ReasoningInProgress):
                item = ReasoningInProgress(len(self._items))
                yield from self._begin(item)
            yield from item.more(delta.reasoning_content)
        # Log-probabilities of tokens that are no text have no place in a response.
        if delta.content or (logprobs and isinstance(item, MessageInProgress)):
            if not isinstance(item, MessageInProgress):
                item = MessageInProgress(len(self._items))
                yield from self._begin(item)
            yield from item.more(delta.content or "", logprobs)
        for call in delta.tool_calls or ():
            if call.id is not None:
                name = call.function.name if call.function is not None else None
                item = CallInProgress(len(self._items), call.id, name or "")
                yield from self._begin(item)
            assert isinstance(item, CallInProgress)
            if call.function is not None and call.function.arguments:
                yield from item.more(call.function.arguments)

    def _begin(self, item: ItemInProgress) -> Iterator[ResponseEvent]:
        """End the last item, and begin another."""
        if self._items:
            yield from self._items[-1].end("completed")
        self._items.append(item)
        yield from item.begin()

    def _finish(self, status: Literal["completed", "incomplete"]) -> Iterator[ResponseEvent]:
        if not self._items:  # an answer that is empty is still one
            yield from self._begin(MessageInProgress(0))
        yield from self._items[-1].end(status)
        assert self._response is not None
        details = IncompleteDetails(reason="max_output_tokens") if status == "incomplete" else None
        at = int(time.time()) if status == "completed" else None
        self._response = self._response.model_copy(
            update={"status": status, "incomplete_details": details, "completed_at": at}
        )


def _begun(request: ResponsesRequest, identifier: str, created: int, model: str) -> ResponseObject:
    """The response before there is anything of the answer."""
    text = request.text or TextConfig()
    tools = [
        ToldTool.model_validate({**tool.model_dump(), "strict": bool(tool.strict)}) for tool in request.tools or ()
    ]
    return ResponseObject(
        id=identifier,
        created_at=created,
        status="in_progress",
        instructions=request.instructions,
        max_output_tokens=request.max_output_tokens,
        max_tool_calls=request.max_tool_calls,
        metadata=request.metadata or {},
        model=model,
        output=[],
        parallel_tool_calls=request.parallel_tool_calls is not False,
        prompt_cache_key=request.prompt_cache_key,
        reasoning=request.reasoning or Reasoning(),
        safety_identifier=request.safety_identifier,
        temperature=request.temperature,
        text=text if text.format is not None else text.model_copy(update={"format": {"type": "text"}}),
        tool_choice=request.tool_choice or "auto",
        tools=tools,
        top_logprobs=request.top_logprobs or 0,
        top_p=request.top_p,
        user=request.user,
    )


def _usage(usage: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.prompt_tokens_details.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=usage.completion_tokens_details.reasoning_tokens),
        total_tokens=usage.total_tokens,
    )
