"""Streamed text is the text of the whole: oracles are the decoders of `tokenizers` and of SentencePiece."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models

from mlc_llm.runtime.detokenizer import StreamingDetokenizer
from mlc_llm.runtime.errors import ModelFileError
from mlc_llm.runtime.tokenizer import Tokenizer

LONE_KINDS = ["byte_level", "metaspace", "metaspace_without_prefix", "word_level"]
FALLBACK_KINDS = ["sentencepiece", "sentencepiece_without_prefix"]


def stream(tokenizer: Tokenizer, parts: list[list[int]], skip_special_tokens: bool = True) -> list[str]:
    detokenizer = StreamingDetokenizer(tokenizer, skip_special_tokens)
    return [*("".join(map(detokenizer.put, part)) for part in parts), detokenizer.finish()]


def cut(ids: list[int], data: st.DataObject) -> list[list[int]]:
    """`ids` in parts, some of them empty."""
    borders = sorted(data.draw(st.lists(st.integers(0, len(ids)), max_size=8)))
    return [ids[start:end] for start, end in zip([0, *borders], [*borders, len(ids)], strict=True)]


def byte_ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    ids = [backend.token_to_id(f"<0x{byte:02X}>") for byte in text.encode()]
    return [index for index in ids if index is not None]


@pytest.mark.parametrize("kind", LONE_KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_any_ids_in_any_parts_give_the_text_that_tokenizers_gives(
    backends: dict[str, tokenizers.Tokenizer], kind: str, data: st.DataObject
) -> None:
    backend = backends[kind]
    ids = data.draw(st.lists(st.integers(0, backend.get_vocab_size() + 3), max_size=40))
    skip = data.draw(st.booleans())
    streamed = stream(Tokenizer(backend), cut(ids, data), skip)
    assert "".join(streamed) == backend.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("kind", FALLBACK_KINDS)
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_byte_tokens_that_spell_characters_give_the_text_that_tokenizers_gives(
    backends: dict[str, tokenizers.Tokenizer], kind: str, data: st.DataObject
) -> None:
    backend = backends[kind]
    whole = st.integers(259, backend.get_vocab_size() + 3).map(lambda token: [token])
    spelled = st.text(min_size=1, max_size=3).map(lambda text: byte_ids(backend, text))
    special = st.integers(0, 2).map(lambda token: [token])
    ids = [token for part in data.draw(st.lists(whole | spelled | special, max_size=20)) for token in part]
    skip = data.draw(st.booleans())
    streamed = stream(Tokenizer(backend), cut(ids, data), skip)
    assert "".join(streamed) == backend.decode(ids, skip_special_tokens=skip)


def test_any_ids_in_any_parts_give_the_text_that_sentencepiece_gives(sentencepiece_file: Path) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    tokenizer = Tokenizer.load(sentencepiece_file.parent)
    # At the start of a text: SentencePiece keeps a space that is a byte token, and drops all of several space pieces
    # where it was trained to remove extra spaces; Hugging Face's conversions and we drop exactly one space.
    space = oracle.piece_to_id("<0x20>")
    ids_of_a_text = st.lists(st.integers(3, oracle.vocab_size() - 1).filter(lambda i: i != space), max_size=40)

    @given(ids_of_a_text, st.data())
    @settings(deadline=None, max_examples=300)
    def check(ids: list[int], data: st.DataObject) -> None:
        assume(not ids or oracle.id_to_piece(ids[0]).strip("▁"))
        assert "".join(stream(tokenizer, cut(ids, data))) == oracle.decode(ids)

    check()


def test_characters_come_as_soon_as_their_last_byte_is_there(backends: dict[str, tokenizers.Tokenizer]) -> None:
    for kind in ("byte_level", "sentencepiece"):
        tokenizer = Tokenizer(backends[kind])
        token = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
        parts = [[token[bytes([byte])]] for byte in "a😀😀é".encode()]
        expected = ["a", "", "", "", "😀", "", "", "", "😀", "", "é", ""]
        assert stream(tokenizer, parts) == expected


def test_an_incomplete_character_at_the_end_becomes_a_replacement_character(
    backends: dict[str, tokenizers.Tokenizer],
) -> None:
    for kind, expected in (("byte_level", "\ufffd"), ("sentencepiece", "\ufffd\ufffd\ufffd")):
        tokenizer = Tokenizer(backends[kind])
        token = {tokenizer.token_bytes(i): i for i in range(tokenizer.vocab_size)}
        parts = [[token[bytes([byte])]] for byte in "😀".encode()[:3]]
        assert stream(tokenizer, parts) == ["", "", "", expected]


def test_broken_bytes_do_not_take_the_characters_beside_them(backends: dict[str, tokenizers.Tokenizer]) -> None:
    backend = backends["sentencepiece"]
    good, bad = byte_ids(backend, "é"), [3 + 0xFF]
    assert "".join(stream(Tokenizer(backend), [good + bad + good])) == "é\ufffdé"


def test_a_skipped_token_does_not_break_a_character(byte_level: Tokenizer) -> None:
    token = {byte_level.token_bytes(i): i for i in range(byte_level.vocab_size)}
    first, second = (token[bytes([byte])] for byte in "é".encode())
    special = byte_level.id_of("<|im_end|>")
    assert special is not None
    assert "".join(stream(byte_level, [[first, special, second]])) == "é"


def test_only_the_first_space_of_a_text_is_dropped(backends: dict[str, tokenizers.Tokenizer]) -> None:
    tokenizer = Tokenizer(backends["sentencepiece"])
    assert tokenizer.decode(tokenizer.encode("  the the")) == "  the the"
    space, the = tokenizer.id_of("▁"), tokenizer.id_of("▁the")
    assert space is not None
    assert the is not None
    assert stream(tokenizer, [[space], [space], [the], [the]]) == ["", " ", " the", " the", ""]


def test_texts_that_are_remembered_belong_where_they_were_found(backends: dict[str, tokenizers.Tokenizer]) -> None:
    """What a token says after another one is remembered: not at the start, within a character, or if special."""
    tokenizer = Tokenizer(backends["sentencepiece"])
    the = tokenizer.id_of("▁the")
    assert the is not None
    first, *_, last = byte_ids(backends["sentencepiece"], "😀")
    special = min(tokenizer.special_ids)
    for _ in range(2):
        assert stream(tokenizer, [[the], [the], [special], [the]], skip_special_tokens=False)[1] == " the"
        assert stream(tokenizer, [[the], [the], [special], [the]]) == ["the", " the", "", " the", ""]
        assert stream(tokenizer, [[the], [first], [the], [last]])[1:] == ["", "\ufffd the", "\ufffd", ""]
    assert tokenizer.texts[the] == " the"
    assert tokenizer.texts.keys().isdisjoint([first, special])


def test_ids_outside_the_vocabulary_add_nothing(byte_level: Tokenizer) -> None:
    a = byte_level.encode("a")
    assert byte_level.decode([*a, byte_level.vocab_size, 2**40, -1, *a]) == "aa"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.CTC(),
        decoders.WordPiece(),
        decoders.Sequence([decoders.Fuse(), decoders.Replace("a", "b")]),
        decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 0, 1)]),
        decoders.Replace(tokenizers.Regex("a+"), "b"),
    ],
)
def test_a_decoder_that_cannot_stream_is_refused_where_text_is_wanted_but_still_encodes(
    decoder: decoders.Decoder,
) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoder
    tokenizer = Tokenizer(backend)
    assert tokenizer.encode("a") == [0]
    name = json.loads(decoder.__getstate__())["type"]
    with pytest.raises(ModelFileError, match="cannot stream text") as caught:
        tokenizer.decode([0])
    assert name in str(caught.value) or name == "Sequence"
