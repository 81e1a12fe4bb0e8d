"""`AsyncMLCEngine`: the engine for programs that run on an event loop, and for the HTTP server."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Literal, overload

from typing_extensions import Unpack

from ..runtime.errors import EngineError
from ..runtime.scheduler import Job
from .chat import CreateOptions, parse_arguments
from .completion import Completion, Folder
from .config import EngineConfig, Mode
from .engine import checked_config, path_text
from .engine_thread import EngineThread
from .loading import LoadedModel, load_model
from .metrics import EngineMetrics, metrics_of
from .protocol import ChatCompletionRequest, ChatCompletionResponse, ChatCompletionStreamResponse

_PREPARING_THREADS = 2  # render and encode prompts, beside the event loop and the model


class AsyncMLCEngine:
    """`MLCEngine` with methods that are awaited. All answers are computed together, by a thread of the engine.

        async with AsyncMLCEngine("dist/SmolLM2-135M-Instruct-q4f16_1-MLC") as engine:
            stream = await engine.chat.completions.create(messages=[...], stream=True)
            async for chunk in stream:
                ...

    Closing a stream, or cancelling the task that reads it, ends the answer within one step.
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
    ) -> None:
        """Load a model, as `MLCEngine` does; that takes its time, also on an event loop.

        Requests beyond `max_waiting` that wait for their turn are refused with OverloadedError. Raises UsageError,
        ModelFileError, EngineError.
        """
        library = None if model_lib is None else path_text("model_lib", model_lib)
        self.model: LoadedModel = load_model(
            path_text("model", model), device, library, mode, checked_config(engine_config)
        )
        scheduler = self.model.generator.scheduler
        scheduler.max_waiting = max_waiting
        self._thread = EngineThread(scheduler)
        self._preparing = ThreadPoolExecutor(_PREPARING_THREADS, thread_name_prefix="mlc-prepare")
        self._jobs: dict[str, list[Job]] = {}  # of the answers that run, by their id
        self._terminated = False
        self.chat = AsyncChat(self)

    @property
    def context_window_size(self) -> int:
        """Tokens that a conversation and its answer may have together."""
        return self.model.generator.context_window

    async def complete(self, request: ChatCompletionRequest) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
        """The chunks of the answers, the last of which has no choices but the usage.

        Raises RequestError before the first chunk, OverloadedError when too many requests wait, EngineError.
        """
        if self._terminated:
            raise EngineError("the engine is terminated: make a new AsyncMLCEngine")
        loop = asyncio.get_running_loop()
        completion = await loop.run_in_executor(self._preparing, Completion, self.model, request)
        self._jobs[completion.id] = completion.jobs
        events = self._thread.stream(completion.jobs)
        try:
            async for index, event in events:
                for chunk in completion.of_event(index, event):
                    yield chunk
        finally:
            self._jobs.pop(completion.id, None)
            await events.aclose()  # type: ignore[attr-defined]

    async def abort(self, request_id: str) -> None:
        """End the answer with this id; its stream raises EngineError. Nothing happens if there is none."""
        for job in self._jobs.get(request_id, ()):
            job.error = EngineError(f"request {request_id} was aborted")
            self.model.generator.scheduler.cancel(job)
        self._thread.wake_streams()

    def metrics(self) -> EngineMetrics:
        """What the engine is doing, and has done."""
        return metrics_of(self.model.generator)

    def terminate(self) -> None:
        """End all streams with EngineError, and free the model. A second call does nothing."""
        if self._terminated:
            return
        self._terminated = True
        self._thread.stop()
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
        if request.stream:
            first = await anext(chunks)  # errors come before the stream
            with_usage = request.stream_options is not None and request.stream_options.include_usage
            return _stream(first, chunks, with_usage)
        folder = Folder()
        async for chunk in chunks:
            folder.add(chunk)
        return folder.response()


class AsyncChat:
    """The part of the interface that is called `chat`."""

    def __init__(self, engine: AsyncMLCEngine) -> None:
        self.completions = AsyncChatCompletions(engine)


async def _stream(
    first: ChatCompletionStreamResponse, rest: AsyncGenerator[ChatCompletionStreamResponse, None], with_usage: bool
) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
    try:
        yield first
        async for chunk in rest:
            if chunk.choices or with_usage:
                yield chunk
    finally:
        await rest.aclose()
