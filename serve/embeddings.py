"""`engine.embeddings.create`, with the signature of OpenAI's clients; and from its request to the response."""

import base64
import os
import shlex
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from typing_extensions import Unpack

from ..runtime.artifact import ChatConfig
from ..runtime.embedding import EmbeddingJob, Pooling, scaled
from ..runtime.errors import RequestError
from .chat import merged_arguments
from .completion import check_model
from .embedding_protocol import CreateEmbeddingResponse, Embedding, EmbeddingRequest, EmbeddingUsage
from .loading import LoadedModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Inputs = str | list[str] | list[int] | list[list[int]]


class EmbeddingTask:
    """A request for embeddings as a job, and the response once that is done."""

    def __init__(self, model: LoadedModel, request: EmbeddingRequest) -> None:
        """Check the request and encode its inputs. Raises RequestError."""
        check_model(model, request.model)
        self._model, self._request = model, request
        if not model.generator.model.embedded_at_once:
            folder = shlex.quote(os.fspath(model.folder))
            raise RequestError(
                f"the library of {model.name} was compiled without embeddings: run `mlc compile {folder} --device "
                f"{model.device.partition(':')[0]}` and load it again",
                param="model",
                code="unsupported_value",
            )
        self._check_size(model.config.architecture.get("hidden_size"))
        encode = model.tokenizer.encode
        texts = [encode(one, add_special_tokens=True) if isinstance(one, str) else one for one in request.inputs]
        self.job: EmbeddingJob = model.generator.embedding_job(texts, pooling(model.config))

    def response(self) -> CreateEmbeddingResponse:
        """The embeddings, when the job is done. Raises RequestError for more dimensions than they have."""
        request, tokens = self._request, self.job.prompt_tokens
        self._check_size(len(self.job.vectors[0]))
        data = []
        for index, vector in enumerate(self.job.vectors):
            if request.dimensions is not None:
                vector = scaled(vector[: request.dimensions])
            data.append(Embedding(embedding=_encoded(vector, request.encoding_format), index=index))
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        return CreateEmbeddingResponse(data=data, model=self._model.name, usage=usage)

    def _check_size(self, size: object) -> None:
        wanted = self._request.dimensions
        if wanted is not None and isinstance(size, int) and wanted > size:
            message = f"dimensions is {wanted}: the embeddings of this model have {size}"
            raise RequestError(message, param="dimensions", code="invalid_value")


def pooling(config: ChatConfig) -> Pooling:
    """How a model's embeddings are made: as its folder says. Where it does not, an embedding model takes the last
    token, as MLC-LLM does; the mean is better for a model that was trained for text alone, whose last token says what
    comes next (LLM2Vec, https://arxiv.org/abs/2404.05961, section 3.2)."""
    known = config.embedding_metadata
    if known is not None:
        return Pooling(known.pooling_strategy, known.normalize)
    return Pooling("last" if config.model_task == "embedding" else "mean")


def _encoded(vector: "npt.NDArray[np.float32]", form: Literal["float", "base64"] | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.tolist()
    return numbers


class EmbeddingOptions(TypedDict, total=False):
    """The arguments of `create` besides input."""

    model: str | None
    encoding_format: Literal["float", "base64"]
    dimensions: int | None
    user: str | None
    extra_body: dict[str, Any] | None


class Embeddings:
    """`create` embeds texts."""

    def __init__(self, embed: Callable[[EmbeddingRequest], CreateEmbeddingResponse]) -> None:
        self._embed = embed

    def create(self, *, input: Inputs, **options: Unpack[EmbeddingOptions]) -> CreateEmbeddingResponse:
        """The embedding of `input`, or of each of its entries: a text or its tokens.

        Fields are OpenAI's, https://platform.openai.com/docs/api-reference/embeddings/create: with `encoding_format`
        "base64" an embedding is the base64 of its float32 numbers, little-endian; `dimensions` keeps that many numbers,
        scaled to length 1 again. Raises RequestError for a request that is invalid, and with a library that was made
        without embeddings, EngineError when the engine is terminated or fails.
        """
        return self._embed(EmbeddingRequest.parse(merged_arguments({"input": input, **options})))


class AsyncEmbeddings:
    """`create` embeds texts, beside the event loop."""

    def __init__(self, embed: Callable[[EmbeddingRequest], Awaitable[CreateEmbeddingResponse]]) -> None:
        self._embed = embed

    async def create(self, *, input: Inputs, **options: Unpack[EmbeddingOptions]) -> CreateEmbeddingResponse:
        """The same as `MLCEngine`'s. Raises OverloadedError too, when too many requests wait."""
        return await self._embed(EmbeddingRequest.parse(merged_arguments({"input": input, **options})))
