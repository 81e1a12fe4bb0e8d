"""Tokenizers rebuilt from GGUF metadata give the reference's token ids."""

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers.integrations.gguf import gguf_tokenizer_mapping

from mlc_llm.compiler.source import open_source
from mlc_llm.compiler.source.gguf_pretokenizer import PRE_TOKENIZERS
from mlc_llm.runtime.errors import ModelFileError

Rebuild = Callable[..., Path]
TEXTS = [
    "",
    " ",
    "Hello, world!",
    "  two  spaces and a tab\there\n\nnew paragraph\r\n",
    "It's I'LL we'Re 'tis don't",
    "1 22 333 4444 55555 3.14159 2024-05-01",
    "naïve café Ünïcödé e\u0301 ﬁ",
    "日本語のテキスト 中文 한국어 ไทย العربية",
    "🙂👩‍👩‍👧 ∑∞≠ \u00a0\u3000",
    "def f(x):\n    return x**2  # comment\n",
    "<|im_start|>user\nhi<|im_end|>\n",
    "a" * 50 + " " * 20 + "!" * 10,
]


@pytest.fixture(scope="module")
def corpus(request: pytest.FixtureRequest) -> list[str]:
    """Text to train small vocabularies on: this repository's licence and this file's texts."""
    licence = (Path(__file__).parents[3] / "LICENSE").read_text().splitlines()
    return [line for line in licence if line.strip()] + TEXTS * 5


@pytest.fixture
def rebuild(tmp_path: Path, write_gguf: Any, metadata: dict[str, Any]) -> Rebuild:
    """rebuild(**{"tokenizer.ggml.x": ...}): the folder with the tokenizer of a file of these keys."""

    def write(changes: dict[str, Any]) -> Path:
        kept = {key: value for key, value in metadata.items() if not key.startswith("tokenizer.")}
        rows = len(changes.get("tokenizer.ggml.tokens", [])) or 1
        tensors = {"token_embd.weight": np.zeros((rows, 64), np.float32)}
        source = open_source(str(write_gguf(tmp_path / "x.gguf", kept | changes, tensors)))
        folder = tmp_path / "folder"
        folder.mkdir(exist_ok=True)
        names = source.write_tokenizer(folder)
        assert sorted(names) == sorted(path.name for path in folder.iterdir())
        return folder

    return write


def load(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


# Byte-level BPE -------------------------------------------------------------------------------------------------------


def split(regex: str) -> Any:
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def words(*before: Any) -> Any:
    return pre_tokenizers.Sequence([*before, pre_tokenizers.ByteLevel(add_prefix_space=False)])


# Built with the tokenizers package as the models' own files have it; the regexes are transformers'.
REFERENCES = {
    **{name: split(regex) for name, regex in gguf_tokenizer_mapping.GGUF_PRE_TOKENIZER_SPLITS.items()},
    "smollm": words(pre_tokenizers.Digits(individual_digits=True)),
    "gpt-2": words(),
    "falcon3": pre_tokenizers.Sequence(
        [pre_tokenizers.Punctuation("contiguous"), words(), pre_tokenizers.Digits(individual_digits=True)]
    ),
}


def train_byte_level(pre_tokenizer: Any, corpus: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|im_start|>", "<|im_end|>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def byte_level_metadata(tokenizer: Tokenizer, pre: str) -> dict[str, Any]:
    size = tokenizer.get_vocab_size()
    special = {"<|im_start|>": 3, "<|im_end|>": 3, "<tool>": 4}
    tokens = [tokenizer.id_to_token(index) for index in range(size)]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": [*tokens, f"[PAD{size}]"],
        "tokenizer.ggml.token_type": [*(special.get(token, 1) for token in tokens), 5],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
    }


@pytest.mark.parametrize("pre", sorted(set(REFERENCES) & set(PRE_TOKENIZERS)))
def test_byte_level_ids_are_those_of_the_reference(pre: str, corpus: list[str], rebuild: Rebuild) -> None:
    reference = train_byte_level(REFERENCES[pre], corpus)
    if PRE_TOKENIZERS[pre].normalizer:
        reference.normalizer = normalizers.NFC()
    ours = load(rebuild(byte_level_metadata(reference, pre)))
    assert ours.get_vocab() == reference.get_vocab()  # the [PAD] placeholder is not a token
    for text in [*TEXTS, "call <tool> now"]:
        ids = reference.encode(text).ids
        assert ours.encode(text).ids == ids, text
        assert ours.decode(ids, skip_special_tokens=False) == reference.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        # From the models' own documentation of their splitting rules: words, digits and punctuation in each family.
        ("starcoder", "ab12 c", ["ab", "1", "2", " c"]),
        ("refact", "ab12 c", ["ab", "1", "2", " c"]),
        ("command-r", "ab12 c", ["ab", "1", "2", " c"]),
        ("falcon", "a,b 12345", ["a", ",", "b", " ", "123", "45"]),
        ("default", "a,b 12345", ["a", ",", "b", " ", "123", "45"]),
        ("deepseek-llm", "ab 12, c\n", ["ab", " ", "1", "2", ",", " c", "\n"]),
        ("deepseek-coder", "ab 12, c\n", ["ab", " ", "1", "2", ",", " c", "\n"]),
        ("deepseek-v3", "ab 1234,c\n", ["ab", " ", "123", "4", ",c", "\n"]),
        ("deepseek-v3", "中文ab", ["中文", "ab"]),
    ],
)
def test_other_rules_split_as_documented(
    pre: str, text: str, pieces: list[str], corpus: list[str], rebuild: Rebuild
) -> None:
    ours = load(rebuild(byte_level_metadata(train_byte_level(words(), corpus), pre)))
    assert ours.pre_tokenizer is not None
    split = ours.pre_tokenizer.pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in split] == pieces


def test_every_rule_loads_and_decodes_what_it_encodes(corpus: list[str], rebuild: Rebuild) -> None:
    for pre, rule in PRE_TOKENIZERS.items():
        ours = load(rebuild(byte_level_metadata(train_byte_level(words(), corpus), pre)))
        for text in TEXTS:
            expected = normalizers.NFC().normalize_str(text) if rule.normalizer else text
            assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == expected, pre


def test_a_whole_word_needs_no_merges_where_the_model_says_so(rebuild: Rebuild, corpus: list[str]) -> None:
    reference = train_byte_level(words(), corpus)
    changes = byte_level_metadata(reference, "llama-bpe")
    changes["tokenizer.ggml.tokens"][-1] = "Zebra"
    changes["tokenizer.ggml.token_type"][-1] = 1
    assert load(rebuild(changes)).encode("Zebra").tokens == ["Zebra"]
    assert len(load(rebuild(changes | {"tokenizer.ggml.pre": "gpt-2"})).encode("Zebra").tokens) > 1


def test_transformers_loads_the_folder_with_special_tokens_and_template(rebuild: Rebuild, corpus: list[str]) -> None:
    reference = train_byte_level(REFERENCES["smollm"], corpus)
    template = "{% for message in messages %}<|im_start|>{{ message['content'] }}<|im_end|>{% endfor %}"
    folder = rebuild(byte_level_metadata(reference, "smollm") | {"tokenizer.chat_template": template})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|im_start|>", "<|im_end|>")
    assert tokenizer.model_max_length == 128
    assert tokenizer.encode("Hello 12") == reference.encode("Hello 12").ids
    text = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert text == "<|im_start|>hi<|im_end|>"
    assert (folder / "chat_template.jinja").read_text() == template
    assert json.loads((folder / "tokenizer_config.json").read_text())["chat_template"] == template


@pytest.mark.parametrize(("add_bos", "add_eos"), [(True, False), (True, True), (False, True)])
def test_beginning_and_end_tokens_go_where_the_file_says(
    add_bos: bool, add_eos: bool, rebuild: Rebuild, corpus: list[str]
) -> None:
    changes = byte_level_metadata(train_byte_level(words(), corpus), "gpt-2")
    folder = rebuild(changes | {"tokenizer.ggml.add_bos_token": add_bos, "tokenizer.ggml.add_eos_token": add_eos})
    plain = load(folder).encode("Hello", add_special_tokens=False).ids
    assert load(folder).encode("Hello").ids == [*([0] if add_bos else []), *plain, *([1] if add_eos else [])]


# SentencePiece --------------------------------------------------------------------------------------------------------


def train_sentencepiece(corpus: list[str], **options: Any) -> sentencepiece.SentencePieceProcessor:
    model = io.BytesIO()
    defaults = {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "user_defined_symbols": ["<tool>"],
        "character_coverage": 0.98,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(corpus), model_writer=model, **(defaults | options))
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def sentencepiece_metadata(model: sentencepiece.SentencePieceProcessor) -> dict[str, Any]:
    """As llama.cpp's converter writes a SentencePiece vocabulary."""

    def kind(index: int) -> int:
        checks = ((model.is_unknown, 2), (model.is_control, 3), (model.is_byte, 6))
        return next((kind for check, kind in checks if check(index)), 4 if model.id_to_piece(index) == "<tool>" else 1)

    ids = range(model.get_piece_size())
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(index) for index in ids],
        "tokenizer.ggml.scores": [float(model.get_score(index)) for index in ids],
        "tokenizer.ggml.token_type": [kind(index) for index in ids],
    }


@pytest.fixture(scope="module")
def spm(corpus: list[str]) -> sentencepiece.SentencePieceProcessor:
    return train_sentencepiece(corpus)


def test_sentencepiece_ids_are_those_of_the_sentencepiece_package(
    spm: sentencepiece.SentencePieceProcessor, rebuild: Rebuild
) -> None:
    ours = load(rebuild(sentencepiece_metadata(spm)))

    @settings(max_examples=300, deadline=None)
    @given(st.one_of(st.sampled_from(TEXTS), st.text(), st.text("abcdehilnorst ,.\n0123é日", max_size=60)))
    def check(text: str) -> None:
        text = text.replace("\0", "").replace("\u2581", "")  # the package ends at NUL, and decodes the mark as a space
        ids = ours.encode(text, add_special_tokens=False).ids
        assert ids == spm.encode(text)
        assert ours.decode(ids) == text

    check()


def test_sentencepiece_texts_begin_with_the_beginning_token(
    spm: sentencepiece.SentencePieceProcessor, rebuild: Rebuild
) -> None:
    folder = rebuild(sentencepiece_metadata(spm))
    assert load(folder).encode("Hello").ids == [1, *spm.encode("Hello")]
    assert transformers.AutoTokenizer.from_pretrained(folder).encode("Hello") == [1, *spm.encode("Hello")]


def test_user_defined_symbols_stay_whole(spm: sentencepiece.SentencePieceProcessor, rebuild: Rebuild) -> None:
    ours = load(rebuild(sentencepiece_metadata(spm)))
    assert "<tool>" in ours.encode("call<tool>now").tokens
    assert "<tool>" in ours.decode(ours.encode("call<tool>now").ids)


@pytest.mark.parametrize("text", ["Hello world", " lead", "trail ", "  many   spaces  ", ""])
def test_sentencepiece_space_rules_are_honoured(text: str, corpus: list[str], rebuild: Rebuild) -> None:
    model = train_sentencepiece(corpus, add_dummy_prefix=False, remove_extra_whitespaces=True)
    keys = {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.remove_extra_whitespaces": True}
    ours = load(rebuild(sentencepiece_metadata(model) | keys))
    ids = ours.encode(text, add_special_tokens=False).ids
    assert ids == model.encode(text)
    assert ours.decode(ids) == model.decode(ids)


def test_transformers_own_conversion_merges_alike(spm: sentencepiece.SentencePieceProcessor, rebuild: Rebuild) -> None:
    keys = sentencepiece_metadata(spm)
    ours = load(rebuild(keys))
    stripped = {key.removeprefix("tokenizer.ggml."): value for key, value in keys.items()}
    theirs = gguf_tokenizer_mapping.sentencepiece_tokenizer(stripped)
    for text in TEXTS:
        if not text.startswith(" "):  # a leading space gets no prefix from transformers' Metaspace
            assert (
                ours.encode(text, add_special_tokens=False).ids
                == theirs._tokenizer.encode(text, add_special_tokens=False).ids
            )


# Wrong files ----------------------------------------------------------------------------------------------------------


def wrong() -> Iterator[tuple[dict[str, Any], str]]:
    gpt2 = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.tokens": ["a", "b", "ab"],
            "tokenizer.ggml.merges": ["a b"]}  # fmt: skip
    llama = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "a"],
             "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -1.0]}  # fmt: skip
    yield {}, "has no metadata key tokenizer.ggml.model"
    yield (
        {"tokenizer.ggml.model": "bert"},
        "has tokenizer kind 'bert'; gpt2 (byte-level) and llama (SentencePiece) are read",
    )
    yield {"tokenizer.ggml.model": "gpt2"}, "has no metadata key tokenizer.ggml.tokens"
    yield gpt2 | {"tokenizer.ggml.pre": "klingon"}, "has tokenizer.ggml.pre 'klingon'; known are: command-r, dbrx"
    yield (
        {key: value for key, value in gpt2.items() if key != "tokenizer.ggml.pre"},
        "has no tokenizer.ggml.pre, which says how",
    )
    yield gpt2 | {"tokenizer.ggml.tokens": ["a", "a", "ab"]}, "the same token has two ids"
    yield gpt2 | {"tokenizer.ggml.tokens": ["a", "b", "x" * 1025]}, "a token has 1025 characters, at most 1024 are read"
    yield gpt2 | {"tokenizer.ggml.merges": ["a c"]}, "merge 'a c' is not of two tokens into a third"
    yield gpt2 | {"tokenizer.ggml.merges": ["ab"]}, "merge 'ab' is not of two tokens into a third"
    yield gpt2 | {"tokenizer.ggml.merges": [1, 2]}, "tokenizer.ggml.merges is '[1 2]', expected an array of strings"
    yield gpt2 | {"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type has 2 entries for 3 tokens"
    yield gpt2 | {"tokenizer.ggml.token_type": ["a", "b"]}, "expected an array of numbers"
    yield gpt2 | {"tokenizer.ggml.bos_token_id": 9}, "bos_token is id 9, the vocabulary has 3 tokens"
    yield gpt2 | {"tokenizer.ggml.add_bos_token": True}, "asks for bos_tokens around texts but has no bos_token_id"
    yield gpt2 | {"tokenizer.ggml.add_bos_token": 1}, "tokenizer.ggml.add_bos_token is '1', expected true or false"
    yield llama | {"tokenizer.ggml.scores": [0.0]}, "tokenizer.ggml.scores has 1 entries for 4 tokens"
    yield llama | {"tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0, 0.0]}, "eos_token is id 2"
    yield llama | {"tokenizer.ggml.precompiled_charsmap": [1, 2]}, "a precompiled character map, which is not supported"


@pytest.mark.parametrize(("keys", "message"), list(wrong()))
def test_a_wrong_vocabulary_gets_one_clear_line(keys: dict[str, Any], message: str, rebuild: Rebuild) -> None:
    with pytest.raises(ModelFileError) as error:
        rebuild(keys)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
