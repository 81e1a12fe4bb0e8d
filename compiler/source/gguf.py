"""A GGUF file as a source: tensors dequantized one at a time, under Hugging Face's names and in its layout."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import ModelFileError
from .gguf_config import build_config, build_generation_config, hugging_face_names
from .gguf_file import GGUFFile, GGUFTensor, open_gguf
from .gguf_tokenizer import write_tokenizer
from .source import TensorSpec, fingerprint_files

_CHUNK_BYTES = 8 << 20  # dequantized in row blocks of about this size, so that scratch memory stays small
_QUANTIZATION_SUFFIX = re.compile(r"[.-]((I?Q\d+|TQ\d+|MXFP4)(_\w+)?|B?F16|F32)$", re.IGNORECASE)
# llama.cpp's numbers of mixtures (`llama_ftype` in llama.h), of those whose blocks are read
_FILE_TYPES = {2: "q4_0", 3: "q4_1", 7: "q8_0", 8: "q5_0", 9: "q5_1", 10: "q2_k", 11: "q3_k_s", 12: "q3_k_m",
               13: "q3_k_l", 14: "q4_k_s", 15: "q4_k_m", 16: "q5_k_s", 17: "q5_k_m", 18: "q6_k",
               21: "q2_k_s", 25: "iq4_nl", 30: "iq4_xs"}  # fmt: skip


class GGUFSource:
    """Source over one GGUF file: `read` gives float32, `read_blocks` the file's own bytes.

    Raises ModelFileError for anything missing or damaged.
    """

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
        self.block_types: Mapping[str, str] = {
            name: weight.tensor.block_type.name.lower() for name, weight in self._stored.items()
        }
        self.file_type: str = _file_type(self._file)
        self.fingerprint: str = fingerprint_files([path])

    def read(self, name: str) -> np.ndarray:
        weight = self._stored[name]
        tensor = _dequantize(self.path, weight.tensor)
        return _unpermute(tensor, weight.permuted_heads) if weight.permuted_heads else tensor

    def read_blocks(self, name: str) -> np.ndarray:
        weight = self._stored[name]
        rows, row_bytes = _row_layout(weight.tensor)
        blocks = np.empty((rows, row_bytes), np.uint8)
        for start, part in _row_blocks(self.path, weight.tensor):
            blocks[start : start + len(part)] = part
        return _unpermute(blocks, weight.permuted_heads) if weight.permuted_heads else blocks

    def write_tokenizer(self, folder: Path) -> list[str]:
        return write_tokenizer(self._file.metadata, folder)


def _dequantize(path: Path, tensor: GGUFTensor) -> np.ndarray:
    """float32 values, by the gguf package's own routines."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    rows, _ = _row_layout(tensor)
    result = np.empty((rows, tensor.shape[-1]), np.float32)
    for start, blocks in _row_blocks(path, tensor):
        with np.errstate(all="ignore"):  # a damaged scale may be infinite; that is the weights' check to make
            result[start : start + len(blocks)] = dequantize(blocks, GGMLQuantizationType(tensor.type_id))
    return result.reshape(tensor.shape)


def _row_layout(tensor: GGUFTensor) -> tuple[int, int]:
    """Rows of a tensor, and bytes of a row."""
    row_bytes = tensor.shape[-1] // tensor.block_type.elements * tensor.block_type.nbytes
    return tensor.nbytes // row_bytes, row_bytes


def _row_blocks(path: Path, tensor: GGUFTensor) -> Iterator[tuple[int, np.ndarray]]:
    """The stored bytes of a few rows at a time: (first row, uint8 [rows, bytes of a row]). Raises ModelFileError."""
    rows, row_bytes = _row_layout(tensor)
    step = max(1, _CHUNK_BYTES // (4 * tensor.shape[-1]))
    try:
        with path.open("rb") as file:
            file.seek(tensor.offset)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                data = file.read(count * row_bytes)
                if len(data) != count * row_bytes:
                    raise ModelFileError(f"{path}: tensor {tensor.name} ends early: the file changed while it was read")
                yield start, np.frombuffer(data, np.uint8).reshape(count, row_bytes)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None


def _file_type(file: GGUFFile) -> str:
    """The mixture's name: what `general.file_type` says where it fits, else the type of most of the weights."""
    sizes: Counter[str] = Counter()
    for tensor in file.tensors.values():
        if tensor.block_type.elements > 1:
            sizes[tensor.block_type.name.lower()] += math.prod(tensor.shape)
    number = file.metadata.values.get("general.file_type")
    said = _FILE_TYPES.get(number, "") if isinstance(number, int) else ""
    if any(said.startswith(name) for name in sizes):
        return said
    return sizes.most_common(1)[0][0] if sizes else ""


def _unpermute(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from ggml's rotary order (0 h 1 h+1 ...) to Hugging Face's (0 1 ... h h+1 ...); 2 h = head_dim.

    [heads * head_dim, ...]; the inverse of `permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    pairs = weight.reshape(heads, weight.shape[0] // heads // 2, 2, *weight.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
