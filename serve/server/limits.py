"""What an operator lets one request ask for, within the fixed bounds of the engine."""

from dataclasses import dataclass

from ...runtime.errors import RequestError
from ..protocol import ChatCompletionRequest
from ..request import MAX_ANSWERS, GenerationRequest
from ..text_protocol import DEFAULT_MAX_TOKENS, CompletionRequest


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request.

    - max_choices: answers, `n` for each prompt.
    - max_output_tokens: tokens of an answer; also for requests that name no limit. None: what the context holds.
    - max_messages: messages of a conversation.
    """

    max_choices: int = MAX_ANSWERS
    max_output_tokens: int | None = None
    max_messages: int = 4096

    def apply(self, request: GenerationRequest) -> None:
        """Raise RequestError for what goes beyond; set the limit of tokens where the request has none."""
        n, prompts = request.n or 1, 1
        if isinstance(request, ChatCompletionRequest):
            _check("messages", len(request.messages), self.max_messages, "messages")
        if isinstance(request, CompletionRequest):
            prompts = len(request.prompts)
        _check("n" if prompts == 1 else "prompt", n * prompts, self.max_choices, "answers")
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


def _check(field: str, value: int, limit: int, what: str) -> None:
    if value > limit:
        message = f"{field} asks for {value} {what}: this server takes at most {limit} in a request"
        raise RequestError(message, param=field, code="invalid_value")
