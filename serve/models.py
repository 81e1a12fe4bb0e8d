"""`engine.models.list()`, as OpenAI's clients have it."""

import time
from typing import Literal

from pydantic import BaseModel

from .loading import LoadedModel


class ModelInfo(BaseModel):
    """A model that answers. https://platform.openai.com/docs/api-reference/models"""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mlc_llm"


class ModelList(BaseModel):
    """All models that answer."""

    object: Literal["list"] = "list"
    data: list[ModelInfo]


class Models:
    """The model of an engine."""

    def __init__(self, model: LoadedModel) -> None:
        self._list = ModelList(data=[ModelInfo(id=model.name, created=int(time.time()))])

    def list(self) -> ModelList:
        """The models that answer: the engine's."""
        return self._list
