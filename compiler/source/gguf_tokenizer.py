"""tokenizer.json, tokenizer_config.json and chat_template.jinja, rebuilt from a GGUF file's metadata.

Two kinds: `tokenizer.ggml.model` "gpt2" is byte-level BPE with merges, "llama" is SentencePiece BPE with scores.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...runtime.errors import ModelFileError
from .gguf_file import Metadata
from .gguf_pretokenizer import PRE_TOKENIZERS
from .source import write_file

_SPACE = "\u2581"  # SentencePiece's visible space
_MAX_TOKEN_CHARACTERS = 1024  # bounds the work of finding merges, which is quadratic in it
# Token types of tokenizer.ggml.token_type.
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_SPECIAL_KEYS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SENTENCEPIECE_DEFAULTS = {"bos_token": 1, "eos_token": 2, "unk_token": 0}


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id, their types, and the special tokens' ids by Hugging Face's names (`bos_token`...)."""

    tokens: list[str]
    types: list[int]
    special: dict[str, int]

    def entries(self) -> dict[str, int]:
        """Token to id, without the placeholders that converters write for unused embedding rows."""
        return {
            token: index
            for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True))
            if not (kind == _UNUSED and token == f"[PAD{index}]")
        }


def write_tokenizer(metadata: Metadata, folder: Path) -> list[str]:
    """Write the tokenizer's files into `folder`; their names. Raises ModelFileError."""
    kind = metadata.text("tokenizer.ggml.model")
    if kind not in ("gpt2", "llama"):
        raise ModelFileError(
            f"{metadata.path} has tokenizer kind {kind!r:.100}; gpt2 (byte-level) and llama (SentencePiece) are read"
        )
    vocabulary = _read_vocabulary(metadata, kind)
    tokenizer, add_bos = (_byte_level if kind == "gpt2" else _sentencepiece)(metadata, vocabulary)
    add_bos = metadata.flag("tokenizer.ggml.add_bos_token", add_bos)
    add_eos = metadata.flag("tokenizer.ggml.add_eos_token", False)
    tokenizer["post_processor"] = _post_processor(metadata, vocabulary, add_bos, add_eos)
    text = json.dumps(tokenizer, ensure_ascii=False)
    _check_loads(metadata, text)
    files = {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(
            _config(metadata, vocabulary, add_bos, add_eos), indent=2, ensure_ascii=False
        ),
    }
    if "tokenizer.chat_template" in metadata:
        files["chat_template.jinja"] = metadata.text("tokenizer.chat_template")
    for name, content in files.items():
        write_file(folder / name, content.encode())
    return list(files)


def _read_vocabulary(metadata: Metadata, kind: str) -> Vocabulary:
    tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(metadata.strings("tokenizer.ggml.tokens"))]
    if len(set(tokens)) != len(tokens):
        raise ModelFileError(f"{metadata.path}: the same token has two ids in tokenizer.ggml.tokens")
    if (longest := max((len(token) for token in tokens), default=0)) > _MAX_TOKEN_CHARACTERS:
        raise ModelFileError(
            f"{metadata.path}: a token has {longest} characters, at most {_MAX_TOKEN_CHARACTERS} are read"
        )
    types = [_NORMAL] * len(tokens)
    if "tokenizer.ggml.token_type" in metadata:
        types = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens)).tolist()
    special = dict(_SENTENCEPIECE_DEFAULTS) if kind == "llama" else {}
    for name, key in _SPECIAL_KEYS.items():
        key = f"tokenizer.ggml.{key}_token_id"
        if key in metadata and metadata.values[key] != 0xFFFFFFFF:  # -1: none
            special[name] = metadata.integer(key)
    for name, index in special.items():
        if index >= len(tokens):
            raise ModelFileError(f"{metadata.path}: {name} is id {index}, the vocabulary has {len(tokens)} tokens")
    return Vocabulary(tokens, types, special)


def _numbers(metadata: Metadata, key: str, count: int) -> np.ndarray:
    values = metadata.numbers(key)
    if len(values) != count:
        raise ModelFileError(f"{metadata.path}: {key} has {len(values)} entries for {count} tokens")
    return values


def _byte_level(metadata: Metadata, vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    """tokenizer.json of a byte-level BPE, and whether it starts texts with the beginning token by default."""
    pre = metadata.values.get("tokenizer.ggml.pre")
    if pre is None:
        raise ModelFileError(
            f"{metadata.path} has no tokenizer.ggml.pre, which says how text is split: convert the model again"
            " with a llama.cpp of May 2024 or later"
        )
    if pre not in PRE_TOKENIZERS:
        raise ModelFileError(
            f"{metadata.path} has tokenizer.ggml.pre {pre!r:.100}; known are: {', '.join(PRE_TOKENIZERS)}"
        )
    rule = PRE_TOKENIZERS[pre]
    vocab = vocabulary.entries()
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": rule.normalizer,
        "pre_tokenizer": rule.to_json(),
        "post_processor": None,
        "decoder": byte_level,
        "model": _bpe(vocab, _stored_merges(metadata, vocab), ignore_merges=rule.ignore_merges),
    }, rule.add_bos


def _sentencepiece(metadata: Metadata, vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    """tokenizer.json of a SentencePiece BPE in the form that Llama 2's own has: the dummy prefix is a normalizer."""
    if "tokenizer.ggml.precompiled_charsmap" in metadata:
        raise ModelFileError(f"{metadata.path} normalizes text by a precompiled character map, which is not supported")
    prefix = metadata.flag("tokenizer.ggml.add_space_prefix", True)
    vocab = vocabulary.entries()
    if "tokenizer.ggml.merges" in metadata:
        merges = _stored_merges(metadata, vocab)
    else:
        merges = _merges_from_scores(vocabulary, _numbers(metadata, "tokenizer.ggml.scores", len(vocabulary.tokens)))
    normalizers: list[dict[str, Any]] = []
    if metadata.flag("tokenizer.ggml.remove_extra_whitespaces", False):
        normalizers += [_replace({"Regex": "^ +| +$"}, ""), _replace({"Regex": " {2,}"}, " ")]
    normalizers += [{"type": "Prepend", "prepend": _SPACE}] if prefix else []
    normalizers.append(_replace({"String": " "}, _SPACE))
    decoders = [_replace({"String": _SPACE}, " "), {"type": "ByteFallback"}, {"type": "Fuse"}]
    decoders += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    has_bytes = all(f"<0x{byte:02X}>" in vocab for byte in range(256))
    unknown = vocabulary.tokens[vocabulary.special["unk_token"]]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": _added_tokens(vocabulary),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": _bpe(vocab, merges, unk_token=unknown, fuse_unk=True, byte_fallback=has_bytes),
    }, True


def _replace(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def _bpe(vocab: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> dict[str, Any]:
    defaults = {"unk_token": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False}
    fixed = {"dropout": None, "continuing_subword_prefix": None, "end_of_word_suffix": None}
    return {"type": "BPE", **fixed, **defaults, **options, "vocab": vocab, "merges": [list(pair) for pair in merges]}


def _added_tokens(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Tokens that are found whole in a text before anything else: control tokens (special) and user-defined ones."""
    named = set(vocabulary.special.values())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": index, "content": token, **flags, "special": kind != _USER_DEFINED}
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (_CONTROL, _USER_DEFINED) or index in named
    ]


def _stored_merges(metadata: Metadata, vocab: dict[str, int]) -> list[tuple[str, str]]:
    """`tokenizer.ggml.merges`, one "left right" each; both and their union must be tokens."""
    merges = []
    for merge in metadata.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not (left in vocab and right in vocab and left + right in vocab):
            raise ModelFileError(f"{metadata.path}: merge {merge!r:.100} is not of two tokens into a third")
        merges.append((left, right))
    return merges


def _merges_from_scores(vocabulary: Vocabulary, scores: np.ndarray) -> list[tuple[str, str]]:
    """The merges that make a BPE choose as SentencePiece does: the pair whose union scores highest comes first.

    As transformers' `generate_merges`; of several pairs with one union, the longer left part comes first.
    """
    mergeable = {
        token: index
        for index, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in (_NORMAL, _USER_DEFINED)
    }
    merges = [
        (-float(scores[index]), -cut, token[:cut], token[cut:])
        for token, index in mergeable.items()
        for cut in range(1, len(token))
        if token[:cut] in mergeable and token[cut:] in mergeable
    ]
    merges.sort(key=lambda merge: merge[:2])
    return [(left, right) for _, _, left, right in merges]


def _post_processor(metadata: Metadata, vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> dict[str, Any] | None:
    """The template that puts the beginning and end tokens around a text, where the model wants them."""
    wanted = {"bos_token": add_bos, "eos_token": add_eos}
    ids: dict[str, int] = {}
    for name, want in wanted.items():
        if want and name not in vocabulary.special:
            raise ModelFileError(f"{metadata.path} asks for {name}s around texts but has no {name}_id")
        if want:
            ids[name] = vocabulary.special[name]
    if not ids:
        return None

    def around(sequence: str, type_id: int) -> list[dict[str, Any]]:
        middle = [{"Sequence": {"id": sequence, "type_id": type_id}}]
        mark = {
            name: [{"SpecialToken": {"id": vocabulary.tokens[index], "type_id": type_id}}]
            for name, index in ids.items()
        }
        return [*mark.get("bos_token", []), *middle, *mark.get("eos_token", [])]

    tokens = {vocabulary.tokens[index]: index for index in ids.values()}
    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]} for token, index in tokens.items()},
    }


def _config(metadata: Metadata, vocabulary: Vocabulary, add_bos: bool, add_eos: bool) -> dict[str, Any]:
    """tokenizer_config.json; the class is the one that takes tokenizer.json as it stands."""
    architecture = metadata.text("general.architecture")
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "add_eos_token": add_eos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": metadata.integer(f"{architecture}.context_length", low=1),
        **{name: vocabulary.tokens[index] for name, index in vocabulary.special.items()},
    }
    if "tokenizer.chat_template" in metadata:
        config["chat_template"] = metadata.text("tokenizer.chat_template")
    return config


def _check_loads(metadata: Metadata, text: str) -> None:
    """A tokenizer.json that the tokenizers package refuses comes from a damaged file: said here, not at run time."""
    from tokenizers import Tokenizer

    try:
        Tokenizer.from_str(text)
    except Exception as error:  # the package raises nothing more specific
        raise ModelFileError(
            f"{metadata.path}: its tokenizer cannot be rebuilt ({' '.join(str(error).split()):.200})"
        ) from None
