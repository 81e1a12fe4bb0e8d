"""`AsyncMLCEngine`: the engine for programs that run on an event loop, and for the HTTP server."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, overload

from typing_extensions import Unpack

from ..runtime.errors import EngineError
from ..runtime.job import Job
from ..runtime.trace import Trace
from .chat import CreateOptions, merged_arguments, parse_arguments
from .completion import Chunked, Completion, Folder
from .completions import CompletionOptions, Prompts
from .config import EngineConfig, Mode
from .embedding_protocol import CreateEmbeddingResponse, EmbeddingRequest
from .embeddings import AsyncEmbeddings, EmbeddingTask
from .engine import checked_config, path_text
from .engine_limits import EngineLimits, limits_of
from .engine_thread import EngineThread
from .loading import LoadedModel, load_model
from .metrics import EngineMetrics, metrics_of
from .models import Models
from .protocol import ChatCompletionRequest, ChatCompletionResponse, ChatCompletionStreamResponse
from .request import ChoicesRequest
from .text_completion import TextCompletion, TextFolder
from .text_protocol import CompletionRequest, CompletionResponse

_PREPARING_THREADS = 2  # render and encode prompts, beside the event loop and the model


_Request = TypeVar("_Request", bound=ChoicesRequest)
_Chunk = TypeVar("_Chunk")


class AsyncMLCEngine:
    """`MLCEngine` with methods that are awaited. All answers are computed together, by a thread of the engine.

        async with AsyncMLCEngine("dist/SmolLM2-135M-Instruct-q4f16_1-MLC") as engine:
            stream = await engine.chat.completions.create(messages=[...], stream=True)
            async for chunk in stream:
                ...

    Closing a stream, or cancelling the task that waits for its next chunk, ends the answer within one step.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "auto",
        *,
        model_lib: str | os.PathLike[str] | None = None,
        mode: Mode = "local",
        engine_config: EngineConfig | None = None,
        max_waiting: int | None = None,
        embedding_model: str | os.PathLike[str] | None = None,
        embedding_model_lib: str | os.PathLike[str] | None = None,
        enable_tracing: bool = False,
    ) -> None:
        """Load a model, as `MLCEngine` does; that takes its time, also on an event loop.

        Requests beyond `max_waiting` that wait for their turn are refused with OverloadedError. Embeddings are those
        of `embedding_model`, a second one that is loaded beside the other, if it is given. With `enable_tracing`
        `trace` records what the engine does when. Raises UsageError, ModelFileError, EngineError.
        """
        library = None if model_lib is None else path_text("model_lib", model_lib)
        self.model: LoadedModel = load_model(
            path_text("model", model), device, library, mode, checked_config(engine_config)
        )
        scheduler = self.model.generator.scheduler
        scheduler.max_waiting = max_waiting
        self.trace = Trace() if enable_tracing else None
        scheduler.observer = None if self.trace is None else self.trace.observe
        self._embedder: AsyncMLCEngine | None = None
        if embedding_model is not None:
            self._embedder = AsyncMLCEngine(
                embedding_model, device, model_lib=embedding_model_lib, max_waiting=max_waiting
            )
        self._thread = EngineThread(scheduler)  # last of what may fail, so that no thread is left behind
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="mlc-prepare")
        self._jobs: dict[str, list[Job]] = {}  # of the answers that run, by their id
        self._terminated = False
        self.chat, self.completions = AsyncChat(self), AsyncCompletions(self)
        self.embeddings = AsyncEmbeddings(self.embed)
        self.models = Models(self.model)

    @property
    def context_window_size(self) -> int:
        """Tokens that a conversation and its answer may have together."""
        return self.model.generator.context_window

    @property
    def alive(self) -> bool:
        """Whether it can answer: it is not terminated, and nothing ended a thread of it."""
        return self._thread.alive and (self._embedder is None or self._embedder.alive)

    @property
    def limits(self) -> EngineLimits:
        """What the engine has room for, as loaded."""
        return limits_of(self.model.generator)

    async def complete(self, request: ChatCompletionRequest) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
        """The chunks of the answers, the last of which has no choices but the usage.

        Raises RequestError before the first chunk, OverloadedError when too many requests wait, EngineError.
        """
        async with aclosing(self._chunks(Completion, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def complete_text(self, request: CompletionRequest) -> AsyncGenerator[CompletionResponse, None]:
        """The same for a text completion."""
        async with aclosing(self._chunks(TextCompletion, request)) as chunks:
            async for chunk in chunks:
                yield chunk

    async def _chunks(
        self, prepare: Callable[[LoadedModel, _Request], Chunked[_Chunk]], request: _Request
    ) -> AsyncGenerator[_Chunk, None]:
        """The chunks of a request. It is prepared by a thread, as this may take its time."""
        self._thread.check_running()
        loop = asyncio.get_running_loop()
        completion = await loop.run_in_executor(self._preparing, prepare, self.model, request)
        self._jobs[completion.id] = completion.jobs
        for job in completion.jobs:
            job.name = completion.id
        try:
            async with aclosing(self._thread.stream(completion.jobs)) as events:
                async for index, event in events:
                    for chunk in completion.of_event(index, event):
                        yield chunk
        finally:
            self._jobs.pop(completion.id, None)

    @property
    def embedding_model(self) -> LoadedModel | None:
        """The model that is there for embeddings only, if any."""
        return None if self._embedder is None else self._embedder.model

    async def embed(self, request: EmbeddingRequest) -> CreateEmbeddingResponse:
        """The embeddings of texts, which are computed in pieces beside the answers that run.

        Raises as `complete` does. Cancelling the task that awaits it ends the work within one step.
        """
        self._thread.check_running()
        if self._embedder is not None:
            return await self._embedder.embed(request)
        loop = asyncio.get_running_loop()
        task = await loop.run_in_executor(self._preparing, EmbeddingTask, self.model, request)
        async with aclosing(self._thread.stream([task.job])) as events:
            async for _ in events:
                pass
        self._thread.check_running()
        return await loop.run_in_executor(self._preparing, task.response)

    async def abort(self, request_id: str) -> None:
        """End the answer with this id; its stream raises EngineError. Nothing happens if there is none."""
        for job in self._jobs.get(request_id, ()):
            job.error = EngineError(f"request {request_id} was aborted")
            self.model.generator.scheduler.cancel(job)
        self._thread.wake_streams()

    async def reset(self) -> None:
        """End all streams with EngineError, keep nothing of their texts, and count anew; after the step that runs."""
        scheduler = self.model.generator.scheduler
        await self._thread.between_steps(lambda: scheduler.reset(EngineError("the engine was reset")))

    def metrics(self) -> EngineMetrics:
        """What the engine is doing, and has done."""
        return metrics_of(self.model.generator)

    def terminate(self) -> None:
        """End all streams with EngineError, and free the model. A second call does nothing."""
        if self._terminated:
            return
        self._terminated = True
        self._thread.stop()
        if self._embedder is not None:
            self._embedder.terminate()
        self._preparing.shutdown(wait=False, cancel_futures=True)

    async def __aenter__(self) -> "AsyncMLCEngine":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.terminate()


class AsyncChatCompletions:
    """`create` answers a conversation."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self._engine = engine

    @overload
    async def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[True], **options: Unpack[CreateOptions]
    ) -> AsyncIterator[ChatCompletionStreamResponse]: ...

    @overload
    async def create(
        self, *, messages: list[dict[str, Any]], stream: Literal[False] = False, **options: Unpack[CreateOptions]
    ) -> ChatCompletionResponse: ...

    async def create(
        self, *, messages: list[dict[str, Any]], stream: bool = False, **options: Unpack[CreateOptions]
    ) -> ChatCompletionResponse | AsyncIterator[ChatCompletionStreamResponse]:
        """Answer `messages`: the arguments are those of `MLCEngine`'s `chat.completions.create`.

        With `stream` an asynchronous iterator of chunks. Raises RequestError for a request that is invalid, before
        anything is generated, OverloadedError, EngineError.
        """
        request = parse_arguments({"messages": messages, "stream": stream, **options})
        chunks = self._engine.complete(request)
        return await _begun(chunks, request) if request.stream else await _folded(chunks, Folder())


class AsyncChat:
    """The part of the interface that is called `chat`."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self.completions = AsyncChatCompletions(engine)


class AsyncCompletions:
    """`create` continues a text."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self._engine = engine

    @overload
    async def create(
        self, *, prompt: Prompts, stream: Literal[True], **options: Unpack[CompletionOptions]
    ) -> AsyncIterator[CompletionResponse]: ...

    @overload
    async def create(
        self, *, prompt: Prompts, stream: Literal[False] = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse: ...

    async def create(
        self, *, prompt: Prompts, stream: bool = False, **options: Unpack[CompletionOptions]
    ) -> CompletionResponse | AsyncIterator[CompletionResponse]:
        """Continue `prompt`: the arguments are those of `MLCEngine`'s `completions.create`.

        With `stream` an asynchronous iterator of chunks. Raises as the chat's `create` does.
        """
        request = CompletionRequest.parse(merged_arguments({"prompt": prompt, "stream": stream, **options}))
        chunks = self._engine.complete_text(request)
        return await _begun(chunks, request) if request.stream else await _folded(chunks, TextFolder())


class _HasChoices(Protocol):
    @property
    def choices(self) -> Sequence[object]: ...


_Piece = TypeVar("_Piece", bound=_HasChoices)
_Taken = TypeVar("_Taken", contravariant=True)
_Whole = TypeVar("_Whole", covariant=True)


class _Folds(Protocol[_Taken, _Whole]):
    def add(self, chunk: _Taken) -> None: ...
    def response(self) -> _Whole: ...


async def _folded(chunks: AsyncGenerator[_Piece, None], folder: _Folds[_Piece, _Whole]) -> _Whole:
    async for chunk in chunks:
        folder.add(chunk)
    return folder.response()


async def _begun(chunks: AsyncGenerator[_Piece, None], request: ChoicesRequest) -> AsyncGenerator[_Piece, None]:
    """A stream whose first chunk is there: errors come before it."""
    first = await anext(chunks)

    async def stream() -> AsyncGenerator[_Piece, None]:
        async with aclosing(chunks):
            yield first
            async for chunk in chunks:
                if chunk.choices or request.wants_usage:
                    yield chunk

    return stream()
