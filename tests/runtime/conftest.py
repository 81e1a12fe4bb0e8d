"""Small tokenizers of the two kinds that models have, built by the packages that define them."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from mlc_llm.runtime.tokenizer import Tokenizer

CORPUS = [
    "The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox.",
    "In the beginning there was the word; and the words were many, many more than 1234567890.",
    "Der schnelle braune Fuchs springt über den faulen Hund. Ça va très bien, merci à tous.",
    "def main(argv):\n    for arg in argv:\n        print(arg, end='\\n')\n",
    "日本語の文章です。 你好,世界! 😀 😀 👩‍👩‍👧 naïve café",
]
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def byte_level_backend() -> tokenizers.Tokenizer:
    """A byte-level BPE as GPT-2, Llama 3 and Qwen have it, with special and other added tokens."""
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("｜é▁", normalized=False)])
    return backend


@pytest.fixture(scope="session")
def byte_level(byte_level_backend: tokenizers.Tokenizer) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_str(byte_level_backend.to_str()))


def sentencepiece_like(prefix: bool) -> tokenizers.Tokenizer:
    """A BPE with byte fallback as Llama 2 (with a space put before texts) and Gemma (without) have it."""
    words = ["the", "he", "th", "qu", "▁the", "▁t", "▁a", "▁▁", "▁▁▁▁", "fox", "fo", "日本", "語"]
    characters = sorted({character for word in words for character in word} | set("abcdefghijklmnopqrstuvwxyz.,é"))
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *characters]
    names += [word for word in sorted(words, key=len) if word not in names]
    vocab = {name: index for index, name in enumerate(names)}
    merges = [("t", "h"), ("h", "e"), ("th", "e"), ("q", "u"), ("▁", "the"), ("▁", "t"), ("▁", "a")]
    merges += [("▁", "▁"), ("▁▁", "▁▁"), ("f", "o"), ("fo", "x"), ("日", "本")]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps: list[decoders.Decoder] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.add_tokens([AddedToken("[TOOL]", normalized=False)])
    return backend


def metaspace(prepend_scheme: str) -> tokenizers.Tokenizer:
    """A unigram model with the Metaspace decoder, as T5 and early Llama conversions have it."""
    pieces = ["<unk>", "▁", "▁the", "▁fox", "the", "fox", "▁▁", "é", "日本", "▁a▁b"]
    backend = tokenizers.Tokenizer(models.Unigram([(piece, -float(i)) for i, piece in enumerate(pieces)], 0, False))
    backend.normalizer = normalizers.Replace(Regex(" {3,}"), "  ")
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    backend.add_special_tokens(["<unk>"])
    return backend


def word_level() -> tokenizers.Tokenizer:
    """Words without a decoder, as toy models have them."""
    vocab = {word: index for index, word in enumerate(["[UNK]", "the", "fox", "é", "日本"])}
    backend = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return backend


@pytest.fixture(scope="session")
def backends(byte_level_backend: tokenizers.Tokenizer) -> dict[str, tokenizers.Tokenizer]:
    """Every kind of tokenizer by name."""
    return {
        "byte_level": byte_level_backend,
        "sentencepiece": sentencepiece_like(prefix=True),
        "sentencepiece_without_prefix": sentencepiece_like(prefix=False),
        "metaspace": metaspace("always"),
        "metaspace_without_prefix": metaspace("never"),
        "word_level": word_level(),
    }


@pytest.fixture(scope="session", params=["bpe", "bpe_without_prefix", "unigram"])
def sentencepiece_file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model with byte fallback that SentencePiece itself trained; BPE is as Llama 2 or Gemma has it."""
    model_type, _, without_prefix = request.param.partition("_")
    folder = tmp_path_factory.mktemp(request.param)
    exact: dict[str, Any] = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS[:4] * 8 + CORPUS[4:]),
        model_prefix=str(folder / "tokenizer"),
        model_type=model_type,
        add_dummy_prefix=not without_prefix,
        vocab_size=380,
        byte_fallback=True,
        character_coverage=0.98,
        user_defined_symbols=["[TOOL]"],
        hard_vocab_limit=False,
        minloglevel=2,
        **(exact if model_type == "bpe" else {}),
    )
    return folder / "tokenizer.model"
