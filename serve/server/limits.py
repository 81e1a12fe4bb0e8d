"""What an operator lets one request ask for, within the fixed bounds of the engine."""

from collections.abc import Iterator
from dataclasses import dataclass

from pydantic_core import to_json

from ...runtime.errors import RequestError, UsageError
from ...runtime.sampling_params import MAX_STOP, MAX_TOP_LOGPROBS
from ..embedding_protocol import MAX_INPUTS, EmbeddingRequest
from ..protocol import ChatCompletionRequest
from ..request import MAX_ANSWERS, GenerationRequest
from ..responses.request import ResponsesRequest
from ..text_protocol import DEFAULT_MAX_TOKENS, CompletionRequest

# What the limit of tokens is called in each kind of request.
_TOKENS = {
    ChatCompletionRequest: ("max_tokens", "max_completion_tokens"),
    CompletionRequest: ("max_tokens",),
    ResponsesRequest: ("max_output_tokens",),
}


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

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            least = 0 if name in ("max_stop", "max_logprobs") else 1
            if value is not None and value < least:
                raise UsageError(f"{name} is {value}: expected at least {least}")

    def apply(self, request: GenerationRequest) -> None:
        """Raise RequestError for what goes beyond; set the limit of tokens where the request has none."""
        for bounded in self._bounded(request):
            _check(*bounded)
        if self.max_output_tokens is None:
            return
        fields = _TOKENS[type(request)]
        given = {field: value for field in fields if (value := getattr(request, field)) is not None}
        for field, value in given.items():
            _check(field, value, self.max_output_tokens, "tokens")
        if not given:
            default = DEFAULT_MAX_TOKENS if isinstance(request, CompletionRequest) else self.max_output_tokens
            setattr(request, fields[0], min(default, self.max_output_tokens))

    def _bounded(self, request: GenerationRequest) -> Iterator[tuple[str, int, int, str]]:
        """The fields with a fixed bound: what each asks for, how much it may, and of what."""
        yield "stop", len(request.stop or ()), self.max_stop, "texts"
        if isinstance(request, ChatCompletionRequest):
            yield "messages", len(request.messages), self.max_messages, "messages"
            yield "n", request.n or 1, self.max_choices, "answers"
            yield "top_logprobs", request.top_logprobs or 0, self.max_logprobs, "log-probabilities"
            yield from self._bounded_grammars(response_format=request.response_format, tools=request.tools)
        elif isinstance(request, CompletionRequest):
            prompts = len(request.prompts)
            yield "n" if prompts == 1 else "prompt", (request.n or 1) * prompts, self.max_choices, "answers"
            yield "logprobs", request.logprobs or 0, self.max_logprobs, "log-probabilities"
        elif isinstance(request, ResponsesRequest):
            yield "input", len(request.items), self.max_messages, "items"
            yield "top_logprobs", request.top_logprobs or 0, self.max_logprobs, "log-probabilities"
            yield from self._bounded_grammars(text=request.text, tools=request.tools)

    def _bounded_grammars(self, **fields: object) -> Iterator[tuple[str, int, int, str]]:
        for field, value in fields.items():
            yield field, 0 if value is None else len(to_json(value)), self.max_grammar_bytes, "bytes"

    def check_inputs(self, request: EmbeddingRequest) -> None:
        """Raise RequestError for more texts than may be embedded."""
        _check("input", len(request.inputs), self.max_inputs, "embeddings")


def _check(field: str, value: int, limit: int, what: str) -> None:
    if value > limit:
        message = f"{field} asks for {value} {what}: this server takes at most {limit} in a request"
        raise RequestError(message, param=field, code="invalid_value")
