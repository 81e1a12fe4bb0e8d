"""From a text completion request to the chunks of its answers; whole answers are the chunks folded."""

import time
from collections.abc import Iterable, Iterator

from ..runtime.events import Delta, Event, Finish, PromptScored, TokenLogprob
from .answer import choice_params, text_job
from .completion import answer_id, check_model, usage_of
from .loading import LoadedModel
from .protocol import FinishReason
from .text_protocol import CompletionChoice, CompletionRequest, CompletionResponse, TextLogprobs


class TextCompletion:
    """A text completion request as jobs, `n` for each of its prompts, and their events as chunks."""

    def __init__(self, model: LoadedModel, request: CompletionRequest) -> None:
        """Check the request and encode its prompts. Raises RequestError."""
        check_model(model, request.model)
        self.id = answer_id(request.request_id, "cmpl")
        self._created, self._model = int(time.time()), model.name
        self._top = request.logprobs if request.logprobs else None
        params, answers = request.sampling_params(model.config), request.n or 1
        prompts = [
            model.tokenizer.encode(prompt, add_special_tokens=True) if isinstance(prompt, str) else prompt
            for prompt in request.prompts
        ]
        scored = bool(request.echo) and request.logprobs is not None
        self.jobs = [
            text_job(model, tokens, choice_params(params, index), score_prompt=scored)
            for tokens in prompts
            for index in range(answers)
        ]
        echoed = [
            (prompt if isinstance(prompt, str) else model.tokenizer.decode(prompt, skip_special_tokens=False))
            if request.echo
            else ""
            for prompt in request.prompts
            for _ in range(answers)
        ]
        self._echoed = dict(enumerate(echoed))  # what is yet to be sent
        self._lengths = [0] * len(self.jobs)  # of the texts so far
        self._answers = answers
        self._finished: dict[int, Finish] = {}

    def chunks(self, events: Iterable[tuple[int, Event]]) -> Iterator[CompletionResponse]:
        """The chunks of all answers, the last of which has no choices but the usage."""
        for index, event in events:
            yield from self.of_event(index, event)

    def of_event(self, index: int, event: Event) -> Iterator[CompletionResponse]:
        """The chunks of one event of answer `index`; the usage comes after the last event of all."""
        if isinstance(event, PromptScored):
            tokens = self._logprobs(index, (TokenLogprob(event.first.token, event.first.bytes, 0.0), *event.rest))
            tokens.token_logprobs[0] = None
            if tokens.top_logprobs is not None:
                tokens.top_logprobs[0] = None
            yield self._text(index, self._echoed.pop(index), tokens)
            return
        if echoed := self._echoed.pop(index, ""):
            yield self._text(index, echoed)
        if isinstance(event, Delta):
            yield self._text(index, event.text, self._logprobs(index, event.logprobs) if event.logprobs else None)
            return
        yield self._chunk(CompletionChoice(index=index, text="", finish_reason=event.reason))
        self._finished[index] = event
        if len(self._finished) == len(self.jobs):
            firsts = range(0, len(self.jobs), self._answers)
            usage = usage_of([self._finished[index] for index in firsts], list(self._finished.values()))
            yield CompletionResponse(id=self.id, created=self._created, model=self._model, choices=[], usage=usage)

    def _text(self, index: int, text: str, logprobs: TextLogprobs | None = None) -> CompletionResponse:
        self._lengths[index] += len(text)
        return self._chunk(CompletionChoice(index=index, text=text, logprobs=logprobs))

    def _chunk(self, choice: CompletionChoice) -> CompletionResponse:
        return CompletionResponse(id=self.id, created=self._created, model=self._model, choices=[choice])

    def _logprobs(self, index: int, tokens: tuple[TokenLogprob, ...]) -> TextLogprobs:
        texts = [_text_of(token.bytes) for token in tokens]
        offsets, offset = [], self._lengths[index]
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        return TextLogprobs(
            tokens=texts,
            token_logprobs=[token.logprob for token in tokens],
            top_logprobs=[{_text_of(other.bytes): other.logprob for other in token.top} for token in tokens]
            if self._top
            else None,
            text_offset=offsets,
        )


def _text_of(token: bytes) -> str:
    return token.decode("utf-8", "replace")


class TextFolder:
    """Adds the chunks of a stream up."""

    def __init__(self) -> None:
        self._texts: dict[int, list[str]] = {}
        self._logprobs: dict[int, TextLogprobs] = {}
        self._reasons: dict[int, FinishReason] = {}
        self._last: CompletionResponse | None = None

    def add(self, chunk: CompletionResponse) -> None:
        """One more chunk."""
        self._last = chunk
        for choice in chunk.choices:
            self._texts.setdefault(choice.index, []).append(choice.text)
            if choice.finish_reason is not None:
                self._reasons[choice.index] = choice.finish_reason
            if choice.logprobs is not None:
                self._add_logprobs(choice.index, choice.logprobs)

    def _add_logprobs(self, index: int, more: TextLogprobs) -> None:
        known = self._logprobs.setdefault(index, more)
        if known is more:
            return
        known.tokens += more.tokens
        known.token_logprobs += more.token_logprobs
        known.text_offset += more.text_offset
        if known.top_logprobs is not None:
            known.top_logprobs += more.top_logprobs or []

    def response(self) -> CompletionResponse:
        """The whole answers, after the last chunk."""
        assert self._last is not None
        choices = [
            CompletionChoice(
                index=index,
                text="".join(self._texts[index]),
                logprobs=self._logprobs.get(index),
                finish_reason=self._reasons[index],
            )
            for index in sorted(self._texts)
        ]
        return self._last.model_copy(update={"choices": choices})
