"""tokenizer.json is rewritten in a form that loads faster, and only where it stays the same tokenizer."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

from mlc_llm.compiler.tokenizer_form import quicken

VOCAB = {"z": 0, "a": 1, "b": 2, "ab": 3, "é": 4, "Ġ": 5, "Ġa": 6}
MERGES = [("a", "b"), ("Ġ", "a")]


def bpe(vocab: dict[str, int] = VOCAB, merges: list[tuple[str, str]] = MERGES) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_tokens([AddedToken("<|end|>", special=True), AddedToken("two words")])
    return tokenizer


def quickened(path: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    tokenizer.save(str(path))
    before = tokenizers.Tokenizer.from_file(str(path)).to_str()
    quicken(path)
    assert tokenizers.Tokenizer.from_file(str(path)).to_str() == before
    result: dict[str, Any] = json.loads(path.read_bytes())
    return result


def test_merges_become_texts_and_the_vocabulary_is_sorted(tmp_path: Path) -> None:
    model = quickened(tmp_path / "tokenizer.json", bpe())["model"]
    assert model["merges"] == ["a b", "Ġ a"]
    assert list(model["vocab"]) == ["a", "ab", "b", "z", "é", "Ġ", "Ġa"]


@pytest.mark.parametrize(
    "tokenizer",
    [bpe({**VOCAB, "a b": 7}, [*MERGES]), Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))],
    ids=["a token with a space", "no BPE"],
)
def test_other_tokenizers_stay_as_they_are(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    before = path.read_bytes()
    quicken(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"model": {"type": "BPE"}}', '{"model": {"type": "BPE", "vocab": {}}}']
)
def test_a_damaged_file_stays_for_others_to_complain_of(tmp_path: Path, content: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    quicken(path)
    assert path.read_text() == content
