"""OpenAI's text completion: the request, the response and the chunks of a stream.

https://platform.openai.com/docs/api-reference/completions
"""

from typing import Any, Literal

from pydantic import BaseModel

from ..runtime.errors import RequestError
from .protocol import FinishReason, Usage
from .request import MAX_ANSWERS, ChoicesRequest, unsupported

MAX_LOGPROBS = 5  # OpenAI's limit
DEFAULT_MAX_TOKENS = 16  # OpenAI's

Prompt = str | list[int]


class CompletionRequest(ChoicesRequest):
    """A text completion request. A prompt is a text or its tokens; a list of prompts gets answers to each."""

    kind = "completion"

    prompt: str | list[str] | list[int] | list[list[int]]
    best_of: int | None = None
    echo: bool | None = None
    logprobs: int | None = None
    suffix: str | None = None

    @property
    def prompts(self) -> list[Prompt]:
        """The prompts one by one."""
        prompt: Any = self.prompt
        return [prompt] if isinstance(prompt, str) or not prompt or isinstance(prompt[0], int) else prompt

    def check(self) -> None:
        """Raise RequestError for fields that do not go together, or are not supported."""
        super().check()
        if self.suffix:
            raise unsupported("suffix", self.suffix, "null")
        if self.best_of not in (None, self.n or 1):
            raise unsupported("best_of", self.best_of, "what n is")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise RequestError(
                f"logprobs is {self.logprobs}: expected 0 to {MAX_LOGPROBS}", param="logprobs", code="invalid_value"
            )
        count = len(self.prompts)
        if count * (self.n or 1) > MAX_ANSWERS:
            raise RequestError(
                f"prompt has {count} entries with {self.n or 1} answers each: at most {MAX_ANSWERS} are possible",
                param="prompt",
                code="invalid_value",
            )

    def further_params(self) -> dict[str, Any]:
        """Its own limit of tokens, and log-probabilities."""
        limit = DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens
        return {"max_tokens": limit, "logprobs": self.logprobs is not None, "top_logprobs": self.logprobs or 0}


class TextLogprobs(BaseModel):
    """Tokens of a text, each with its place in it, its log-probability and the most likely ones there; the first token
    of a prompt has none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """One answer, or a piece of it."""

    index: int = 0
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: FinishReason | None = None


class CompletionResponse(BaseModel):
    """Whole answers, or one chunk of a stream of them. All chunks of a stream have the same `id` and `created`."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
