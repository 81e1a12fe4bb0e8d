"""`engine.chat.completions.create`, with the signature of OpenAI's and MLC-LLM's clients."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from ..runtime.errors import RequestError
from .completion import fold
from .protocol import ChatCompletionRequest, ChatCompletionResponse, ChatCompletionStreamResponse

Answer = Callable[[ChatCompletionRequest], Iterator[ChatCompletionStreamResponse]]


ToolChoice = Literal["none", "auto", "required"] | dict[str, Any]


class CreateOptions(TypedDict, total=False):
    """The arguments of `create` besides messages and stream, for its two signatures."""

    model: str | None
    frequency_penalty: float | None
    presence_penalty: float | None
    logprobs: bool
    top_logprobs: int
    logit_bias: dict[int, float] | None
    max_tokens: int | None
    n: int
    seed: int | None
    stop: str | list[str] | None
    stream_options: dict[str, Any] | None
    temperature: float | None
    top_p: float | None
    tools: list[dict[str, Any]] | None
    tool_choice: ToolChoice | None
    user: str | None
    response_format: dict[str, Any] | None
    request_id: str | None
    extra_body: dict[str, Any] | None
    audio: dict[str, Any] | None
    function_call: str | dict[str, Any] | None
    functions: list[dict[str, Any]] | None
    max_completion_tokens: int | None
    metadata: dict[str, str] | None
    modalities: list[str] | None
    moderation: dict[str, Any] | None
    parallel_tool_calls: bool | None
    prediction: dict[str, Any] | None
    prompt_cache_key: str | None
    prompt_cache_options: dict[str, Any] | None
    prompt_cache_retention: str | None
    reasoning_effort: str | None
    safety_identifier: str | None
    service_tier: str | None
    store: bool | None
    verbosity: str | None
    web_search_options: dict[str, Any] | None


class ChatCompletions:
    """`create` answers a conversation."""

    def __init__(self, answer: Answer) -> None:
        """`answer` makes the chunks of an answer, the last of them with the usage."""
        self._answer = answer

    @overload
    def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[True], **options: Unpack[CreateOptions]
    ) -> Iterator[ChatCompletionStreamResponse]: ...

    @overload
    def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[False] = False, **options: Unpack[CreateOptions]
    ) -> ChatCompletionResponse: ...

    def create(
        self,
        *,
        messages: list[dict[str, Any]],
        model: str | None = None,
        frequency_penalty: float | None = None,
        presence_penalty: float | None = None,
        logprobs: bool = False,
        top_logprobs: int = 0,
        logit_bias: dict[int, float] | None = None,
        max_tokens: int | None = None,
        n: int = 1,
        seed: int | None = None,
        stop: str | list[str] | None = None,
        stream: bool = False,
        stream_options: dict[str, Any] | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: ToolChoice | None = None,
        user: str | None = None,
        response_format: dict[str, Any] | None = None,
        request_id: str | None = None,
        extra_body: dict[str, Any] | None = None,
        audio: dict[str, Any] | None = None,
        function_call: str | dict[str, Any] | None = None,
        functions: list[dict[str, Any]] | None = None,
        max_completion_tokens: int | None = None,
        metadata: dict[str, str] | None = None,
        modalities: list[str] | None = None,
        moderation: dict[str, Any] | None = None,
        parallel_tool_calls: bool | None = None,
        prediction: dict[str, Any] | None = None,
        prompt_cache_key: str | None = None,
        prompt_cache_options: dict[str, Any] | None = None,
        prompt_cache_retention: str | None = None,
        reasoning_effort: str | None = None,
        safety_identifier: str | None = None,
        service_tier: str | None = None,
        store: bool | None = None,
        verbosity: str | None = None,
        web_search_options: dict[str, Any] | None = None,
    ) -> Iterator[ChatCompletionStreamResponse] | ChatCompletionResponse:
        """Answer `messages`: a response, or with `stream` an iterator of chunks.

        Fields are OpenAI's, https://platform.openai.com/docs/api-reference/chat/create, and docs/requests.md says what
        comes of each; sampling values that are None come from the model's config. `extra_body` has those that OpenAI's
        signature lacks. A `request_id` becomes the response's id.

        Raises RequestError for a request that is invalid or asks for what is not supported (before anything is
        generated, also with `stream`), EngineError when the engine is terminated or fails.
        """
        given = {name: value for name, value in locals().items() if name != "self" and value is not None}
        request = parse_arguments(given)
        chunks = self._answer(request)
        if not request.stream:
            return fold(chunks)
        return (chunk for chunk in chunks if chunk.choices or request.wants_usage)


class Chat:
    """The part of the interface that is called `chat`."""

    def __init__(self, answer: Answer) -> None:
        self.completions = ChatCompletions(answer)


def parse_arguments(arguments: dict[str, Any]) -> ChatCompletionRequest:
    """The request that the arguments of `create` make. Raises RequestError."""
    return ChatCompletionRequest.parse(merged_arguments(arguments))


def merged_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `create` with those of `extra_body` among them. Raises RequestError."""
    extra = _extra(arguments.pop("extra_body", None), arguments)
    return {**arguments, **extra}


def _extra(extra_body: object, arguments: dict[str, Any]) -> dict[str, Any]:
    """The fields of `extra_body`. Raises RequestError when it repeats an argument of `create`."""
    if extra_body is None:
        return {}
    if not isinstance(extra_body, dict):
        raise RequestError(
            f"extra_body is of type {type(extra_body).__name__}: expected a dict",
            param="extra_body",
            code="invalid_type",
        )
    for name in extra_body:
        if name in arguments:
            raise RequestError(f"extra_body has {name!r}: give it as an argument of create", param=f"extra_body.{name}")
    return extra_body
