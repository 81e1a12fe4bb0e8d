"""`MLCEngine`: chat completions in Python."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from reprlib import repr as short_repr
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from ..runtime.errors import EngineError, UsageError
from .answer import answer, sampling_params
from .config import EngineConfig, Mode
from .loading import LoadedModel, load_model

if TYPE_CHECKING:
    from ..runtime.events import Event
    from ..runtime.job import Job
    from .chat import Chat
    from .completion import Chunked
    from .completions import Completions
    from .embedding_protocol import CreateEmbeddingResponse, EmbeddingRequest
    from .embeddings import Embeddings
    from .metrics import EngineMetrics
    from .models import Models
    from .protocol import ChatCompletionRequest, ChatCompletionStreamResponse
    from .text_protocol import CompletionRequest, CompletionResponse

_Item = TypeVar("_Item")


class MLCEngine:
    """Answers chat completions with a compiled model.

        with MLCEngine("dist/SmolLM2-135M-Instruct-q4f16_1-MLC") as engine:
            response = engine.chat.completions.create(messages=[{"role": "user", "content": "Hello!"}])
            print(response.choices[0].message.content)

    Any number of streams can be open at a time, also from several threads: whoever waits for the next piece of one has
    the model work on all of them at once. A stream that nobody reads waits after some hundred pieces.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        device: str = "auto",
        *,
        model_lib: str | os.PathLike[str] | None = None,
        mode: Mode = "local",
        engine_config: EngineConfig | None = None,
    ) -> None:
        """Load a model.

        `model` is a model folder, its mlc-chat-config.json, the name of a folder in `dist`, or the address of a
        compiled model, `HF://org/name`, which is downloaded the first time. `model_lib` is the path of its library;
        without one, the library is looked for beside the folder and in the cache, and compiled if there is none.
        `mode` sets how many sequences are kept and how many tokens they may have, see `choose_limits`;
        `engine_config` overrides that.

        Raises UsageError, ModelFileError, EngineError.
        """
        library = None if model_lib is None else path_text("model_lib", model_lib)
        self._model: LoadedModel | None = load_model(
            path_text("model", model), device, library, mode, checked_config(engine_config)
        )
        self._jobs: dict[str, list[Job]] = {}  # of the answers that run, by their id

    @cached_property
    def chat(self) -> "Chat":
        """Chat completions, as OpenAI's clients have them: `engine.chat.completions.create`."""
        from .chat import Chat

        return Chat(self._complete)

    def generate(self, messages: Sequence[Mapping[str, Any]], **sampling: Any) -> "Iterator[Event]":
        """The answer to `messages` as events: deltas of text, then one `Finish` with the figures.

        `sampling` are fields of `SamplingParams`; those that are None or not given come from the model's config.
        Raises RequestError for a request that is invalid, EngineError when the engine is terminated or fails.
        """
        model = self._loaded()
        return self._while_running(answer(model, messages, sampling_params(model.config, sampling)))

    def metrics(self) -> "EngineMetrics":
        """What the engine is doing, and has done. Raises EngineError after `terminate`."""
        from .metrics import metrics_of

        return metrics_of(self._loaded().generator)

    def abort(self, request_id: str) -> None:
        """End the answer with this id; its stream raises EngineError. Nothing happens if there is none."""
        for job in self._jobs.get(request_id, ()):
            job.error = EngineError(f"request {request_id} was aborted")
            self._loaded().generator.scheduler.cancel(job)

    @property
    def context_window_size(self) -> int:
        """Tokens that a conversation and its answer may have together. Raises EngineError after `terminate`."""
        return self._loaded().generator.context_window

    @property
    def device(self) -> str:
        """What the model runs on, as "cpu" or "vulkan:1". Raises EngineError after `terminate`."""
        return self._loaded().device

    def terminate(self) -> None:
        """Free the model. Whatever uses the engine afterwards raises EngineError; a second call does nothing."""
        self._model = None

    def __enter__(self) -> "MLCEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.terminate()

    def _loaded(self) -> LoadedModel:
        if self._model is None:
            raise EngineError("the engine is terminated: make a new MLCEngine")
        return self._model

    @cached_property
    def completions(self) -> "Completions":
        """Text completions, as OpenAI's clients have them: `engine.completions.create`."""
        from .completions import Completions

        return Completions(self._complete_text)

    @cached_property
    def embeddings(self) -> "Embeddings":
        """Embeddings, as OpenAI's clients have them: `engine.embeddings.create`."""
        from .embeddings import Embeddings

        return Embeddings(self._embed)

    @cached_property
    def models(self) -> "Models":
        """`engine.models.list()`: the model of this engine, as OpenAI's clients have it."""
        from .models import Models

        return Models(self._loaded())

    def _complete_text(self, request: "CompletionRequest") -> "Iterator[CompletionResponse]":
        from .text_completion import TextCompletion

        model = self._loaded()
        return self._while_running(self._chunks(model, TextCompletion(model, request)))

    def _complete(self, request: "ChatCompletionRequest") -> "Iterator[ChatCompletionStreamResponse]":
        from .completion import Completion

        model = self._loaded()
        completion = Completion(model, request)
        return self._while_running(self._chunks(model, completion))

    def _embed(self, request: "EmbeddingRequest") -> "CreateEmbeddingResponse":
        from .embeddings import EmbeddingTask

        model = self._loaded()
        task = EmbeddingTask(model, request)
        for _ in self._while_running(model.generator.follow([task.job])):
            pass
        return task.response()

    def _chunks(self, model: LoadedModel, completion: "Chunked[_Item]") -> Iterator[_Item]:
        self._jobs[completion.id] = completion.jobs
        try:
            yield from completion.chunks(model.generator.follow(completion.jobs))
        finally:
            self._jobs.pop(completion.id, None)

    def _while_running(self, items: Iterator[_Item]) -> Iterator[_Item]:
        """The items, as long as the engine is not terminated in the middle of them."""
        while True:
            self._loaded()
            item = next(items, None)
            if item is None:
                return
            yield item


def checked_config(config: object) -> EngineConfig:
    """The config that is given, or the default. Raises UsageError for what is none."""
    if config is None:
        return EngineConfig()
    if not isinstance(config, EngineConfig):
        raise UsageError(f"engine_config is of type {type(config).__name__}: expected an EngineConfig")
    return config


def path_text(name: str, value: object) -> str:
    """A path as text. Raises UsageError for what is none."""
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} is {short_repr(value)}: expected a path or a name")
    return value
