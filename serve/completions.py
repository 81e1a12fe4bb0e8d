"""`engine.completions.create`, with the signature of OpenAI's clients."""

from collections.abc import Callable, Iterator
from typing import Any, Literal, TypedDict, overload

from typing_extensions import Unpack

from .chat import merged_arguments
from .text_completion import TextFolder
from .text_protocol import CompletionRequest, CompletionResponse

Answer = Callable[[CompletionRequest], Iterator[CompletionResponse]]
Prompts = str | list[str] | list[int] | list[list[int]]


class CompletionOptions(TypedDict, total=False):
    """The arguments of `create` besides prompt and stream."""

    model: str | None
    best_of: int | None
    echo: bool | None
    frequency_penalty: float | None
    logit_bias: dict[int, float] | None
    logprobs: int | None
    max_tokens: int | None
    n: int | None
    presence_penalty: float | None
    request_id: str | None
    seed: int | None
    stop: str | list[str] | None
    stream_options: dict[str, Any] | None
    suffix: str | None
    temperature: float | None
    top_p: float | None
    user: str | None
    extra_body: dict[str, Any] | None


class Completions:
    """`create` continues a text."""

    def __init__(self, answer: Answer) -> None:
        """`answer` makes the chunks of an answer, the last of them with the usage."""
        self._answer = answer

    @overload
    def create(
        self, *, prompt: Prompts, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> Iterator[CompletionResponse]: ...

    @overload
    def create(
        self, *, prompt: Prompts, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse: ...

    def create(
        self, *, prompt: Prompts, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> Iterator[CompletionResponse] | CompletionResponse:
        """Continue `prompt`: a response, or with `stream` an iterator of chunks.

        A prompt is a text or its tokens; a list of prompts gets answers to each. Fields are OpenAI's,
        https://platform.openai.com/docs/api-reference/completions/create; `extra_body` has those that its signature
        lacks, as for chat completions. Raises RequestError for a request that is invalid, before anything is
        generated, EngineError when the engine is terminated or fails.
        """
        request = CompletionRequest.parse(merged_arguments({"prompt": prompt, "stream": stream, **options}))
        chunks = self._answer(request)
        if request.stream:
            return (chunk for chunk in chunks if chunk.choices or request.wants_usage)
        folder = TextFolder()
        for chunk in chunks:
            folder.add(chunk)
        return folder.response()
