"""OpenAI's chat completion: the request, the response and the chunks of a stream.

https://platform.openai.com/docs/api-reference/chat. Request fields that the API does not have (`top_k`, `min_p`,
`repetition_penalty`, `ignore_eos`, `stop_token_ids`, `debug_config`) travel in `extra_body`, as with other servers.
"""

import difflib
from collections.abc import Mapping
from reprlib import repr as short_repr
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from ..runtime.artifact import ChatConfig
from ..runtime.errors import RequestError
from ..runtime.sampling_params import SamplingParams
from .answer import sampling_params

MAX_ANSWERS = 128  # OpenAI's limit of `n`

# Fields that SamplingParams has under the same name and type.
_SAME_NAME = (
    "temperature", "top_p", "frequency_penalty", "presence_penalty", "repetition_penalty",
    "top_k", "min_p", "logit_bias", "seed", "logprobs", "top_logprobs",
)  # fmt: skip


def _token_id(key: object) -> object:
    """JSON objects have text keys, so that a token id may come as digits."""
    return int(key) if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 20 else key


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


TokenId = Annotated[int, BeforeValidator(_token_id)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class StreamOptions(_Request):
    """What a stream carries besides the answer."""

    include_usage: bool = False


class DebugConfig(_Request):
    """MLC-LLM's `debug_config`, as far as it means anything here."""

    ignore_eos: bool = False


class ChatCompletionRequest(_Request):
    """A chat completion request. `None` means the model's default; ranges are those of `SamplingParams`."""

    messages: list[dict[str, Any]]
    model: str | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[TokenId, float] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: Annotated[list[str] | None, BeforeValidator(_as_list)] = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    user: str | None = None  # who asks; means nothing to a local model
    response_format: dict[str, Any] | None = None
    request_id: str | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    debug_config: DebugConfig | None = None

    @classmethod
    def parse(cls, fields: Mapping[str, Any]) -> "ChatCompletionRequest":
        """Read a request. Raises RequestError that names the field, also for what is not supported."""
        try:
            request = cls.model_validate(dict(fields))
        except ValidationError as error:
            raise _first_problem(error) from None
        request._check_supported()
        return request

    def _check_supported(self) -> None:
        if self.n is not None and not 1 <= self.n <= MAX_ANSWERS:
            raise RequestError(f"n is {self.n}: expected 1 to {MAX_ANSWERS} answers", param="n", code="invalid_value")
        if self.tools:
            raise _unsupported("tools", self.tools, "null")
        if self.tool_choice not in (None, "none"):
            raise _unsupported("tool_choice", self.tool_choice, "'none'")
        if self.response_format not in (None, {"type": "text"}):
            raise _unsupported("response_format", self.response_format, "{'type': 'text'}")
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is given: it is only allowed when stream is true", param="stream_options"
            )
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise RequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}: "
                "they are two names of one limit, give one",
                param="max_completion_tokens",
            )

    def sampling_params(self, config: ChatConfig) -> SamplingParams:
        """How to choose tokens: the request's values, else those of the model folder's config."""
        names = _SAME_NAME
        given = {name: getattr(self, name) for name in names}
        given["max_tokens"] = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        given["stop"] = None if self.stop is None else tuple(self.stop)
        given["stop_token_ids"] = None if self.stop_token_ids is None else tuple(self.stop_token_ids)
        given["ignore_eos"] = self.ignore_eos or (self.debug_config is not None and self.debug_config.ignore_eos)
        return sampling_params(config, given)


def _unsupported(field: str, value: object, only: str) -> RequestError:
    return RequestError(
        f"{field} is {short_repr(value)}, which is not supported yet: leave it out or give {only}",
        param=field,
        code="unsupported_value",
    )


def _first_problem(error: ValidationError) -> RequestError:
    problem = error.errors(include_url=False, include_context=False)[0]
    param = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        inner: dict[object, type[_Request]] = {"stream_options": StreamOptions, "debug_config": DebugConfig}
        fields = inner.get(problem["loc"][0], ChatCompletionRequest).model_fields
        near = difflib.get_close_matches(str(problem["loc"][-1]), fields, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the fields are {', '.join(fields)}"
        return RequestError(
            f"{param[:80]!r} is not a field of a chat completion: {hint}", param=param, code="unknown_field"
        )
    if problem["type"] == "missing":
        return RequestError(f"{param} is missing", param=param, code="missing_field")
    message = f"{param} is {short_repr(problem['input'])}: {problem['msg'][:1].lower()}{problem['msg'][1:]}"
    return RequestError(message, param=str(problem["loc"][0]), code="invalid_type")


class TopLogprob(BaseModel):
    """A token that could have stood in a place of the answer."""

    token: str
    bytes: list[int] | None
    logprob: float


class TokenLogprob(TopLogprob):
    """A token of the answer, with the most likely ones in its place."""

    top_logprobs: list[TopLogprob] = []


class Logprobs(BaseModel):
    """Log-probabilities of the tokens of an answer."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptTokensDetails(BaseModel):
    """`cached_tokens` of the prompt were known from earlier requests and not computed again."""

    cached_tokens: int


class Usage(BaseModel):
    """What a request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


FinishReason = Literal["stop", "length"]


class Message(BaseModel):
    """The answer."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    """One answer to the request."""

    index: int = 0
    finish_reason: FinishReason
    logprobs: Logprobs | None = None
    message: Message


class ChatCompletionResponse(BaseModel):
    """A whole answer."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    """A piece of the answer; the first one says whose it is."""

    role: Literal["assistant"] | None = None
    content: str | None = None


class StreamChoice(BaseModel):
    """A piece of one answer to the request."""

    index: int = 0
    delta: Delta
    finish_reason: FinishReason | None = None
    logprobs: Logprobs | None = None


class ChatCompletionStreamResponse(BaseModel):
    """One chunk of a streamed answer. All of one answer have the same `id` and `created`."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[StreamChoice]
    usage: Usage | None = None
