"""A GGUF file as a source: tensors dequantized one at a time, under Hugging Face's names and in its layout."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import ModelFileError
from .gguf_config import build_config, build_generation_config, hugging_face_names
from .gguf_file import GGUFTensor, open_gguf
from .gguf_tokenizer import write_tokenizer
from .source import TensorSpec, fingerprint_files

_CHUNK_BYTES = 8 << 20  # dequantized in row blocks of about this size, so that scratch memory stays small
_QUANTIZATION_SUFFIX = re.compile(r"[.-]((I?Q\d+|TQ\d+|MXFP4)(_\w+)?|B?F16|F32)$", re.IGNORECASE)


class GGUFSource:
    """Source over one GGUF file. `read` gives float32. Raises ModelFileError for anything missing or damaged."""

    def __init__(self, path: Path, *, name: str | None = None) -> None:
        self.path = path
        self._file = open_gguf(path)
        metadata = self._file.metadata
        if metadata.integer("split.count", 1, low=0) > 1:
            raise ModelFileError(
                f"{path} is one part of {metadata.integer('split.count')}: join them with `llama-gguf-split --merge`"
            )
        self.name: str = name or _QUANTIZATION_SUFFIX.sub("", path.stem) or "model"
        self.config: dict[str, Any] = build_config(self._file)
        self.generation_config: dict[str, Any] = build_generation_config(self._file)
        self._stored = hugging_face_names(self._file)
        self.tensors: Mapping[str, TensorSpec] = {
            name: TensorSpec(weight.tensor.shape, "float32") for name, weight in self._stored.items()
        }
        self.fingerprint: str = fingerprint_files([path])

    def read(self, name: str) -> np.ndarray:
        weight = self._stored[name]
        tensor = _dequantize(self.path, weight.tensor)
        return _unpermute(tensor, weight.permuted_heads) if weight.permuted_heads else tensor

    def write_tokenizer(self, folder: Path) -> list[str]:
        return write_tokenizer(self._file.metadata, folder)


def _dequantize(path: Path, tensor: GGUFTensor) -> np.ndarray:
    """float32 values, by the gguf package's own routines."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    row = tensor.shape[-1]
    row_bytes = row // tensor.block_type.elements * tensor.block_type.nbytes
    rows = tensor.nbytes // row_bytes
    step = max(1, _CHUNK_BYTES // (4 * row))
    result = np.empty((rows, row), np.float32)
    try:
        with path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, rows, step):
                stop = min(start + step, rows)
                data = file.read((stop - start) * row_bytes)
                if len(data) != (stop - start) * row_bytes:
                    raise ModelFileError(f"{path}: tensor {tensor.name} ends early: the file changed while it was read")
                blocks = np.frombuffer(data, np.uint8).reshape(stop - start, row_bytes)
                with np.errstate(all="ignore"):  # a damaged scale may be infinite; that is the weights' check to make
                    result[start:stop] = dequantize(blocks, GGMLQuantizationType(tensor.type_id))
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    return result.reshape(tensor.shape)


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from ggml's rotary order (0 h 1 h+1 ...) to Hugging Face's (0 1 ... h h+1 ...); 2 h = head_dim.

    [heads * head_dim, ...]; the inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
