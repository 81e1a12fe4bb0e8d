# ruff: noqa: RUF012 - Record copies defaults that are lists and dicts
"""The contract between compiler and runtime: `mlc-chat-config.json`, `tensor-cache.json`, the library's `_metadata`."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, Literal

from .errors import ModelFileError
from .record import Record, RecordError

CHAT_CONFIG_NAME = "mlc-chat-config.json"
TENSOR_CACHE_NAME = "tensor-cache.json"
TENSOR_CACHE_OLD_NAME = "ndarray-cache.json"
FOLDER_SUFFIX = "-MLC"  # of a model folder's name
HUB_PREFIX = "HF://"  # of the address of a model on the Hugging Face hub
# What a tokenizer may consist of.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
LIBRARY_SUFFIX = ".dylib" if sys.platform == "darwin" else ".so"  # of a model library for this machine
MAX_JSON_BYTES = 256 << 20  # bounds what is read before it is parsed


def is_address(model: str) -> bool:
    """Whether a model is named by `HF://`, in any case."""
    return model[: len(HUB_PREFIX)].upper() == HUB_PREFIX


def cache_home() -> Path:
    """Where downloads, and models compiled by name, are kept: MLC_LLM_HOME, else the user's cache folder."""
    if home := os.environ.get("MLC_LLM_HOME"):
        return Path(home).expanduser()
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData/Local") / "mlc_llm"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mlc_llm"


class TokenizerInfo(Record):
    """How token strings become text (MLC's `tokenizer_info`)."""

    _keep_unknown = True
    token_postproc_method: Literal["byte_fallback", "byte_level", "raw"] = "byte_fallback"
    prepend_space_in_encode: bool = False
    strip_space_in_decode: bool = False


class EmbeddingMetadata(Record):
    """How hidden states become embeddings (MLC's `embedding_metadata`)."""

    _keep_unknown = True
    model_type: Literal["encoder", "decoder"] = "decoder"
    pooling_strategy: Literal["cls", "mean", "last"]
    normalize: bool = True


class ChatConfig(Record):
    """`mlc-chat-config.json`, MLC's schema 0.1.0 plus `prompt_format`."""

    _keep_unknown = True
    _names = {"architecture": "model_config"}
    _least = {"vocab_size": 1}
    version: str = "0.1.0"
    model_type: str
    quantization: str
    architecture: dict[str, Any]
    vocab_size: int
    context_window_size: int
    sliding_window_size: int = -1
    prefill_chunk_size: int
    attention_sink_size: int = -1
    tensor_parallel_shards: int = 1
    pipeline_parallel_stages: int = 1
    active_vocab_size: int | None = None
    temperature: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    top_p: float = 1.0
    tokenizer_files: list[str] = []
    tokenizer_info: TokenizerInfo | None = None
    conv_template: dict[str, Any] | str | None = None  # early folders name one of MLC's templates
    # Ours: which of the folder's two prompt formats is authoritative. Absent in folders that MLC published:
    # then `conv_template` is used where it is an object, else the tokenizer's Jinja template.
    prompt_format: Literal["jinja", "conv_template"] | None = None
    # Ours: the format of each matrix where a GGUF file's blocks were kept; null for MLC's schemes.
    weight_formats: dict[str, str] | None = None
    pad_token_id: int = 0
    bos_token_id: int | None = 1
    eos_token_id: int | list[int] = 2
    model_task: str = "chat"
    embedding_metadata: EmbeddingMetadata | None = None

    def to_json(self) -> str:
        return json.dumps(self.model_dump(by_alias=True), indent=2, ensure_ascii=False) + "\n"


class TensorRecord(Record):
    """One tensor inside a shard: raw little-endian bytes at `byteOffset`."""

    _keep_unknown = True
    _least = {"nbytes": 0, "byteOffset": 0}
    name: str
    shape: list[int]
    dtype: str
    format: str = "f32-to-bf16"
    nbytes: int
    byteOffset: int


class ShardRecord(Record):
    """One `params_shard_*.bin` file."""

    _keep_unknown = True
    _least = {"nbytes": 0}
    dataPath: str
    format: str = "raw-shard"
    nbytes: int
    md5sum: str | None = None
    records: list[TensorRecord]


class TensorCache(Record):
    """`tensor-cache.json` (older folders: `ndarray-cache.json`)."""

    metadata: dict[str, Any] = {}
    records: list[ShardRecord]


class Preproc(Record):
    """A function of the library that turns a parameter as stored into the layout that its kernels read.

    Called as `func(stored_parameter, packed_parameter)`: destination-passing, both tensors on the device. A stored
    bfloat16 tensor is passed as its bits, uint16.
    """

    func_name: str
    in_shape: list[int]
    out_shape: list[int]
    out_dtype: str


class ParamMetadata(Record):
    """A parameter of the library in MLC's at-rest naming, shape and dtype; `preprocs` are applied in order at load.

    What comes of it is given to the library's functions whole, or in `pieces`, one after another: so many elements of
    its first axis each.
    """

    name: str
    shape: list[int]
    dtype: str
    preprocs: list[Preproc] = []
    pieces: list[int] = []


KVDtype = Literal["float32", "float16", "int8"]


class KVCacheMetadata(Record):
    """Geometry of the paged KV cache, of which the runtime makes it. `dtype` is the storage type of keys and values;
    int8 comes with a float32 scale for each row of `head_dim`."""

    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    dtype: KVDtype = "float16"
    page_size: int = 16
    sheet_pages: int = 1  # pages that lie together in memory

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values that one token takes over all layers."""
        row = {"float32": 4 * self.head_dim, "float16": 2 * self.head_dim, "int8": self.head_dim + 4}[self.dtype]
        return self.num_hidden_layers * 2 * self.num_key_value_heads * row


class LibraryMetadata(Record):
    """What a model library says of itself (`_metadata()` returns it as JSON): MLC's fields plus ours."""

    _keep_unknown = True
    model_type: str
    quantization: str
    context_window_size: int
    sliding_window_size: int = -1
    attention_sink_size: int = -1
    prefill_chunk_size: int
    tensor_parallel_shards: int = 1
    pipeline_parallel_stages: int = 1
    disaggregation: bool = False
    kv_state_kind: Literal["kv_cache", "rnn_state", "hybrid", "none"] = "kv_cache"
    max_batch_size: int
    vocab_size: int
    active_vocab_size: int
    model_task: str = "chat"
    kv_cache: KVCacheMetadata
    params: list[ParamMetadata]
    memory_usage: dict[str, int] = {}
    # Ours:
    interface: Literal["5"]  # how functions are called: 5 takes token ids, chooses tokens, on a KV cache of the runtime
    package_version: str
    tvm_version: str
    device: str  # the --device name, as "cpu"
    target: dict[str, Any]  # TVM target as JSON, as {"kind": "llvm", "mcpu": "znver4", ...}
    cpu_features: list[str] = []  # instruction sets the host code needs, in /proc/cpuinfo's spelling
    host_triple: str  # as "x86_64-linux-gnu"
    model_hash: str  # model_hash() of the folder this library was compiled for


SAMPLING_BLOCK = 64  # logits that each number of a library's functions "block_max" and "block_exp_sum" stands for
# int32 words by which "adjust_and_sample" is told what to change: see compiler/kernels/gpu/sample_adjust.py
CHANGED_ROW_WORDS, CHANGE_WORDS = 4, 4

# What says which model a configuration is. Sampling defaults, templates and tokenizers do not; nor do the sizes below,
# which a library may be compiled with others of (`mlc compile FOLDER --overrides`) and whose own are in its metadata.
_HASHED_FIELDS = ("model_type", "quantization", "vocab_size")
_SIZES = frozenset(
    [
        "context_window_size",
        "sliding_window_size",
        "attention_sink_size",
        "prefill_chunk_size",
        "max_batch_size",
        "kv_cache_dtype",
        "tensor_parallel_shards",
        "pipeline_parallel_stages",
        "disaggregation",
    ]
)


def model_hash(config: ChatConfig) -> str:
    """Hash of the parts of a folder's config that identify the model of a library: sha256, 16 hex digits."""
    fields = {name: getattr(config, name) for name in _HASHED_FIELDS}
    if config.weight_formats is not None:
        fields["weight_formats"] = config.weight_formats
    architecture = {name: value for name, value in config.architecture.items() if name not in _SIZES}
    text = json.dumps({"architecture": architecture, **fields}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def library_name(folder: Path, device: str, suffix: str = LIBRARY_SUFFIX) -> str:
    """The file name of a model folder's library: the folder's, without -MLC, and the device."""
    return f"{folder.resolve().name.removesuffix(FOLDER_SUFFIX)}-{device}{suffix}"


def cached_library(folder: Path, config: ChatConfig, device: str, suffix: str = LIBRARY_SUFFIX) -> Path:
    """Where the library of a model folder is in the cache folder, if it is not kept beside the folder."""
    stem = folder.resolve().name.removesuffix(FOLDER_SUFFIX)
    return cache_home() / "model_lib" / f"{stem}-{model_hash(config)}-{device}{suffix}"


def library_places(folder: Path, config: ChatConfig, device: str) -> list[Path]:
    """Where the library of a model folder is looked for, the likeliest place first."""
    inside = sorted(folder.glob(f"*-{device}{LIBRARY_SUFFIX}"))
    beside = folder.resolve().parent / "libs" / library_name(folder, device)
    return [*(inside if len(inside) == 1 else []), beside, cached_library(folder, config, device)]


def read_tokenizer_file(path: Path) -> bytes:
    """The bytes of a tokenizer's file. Raises ModelFileError where it is too large or cannot be read."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {size} bytes; a tokenizer file has at most {MAX_JSON_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None


def read_json(path: Path, what: str) -> Any:
    """Parse a bounded JSON file. Raises ModelFileError in one line."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelFileError(f"{path} has {size} bytes; a {what} has at most {MAX_JSON_BYTES}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFileError(f"{path} is missing: expected a {what}") from None
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path} is not valid JSON ({error}): expected a {what}") from None


def load_chat_config(folder: Path) -> ChatConfig:
    """Read and check `mlc-chat-config.json` of a model folder. Raises ModelFileError."""
    path = folder / CHAT_CONFIG_NAME
    try:
        return ChatConfig.model_validate(read_json(path, "model configuration (run `mlc compile` to make one)"))
    except RecordError as error:
        raise ModelFileError(f"{path}: {error}") from None


def load_tensor_cache(folder: Path) -> tuple[Path, TensorCache]:
    """Read the folder's weight index under its new or its old name. Raises ModelFileError."""
    path = folder / TENSOR_CACHE_NAME
    if not path.exists() and (folder / TENSOR_CACHE_OLD_NAME).exists():
        path = folder / TENSOR_CACHE_OLD_NAME
    try:
        return path, TensorCache.model_validate(read_json(path, "weight index (compile or download the model again)"))
    except RecordError as error:
        raise ModelFileError(f"{path}: {error}") from None
