"""What an operator lets one request ask for, within the fixed bounds of the engine."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic_core import to_json

from ...runtime.errors import RequestError
from ...runtime.sampling_params import MAX_STOP, MAX_TOP_LOGPROBS
from ..embedding_protocol import MAX_INPUTS, EmbeddingRequest
from ..protocol import ChatCompletionRequest
from ..request import MAX_ANSWERS, GenerationRequest
from ..text_protocol import DEFAULT_MAX_TOKENS, CompletionRequest


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request.

    - max_choices: answers, `n` for each prompt.
    - max_output_tokens: tokens of an answer; also for requests that name no limit. None: what the context holds.
    - max_messages: messages of a conversation.
    - max_stop: strings that end an answer. max_logprobs: tokens whose log-probabilities stand beside each of an answer.
    - max_grammar_bytes: of `response_format`, and of `tools`, as JSON.
    - max_inputs: texts to embed.
    """

    max_choices: int = MAX_ANSWERS
    max_output_tokens: int | None = None
    max_messages: int = 4096
    max_stop: int = MAX_STOP
    max_logprobs: int = MAX_TOP_LOGPROBS
    max_grammar_bytes: int = 128 << 10
    max_inputs: int = MAX_INPUTS

    def apply(self, request: GenerationRequest) -> None:
        """Raise RequestError for what goes beyond; set the limit of tokens where the request has none."""
        for bounded in self._bounded(request):
            _check(*bounded)
        if self.max_output_tokens is None:
            return
        field, value = "max_tokens", request.max_tokens
        if value is None and isinstance(request, ChatCompletionRequest):
            field, value = "max_completion_tokens", request.max_completion_tokens
        if value is not None:
            _check(field, value, self.max_output_tokens, "tokens")
            return
        default = DEFAULT_MAX_TOKENS if isinstance(request, CompletionRequest) else self.max_output_tokens
        request.max_tokens = min(default, self.max_output_tokens)

    def _bounded(self, request: GenerationRequest) -> Iterator[tuple[str, int, int, str]]:
        """The fields with a fixed bound: what each asks for, how much it may, and of what."""
        n, prompts = request.n or 1, 1
        if isinstance(request, ChatCompletionRequest):
            yield "messages", len(request.messages), self.max_messages, "messages"
            yield "top_logprobs", request.top_logprobs or 0, self.max_logprobs, "log-probabilities"
            for field in ("response_format", "tools"):
                value = getattr(request, field)
                yield field, 0 if value is None else len(to_json(value)), self.max_grammar_bytes, "bytes"
        if isinstance(request, CompletionRequest):
            prompts = len(request.prompts)
            yield "logprobs", request.logprobs or 0, self.max_logprobs, "log-probabilities"
        yield "n" if prompts == 1 else "prompt", n * prompts, self.max_choices, "answers"
        yield "stop", len(request.stop or ()), self.max_stop, "texts"

    def check_inputs(self, request: EmbeddingRequest) -> None:
        """Raise RequestError for more texts than may be embedded."""
        _check("input", len(request.inputs), self.max_inputs, "embeddings")


def _check(field: str, value: int, limit: int, what: str) -> None:
    if value > limit:
        message = f"{field} asks for {value} {what}: this server takes at most {limit} in a request"
        raise RequestError(message, param=field, code="invalid_value")
