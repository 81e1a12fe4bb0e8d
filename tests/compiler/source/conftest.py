"""Small model files, made by the packages that define the formats."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf_files
import numpy as np
import pytest
from gguf_files import Sizes


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """write_gguf(path, metadata, tensors): by gguf.GGUFWriter; both default to the tiny llama."""
    return gguf_files.write_gguf


@pytest.fixture(scope="session")
def sizes() -> Sizes:
    """The tiny llama's."""
    return gguf_files.SIZES


@pytest.fixture
def metadata() -> dict[str, Any]:
    return gguf_files.llama_metadata()


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return gguf_files.llama_tensors()
