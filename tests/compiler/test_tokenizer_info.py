"""Facts about a tokenizer, against what the tokenizers library does with the same file."""

import json
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from mlc_llm.compiler.tokenizer_info import (
    active_vocab_size,
    detect_tokenizer_info,
    read_tokenizer_json,
    token_id,
)
from mlc_llm.runtime.errors import ModelFileError

VOCAB = {"<unk>": 0, "<s>": 1, "\u2581": 2, "a": 3, "\u2581a": 4, "<0x0A>": 5}


def llama2_kind() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(VOCAB, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return backend


def metaspace_kind(prepend_scheme: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE(VOCAB, [("\u2581", "a")], unk_token="<unk>", byte_fallback=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace("\u2581", prepend_scheme)
    backend.decoder = decoders.Metaspace("\u2581", prepend_scheme)
    return backend


def byte_level_kind() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE({"a": 0, "\u0120": 1, "\u0120a": 2}, [("\u0120", "a")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


@pytest.mark.parametrize(
    ("backend", "method"),
    [
        (llama2_kind(), "byte_fallback"),
        (metaspace_kind("first"), "byte_fallback"),
        (metaspace_kind("never"), "byte_fallback"),
        (byte_level_kind(), "byte_level"),
    ],
    ids=["llama2", "metaspace-first", "metaspace-never", "byte-level"],
)
def test_spaces_are_told_as_the_tokenizer_treats_them(backend: tokenizers.Tokenizer, method: str) -> None:
    info = detect_tokenizer_info(json.loads(backend.to_str()))
    assert info.token_postproc_method == method
    tokens = backend.encode("a").tokens
    assert info.prepend_space_in_encode == (tokens == ["\u2581a"])
    with_space = backend.token_to_id("\u2581a") if method == "byte_fallback" else backend.token_to_id("\u0120a")
    assert info.strip_space_in_decode == (backend.decode([with_space]) == "a")


def test_the_active_vocabulary_ends_with_the_highest_id() -> None:
    backend = byte_level_kind()
    backend.add_special_tokens([AddedToken("<|end|>"), AddedToken("<|pad|>")])
    tokenizer = json.loads(backend.to_str())
    highest = max(backend.get_vocab(with_added_tokens=True).values())
    assert active_vocab_size(tokenizer, 4096) == highest + 1
    assert active_vocab_size(tokenizer, 4) == 4
    assert token_id(tokenizer, "<|pad|>") == backend.token_to_id("<|pad|>")
    assert token_id(tokenizer, "a") == backend.token_to_id("a")
    assert token_id(tokenizer, "nowhere") is None


def test_a_file_that_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    assert read_tokenizer_json(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"}')
    with pytest.raises(ModelFileError, match=r"tokenizer\.json has no object 'model'"):
        read_tokenizer_json(tmp_path)
