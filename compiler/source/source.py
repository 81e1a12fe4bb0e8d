"""What the compiler needs from a model's original files: config, weights by Hugging Face name, tokenizer files."""

import hashlib
import os
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ...runtime.hub import Progress as Progress
from ..preflight import explained

# What a clone without Git LFS has in place of a large file begins so.
LFS_START = b"version https://git-lfs"
LFS_HINT = "is a Git LFS pointer and not the file itself: run `git lfs pull` in its folder"


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of what `Source.read` returns: float32, float16 or bfloat16 (ml_dtypes')."""

    shape: tuple[int, ...]
    dtype: str


class Source(Protocol):
    """A model as its authors published it, whatever the file format.

    `tensors` is in file order, so reading in that order reads each file from front to back.
    `fingerprint` changes when the files do (names, sizes, modification times); it is cheap, not a content hash.
    """

    name: str
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorSpec]
    fingerprint: str

    def read(self, name: str) -> np.ndarray:
        """The tensor, contiguous, in memory of its own. Raises ModelFileError."""
        ...

    def write_tokenizer(self, folder: Path) -> list[str]:
        """Write tokenizer.json and its companions into an existing folder; the file names. Raises ModelFileError."""
        ...


@runtime_checkable
class BlockSource(Source, Protocol):
    """A source whose matrices are quantized in blocks already, or some of them.

    `block_types`: GGUF's name of each tensor's type in lower case, "f32" and "f16" included. `file_type`: the name of
    the whole mixture, as "q4_k_m"; empty where no tensor is in blocks.
    """

    block_types: Mapping[str, str]
    file_type: str

    def read_blocks(self, name: str) -> np.ndarray:
        """The tensor as it is stored, uint8 [rows, bytes of a row], in Hugging Face's order. Raises ModelFileError."""
        ...


def fingerprint_files(paths: Iterable[Path]) -> str:
    """sha256 over names, sizes and modification times."""
    digest = hashlib.sha256()
    for path in paths:
        stat = path.stat()
        digest.update(f"{path.name}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def write_file(path: Path, data: bytes) -> None:
    """Write a whole file or none of it. Raises EngineError in one line when the disk refuses."""
    with explained(path):
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(temporary).chmod(0o644)
            os.replace(temporary, path)  # noqa: PTH105 - one name per meaning: `Path.replace` reads like str.replace
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
