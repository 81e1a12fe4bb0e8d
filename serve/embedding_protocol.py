"""OpenAI's embeddings: the request and the response.

https://platform.openai.com/docs/api-reference/embeddings
"""

from typing import Any, Literal

from pydantic import BaseModel

from ..runtime.errors import RequestError
from .request import Request

MAX_INPUTS = 2048  # OpenAI's limit

Input = str | list[int]


class EmbeddingRequest(Request):
    """A request for embeddings. An input is a text or its tokens; a list of inputs gets an embedding of each."""

    kind = "request for embeddings"

    input: str | list[str] | list[int] | list[list[int]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None

    @property
    def inputs(self) -> list[Input]:
        """The inputs one by one."""
        given: Any = self.input
        return [given] if isinstance(given, str) or (given and isinstance(given[0], int)) else given

    def check(self) -> None:
        """Raise RequestError for fields out of range."""
        inputs = self.inputs
        if not 1 <= len(inputs) <= MAX_INPUTS:
            raise RequestError(
                f"input has {len(inputs)} entries: expected 1 to {MAX_INPUTS}", param="input", code="invalid_value"
            )
        for index, one in enumerate(inputs):
            if not one:
                place = "input" if one is self.input else f"input[{index}]"
                raise RequestError(f"{place} is empty: expected a text or tokens", param="input", code="invalid_value")
        if self.dimensions is not None and self.dimensions < 1:
            raise RequestError(
                f"dimensions is {self.dimensions}: expected at least 1", param="dimensions", code="invalid_value"
            )


class Embedding(BaseModel):
    """The embedding of one input: numbers, or the base64 of their bytes, float32 in little-endian order."""

    object: Literal["embedding"] = "embedding"
    embedding: list[float] | str
    index: int


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs together."""

    prompt_tokens: int
    total_tokens: int


class CreateEmbeddingResponse(BaseModel):
    """The embeddings in the order of the inputs."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage
