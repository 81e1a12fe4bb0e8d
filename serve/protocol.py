"""OpenAI's chat completion: the request, the response and the chunks of a stream.

https://platform.openai.com/docs/api-reference/chat. Request fields that the API does not have (`top_k`, `min_p`,
`repetition_penalty`, `ignore_eos`, `stop_token_ids`, `min_tokens`, `debug_config`) travel in `extra_body`, as with
other servers.
"""

from typing import Any, Literal

from pydantic import BaseModel, SerializerFunctionWrapHandler, model_serializer

from ..runtime.errors import RequestError
from .request import ChoicesRequest, unsupported
from .response_format import GUIDED, ResponseFormat, read_text_format

# Of fields that are not supported: the values that ask for nothing beyond what answers are, and what to give instead.
_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "modalities": ((["text"],), "['text']"),
    "verbosity": (("medium",), "'medium'"),
    "audio": ((), "null"),
    "functions": ((), "tools"),
    "function_call": ((), "tool_choice"),
    "moderation": ((), "null"),
    "web_search_options": ((), "null"),
}


class ChatCompletionRequest(ChoicesRequest):
    """A chat completion request."""

    kind = "chat completion"

    messages: list[dict[str, Any]]
    logprobs: bool | None = None
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    # See `_ONLY`.
    modalities: list[str] | None = None
    verbosity: str | None = None
    audio: Any = None
    functions: Any = None
    function_call: Any = None
    moderation: Any = None
    web_search_options: Any = None
    # These can only make OpenAI's service faster; nothing comes of them.
    prediction: dict[str, Any] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    prompt_cache_retention: str | None = None

    def check(self) -> None:
        """Raise RequestError for fields that do not go together, or are not supported."""
        super().check()
        for field, (values, instead) in _ONLY.items():
            value = getattr(self, field)
            if value is not None and value not in values:
                raise unsupported(field, value, instead)
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise RequestError(
                f"max_tokens is {self.max_tokens} and max_completion_tokens {self.max_completion_tokens}: "
                "they are two names of one limit, give one",
                param="max_completion_tokens",
            )

    def text_format(self) -> ResponseFormat | None:
        """The form that the text of answers has to have, in whichever of its spellings. Raises RequestError."""
        guided = {name: getattr(self, name) for name in GUIDED}
        return read_text_format(self.response_format, self.structured_outputs, guided)

    def further_params(self) -> dict[str, Any]:
        """Its own limit of tokens, and log-probabilities."""
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return {"max_tokens": limit, "logprobs": self.logprobs, "top_logprobs": self.top_logprobs}


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


class CompletionTokensDetails(BaseModel):
    """`reasoning_tokens` of the answer are what the model thought before it."""

    reasoning_tokens: int = 0


class Usage(BaseModel):
    """What a request took, in tokens."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


FinishReason = Literal["stop", "length", "tool_calls"]


class _WithoutAbsent(BaseModel):
    """What few answers have is left out of the others, as OpenAI does it, instead of being null."""

    # With a return type, that would stand in the JSON schema in place of the fields.
    @model_serializer(mode="wrap")
    def _dump(self, dump: SerializerFunctionWrapHandler):  # type: ignore[no-untyped-def]
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if value is not None or name not in _MAY_BE_ABSENT}


_MAY_BE_ABSENT = frozenset({"tool_calls", "reasoning_content", "id", "type", "function", "name", "arguments"})


class FunctionCall(BaseModel):
    """The function that a call is of. `arguments` is the JSON text that the model wrote; it may be cut off."""

    name: str
    arguments: str


class ToolCall(BaseModel):
    """A call of a tool, which the next request answers with a tool message of the same id."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class Message(_WithoutAbsent):
    """The answer. `content` is null where it is calls alone; `reasoning_content` is what the model thought before."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | None = None


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


class FunctionCallDelta(_WithoutAbsent):
    """A piece of a call: its name comes first, then the JSON text of its arguments in parts."""

    name: str | None = None
    arguments: str | None = None


class ToolCallDelta(_WithoutAbsent):
    """A piece of the call that is number `index` of the answer; only the first one has an id and a type."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionCallDelta | None = None


class Delta(_WithoutAbsent):
    """A piece of the answer; the first one says whose it is."""

    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


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
