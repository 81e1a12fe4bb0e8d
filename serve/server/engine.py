"""What the server asks of an engine; `AsyncMLCEngine` has it."""

from collections.abc import AsyncGenerator
from typing import Protocol

from ...runtime.trace import Trace
from ..embedding_protocol import CreateEmbeddingResponse, EmbeddingRequest
from ..engine_limits import EngineLimits
from ..loading import LoadedModel
from ..metrics import EngineMetrics
from ..protocol import ChatCompletionRequest, ChatCompletionStreamResponse
from ..text_protocol import CompletionRequest, CompletionResponse


class ServingEngine(Protocol):
    """An engine that answers many requests at a time, on the event loop that serves them."""

    @property
    def model(self) -> LoadedModel: ...
    @property
    def embedding_model(self) -> LoadedModel | None: ...
    @property
    def context_window_size(self) -> int: ...
    @property
    def limits(self) -> EngineLimits: ...
    @property
    def trace(self) -> Trace | None:
        """What the engine did when; None unless that is recorded."""

    def complete(self, request: ChatCompletionRequest) -> AsyncGenerator[ChatCompletionStreamResponse, None]:
        """The chunks of the answer; the last one has no choices but the usage.

        Raises RequestError, EngineError. Closing the generator, or cancelling the task that awaits it, aborts the
        request.
        """

    def complete_text(self, request: CompletionRequest) -> AsyncGenerator[CompletionResponse, None]:
        """The same for a text completion."""

    async def embed(self, request: EmbeddingRequest) -> CreateEmbeddingResponse:
        """The embeddings of texts, by `embedding_model` where there is one, else by `model`. Raises as `complete`."""

    def metrics(self) -> EngineMetrics:
        """What the engine is doing, and has done."""

    async def reset(self) -> None:
        """End all answers with EngineError, keep nothing of their texts, and count anew."""

    def terminate(self) -> None:
        """Free the model; a second call does nothing."""
