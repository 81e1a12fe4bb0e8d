"""A Hugging Face model folder: config.json, tokenizer files, one or several `*.safetensors`."""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ...runtime.artifact import CHAT_CONFIG_NAME, TOKENIZER_FILES, read_json, read_tokenizer_file
from ...runtime.errors import ModelFileError
from .safetensors_file import StoredTensor, read_header
from .source import TensorSpec, fingerprint_files, write_file

CONFIG_NAME = "config.json"
GENERATION_CONFIG_NAME = "generation_config.json"
SINGLE_FILE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
# Of the tokenizer's files, the sets of which one is enough.
_SUFFICIENT_TOKENIZERS = ({"tokenizer.json"}, {"tokenizer.model"}, {"vocab.json", "merges.txt"})
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_SHARD_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")


class HuggingFaceSource:
    """Source over a local folder in Hugging Face's layout. Raises ModelFileError for anything missing or damaged."""

    def __init__(self, folder: Path, *, name: str | None = None) -> None:
        self.folder = folder
        self.name: str = name or folder.resolve().name or "model"
        self.config: dict[str, Any] = _read_object(folder / CONFIG_NAME, "Hugging Face model configuration")
        self.generation_config: dict[str, Any] = {}
        if (folder / GENERATION_CONFIG_NAME).exists():
            self.generation_config = _read_object(folder / GENERATION_CONFIG_NAME, "generation configuration")
        shards, promised = _find_shards(folder)
        self._stored = _read_shards(shards, promised)
        self.tensors: Mapping[str, TensorSpec] = {name: stored.spec for name, stored in self._stored.items()}
        extras = (CONFIG_NAME, GENERATION_CONFIG_NAME, INDEX_NAME, *TOKENIZER_FILES)
        self.fingerprint: str = fingerprint_files(
            [*(folder / extra for extra in extras if (folder / extra).exists()), *shards]
        )

    def read(self, name: str) -> np.ndarray:
        return self._stored[name].read()

    def write_tokenizer(self, folder: Path) -> list[str]:
        names = [name for name in TOKENIZER_FILES if (self.folder / name).is_file()]
        if not any(needed <= set(names) for needed in _SUFFICIENT_TOKENIZERS):
            raise ModelFileError(
                f"{self.folder} has no tokenizer (found: {', '.join(names) or 'none of its files'}):"
                " expected tokenizer.json, tokenizer.model or vocab.json with merges.txt"
            )
        for name in names:
            write_file(folder / name, read_tokenizer_file(self.folder / name))
        return names


def _read_object(path: Path, what: str) -> dict[str, Any]:
    if path.name == CONFIG_NAME and not path.exists():
        if (path.parent / CHAT_CONFIG_NAME).exists():
            raise ModelFileError(
                f"{path.parent} is a compiled model ({CHAT_CONFIG_NAME}), not source weights: expected a {CONFIG_NAME}"
            )
        if gguf := sorted(path.parent.glob("*.gguf")):
            raise ModelFileError(f"{path.parent} has no {CONFIG_NAME} but GGUF files: name one of them, as {gguf[0]}")
        raise ModelFileError(f"{path.parent} has no {CONFIG_NAME}: expected the folder of a Hugging Face model, or a "
                             f"compiled one ({CHAT_CONFIG_NAME})")  # fmt: skip
    value = read_json(path, what)
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a {type(value).__name__}; a {what} is a JSON object")
    return value


def _find_shards(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The weight files in order, and which tensor the index promises in which, where there is one.

    As transformers: model.safetensors, or what the index names, or else every *.safetensors there is.
    """
    if (folder / SINGLE_FILE_NAME).exists():
        return [folder / SINGLE_FILE_NAME], {}
    if (folder / INDEX_NAME).exists():
        return _shards_of_index(folder / INDEX_NAME)
    shards = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not shards:
        raise ModelFileError(
            f"{folder} has no *.safetensors{_what_else(folder)}: only safetensors and GGUF are read (no pickle): "
            "save the model again with transformers' save_pretrained"
        )
    for path in shards:
        if (match := _SHARD_NAME.fullmatch(path.name)) is None:
            continue
        for number in range(1, int(match["count"]) + 1):
            sibling = f"{match['stem']}-{number:05d}-of-{match['count']}.safetensors"
            if not (folder / sibling).exists():
                raise ModelFileError(f"{folder} lacks {sibling}, which {path.name} says there is: download it")
    return shards, {}


def _what_else(folder: Path) -> str:
    found = sorted(path.name for path in folder.iterdir() if path.suffix in (*PICKLE_SUFFIXES, ".gguf"))
    return f" (found {', '.join(found[:3])})" if found else ""


def _shards_of_index(path: Path) -> tuple[list[Path], dict[str, str]]:
    weight_map = _read_object(path, "safetensors index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{path} has no weight_map: expected one from tensor names to file names")
    names = sorted({_checked_name(path, name) for name in weight_map.values()})
    for name in names:
        if not (path.parent / name).exists():
            raise ModelFileError(f"{path.parent} lacks {name}, which {path.name} names: download it")
    return [path.parent / name for name in names], weight_map


def _checked_name(index: Path, name: Any) -> str:
    """A shard's file name, refused if it could point outside the folder."""
    if not isinstance(name, str) or not name.endswith(".safetensors") or "\\" in name or not name.isprintable():
        raise ModelFileError(
            f"{index} names {name!r:.200} as a weight file; expected a *.safetensors of its own folder"
        )
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or ":" in name:
        raise ModelFileError(f"{index} names {name:.200}, which is outside its own folder")
    return name


def _read_shards(shards: list[Path], promised: dict[str, str]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for path in shards:
        for tensor in read_header(path):
            if tensor.name in stored:
                raise ModelFileError(f"tensor {tensor.name} is both in {stored[tensor.name].path} and in {path}")
            stored[tensor.name] = tensor
    for name, file in promised.items():
        if name not in stored or stored[name].path.name != PurePosixPath(file).name:
            raise ModelFileError(
                f"{shards[0].parent}: {INDEX_NAME} names tensor {name!r:.200} in {file:.200}, which does not hold it"
            )
    if not stored:
        raise ModelFileError(f"{shards[0]} holds no tensors")
    return stored
