"""Loading tokenizer files, encoding, and what single tokens stand for: oracles are transformers and SentencePiece."""

import json
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models

from mlc_llm.runtime import artifact, sentencepiece_model
from mlc_llm.runtime.errors import ModelFileError, RequestError
from mlc_llm.runtime.tokenizer import Tokenizer


def write_byte_level(folder: Path, backend: tokenizers.Tokenizer, **config: object) -> None:
    """The model as vocab.json and merges.txt, without its added tokens."""
    model = json.loads(backend.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"]))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in model["merges"]))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))


def test_tokenizer_json_encodes_as_transformers_does(byte_level_backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    next_id = byte_level_backend.get_vocab_size()
    added = {str(next_id): {"content": "<think>", "special": False}, "0": {"content": "<|endoftext|>"}}
    (tmp_path / "tokenizer.json").write_text(byte_level_backend.to_str())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "added_tokens_decoder": added, "eos_token": "<|im_end|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    ours, theirs = Tokenizer.load(tmp_path), PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in ["the <think>fox</think> 😀", "<|im_start|>user\nhi<|im_end|>", "", "  Ünï <tool call>｜é▁"]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.id_of("<think>") == next_id
    assert ours.special_ids == frozenset(theirs.all_special_ids) | {0, 1}


def test_declared_tokens_whose_ids_do_not_line_up_are_left_out(
    byte_level_backend: tokenizers.Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_backend.to_str())
    added = {"999": {"content": "<late>"}, "5": {"content": "<|im_end|>"}, "7": {"content": "the"}}
    roles = {"unk_token": "<missing>", "additional_special_tokens": ["Ġthe"], "added_tokens_decoder": added}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(roles))
    tokenizer = Tokenizer.load(tmp_path)
    assert (tokenizer.id_of("<late>"), tokenizer.id_of("<missing>"), tokenizer.id_of("<|im_end|>")) == (None, None, 2)
    assert tokenizer.vocab_size == byte_level_backend.get_vocab_size()
    assert tokenizer.special_ids == {0, 1, 2, tokenizer.id_of("Ġthe")}


def test_vocab_and_merges_load_as_byte_level_bpe(byte_level_backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    end = {"__type": "AddedToken", "content": "<|im_end|>", "special": True}
    write_byte_level(tmp_path, byte_level_backend, tokenizer_class="GPT2Tokenizer", eos_token=end, bos_token="<|x|>")
    model_size = byte_level_backend.get_vocab_size(with_added_tokens=False)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|x|>": model_size, "<plain>": model_size + 1}))
    tokenizer, oracle = Tokenizer.load(tmp_path), GPT2Tokenizer.from_pretrained(tmp_path)
    for text in ["The quick brown fox", "x = 10\n  y", "日本 café😀", "a<|x|>b<plain> <|im_end|>"]:
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=False) == text
    assert tokenizer.special_ids == {2, model_size}


@given(data=st.data())
@settings(deadline=None, max_examples=5)
def test_sentencepiece_files_encode_as_sentencepiece_does(sentencepiece_file: Path, data: st.DataObject) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    tokenizer = Tokenizer.load(sentencepiece_file.parent)
    words = st.sampled_from(
        ["the", "fox", "dog ", " over", "éa", "日本", "😀", "\n", "1234", "  ", "schnelle", "z.", ","]
    )
    for parts in data.draw(st.lists(st.lists(words, max_size=12), min_size=40, max_size=40)):
        text = "".join(parts)
        assert tokenizer.encode(text) == oracle.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == oracle.decode(oracle.encode(text))


def test_sentencepiece_files_know_their_special_tokens(sentencepiece_file: Path) -> None:
    tokenizer = Tokenizer.load(sentencepiece_file.parent)
    assert tokenizer.special_ids == {0, 1, 2}
    assert [tokenizer.id_of(name) for name in ("<unk>", "<s>", "</s>")] == [0, 1, 2]
    assert tokenizer.encode("the", add_special_tokens=True) == [1, *tokenizer.encode("the")]
    assert tokenizer.encode("a</s>")[-1] == 2
    assert tokenizer.id_of("[TOOL]") in tokenizer.encode("the[TOOL]fox")


def test_a_config_can_switch_off_the_token_at_the_start(sentencepiece_file: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    (tmp_path / "tokenizer_config.json").write_text('{"add_bos_token": false}')
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.encode("the", add_special_tokens=True) == tokenizer.encode("the")


def test_tokenizer_json_goes_before_tokenizer_model(
    sentencepiece_file: Path, tmp_path: Path, byte_level_backend: tokenizers.Tokenizer
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_file.read_bytes())
    write_byte_level(tmp_path, byte_level_backend)
    assert Tokenizer.load(tmp_path).id_of("</s>") == 2
    (tmp_path / "tokenizer.json").write_text(byte_level_backend.to_str())
    assert Tokenizer.load(tmp_path).id_of("<|im_end|>") == 2


def test_special_tokens_in_a_text_can_be_plain_text(byte_level: Tokenizer) -> None:
    assert byte_level.encode("<|im_end|>") == [2]
    literal = byte_level.encode("<|im_end|>", parse_special_tokens=False)
    assert not byte_level.special_ids & set(literal)
    assert byte_level.decode(literal) == "<|im_end|>"
    assert byte_level.encode("<|im_end|>") == [2]


def test_prompts_are_never_cut_or_padded(byte_level_backend: tokenizers.Tokenizer, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer.from_str(byte_level_backend.to_str())
    backend.enable_truncation(3)
    backend.enable_padding(length=50)
    (tmp_path / "tokenizer.json").write_text(backend.to_str())
    text = "the quick brown fox jumps"
    assert Tokenizer.load(tmp_path).encode(text) == Tokenizer(byte_level_backend).encode(text)


def test_text_with_a_lone_surrogate_is_a_request_error(byte_level: Tokenizer) -> None:
    with pytest.raises(RequestError, match=r"lone surrogate U\+D83D at character 2"):
        byte_level.encode("ab\ud83d")


def test_a_tokenizer_that_fails_on_a_text_is_one_line() -> None:
    tokenizer = Tokenizer(tokenizers.Tokenizer(models.Unigram([("a", 0.0)], None, False)))
    assert tokenizer.encode("a") == [0]
    with pytest.raises(ModelFileError, match=r"tokenizer cannot encode this text \(.*unk_id.*\)"):
        tokenizer.encode("b")


def test_an_interrupted_load_is_not_taken_for_a_damaged_file(
    monkeypatch: pytest.MonkeyPatch, sentencepiece_file: Path
) -> None:
    def interrupted(data: bytes) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sentencepiece_model, "parse_model", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Tokenizer.load(sentencepiece_file.parent)


def test_tokens_stand_for_their_exact_bytes(byte_level: Tokenizer, backends: dict[str, tokenizers.Tokenizer]) -> None:
    for text in ["the fox 😀", "日本語", "  x\n"]:
        ids = byte_level.encode(text)
        assert b"".join(map(byte_level.token_bytes, ids)) == text.encode()
    sentencepiece_like = Tokenizer(backends["sentencepiece"])
    ids = sentencepiece_like.encode("the fox 😀")
    assert b"".join(map(sentencepiece_like.token_bytes, ids)) == " the fox 😀".encode()
    assert byte_level.token_bytes(2) == b"<|im_end|>"
    assert byte_level.token_bytes(byte_level.vocab_size) == b""
    assert byte_level.token_bytes(-1) == b""


def test_every_byte_has_a_token_in_both_kinds(byte_level: Tokenizer, backends: dict[str, tokenizers.Tokenizer]) -> None:
    for tokenizer in (byte_level, Tokenizer(backends["sentencepiece"])):
        found = {tokenizer.token_bytes(token) for token in range(tokenizer.vocab_size)}
        assert {bytes([byte]) for byte in range(256)} <= found


def check_refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelFileError, match=message) as caught:
        Tokenizer.load(folder)
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_tokenizer_says_what_is_expected(tmp_path: Path) -> None:
    check_refused(tmp_path, r"has no tokenizer: expected tokenizer.json, tokenizer.model or vocab.json")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"{}",
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["b c"]}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0, "b": 0}, "merges": [["a", "b"]]}}',  # makes tokenizers panic
    ],
)
def test_a_damaged_tokenizer_json_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content)
    check_refused(tmp_path, r"tokenizer\.json is not a usable tokenizer \(.+\)")


def test_a_tokenizer_json_that_cannot_be_read_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").mkdir()
    check_refused(tmp_path, r"tokenizer\.json cannot be read: Is a directory")


def test_a_huge_file_is_not_even_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(artifact.MAX_JSON_BYTES + 1)
    check_refused(tmp_path, "at most")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("[]", "holds a list; expected a JSON object"),
        ('{"added_tokens_decoder": []}', "expected an object"),
        ('{"added_tokens_decoder": {"x": {"content": "a"}}}', "expected a token id"),
        ('{"added_tokens_decoder": {"9": {"content": 3}}}', "where a token was expected"),
        ('{"eos_token": 7}', "where a token was expected"),
    ],
)
def test_a_damaged_config_is_one_line(
    tmp_path: Path, byte_level_backend: tokenizers.Tokenizer, config: str, message: str
) -> None:
    (tmp_path / "tokenizer.json").write_text(byte_level_backend.to_str())
    (tmp_path / "tokenizer_config.json").write_text(config)
    check_refused(tmp_path, message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.json", b'{"a": -1}', "gives 'a' the id -1"),
        ("vocab.json", b'{"a": true}', "gives 'a' the id True"),
        ("merges.txt", b"t h e\n", "line 1 is 't h e'; expected two tokens"),
        ("merges.txt", b"\xff", "not UTF-8 text"),
        ("merges.txt", b"not there\n", "not a usable tokenizer"),
        ("tokenizer_config.json", b'{"tokenizer_class": "Qwen2Tokenizer"}', "tokenizer class 'Qwen2Tokenizer'"),
    ],
)
def test_damaged_vocab_and_merges_are_one_line(
    tmp_path: Path, byte_level_backend: tokenizers.Tokenizer, name: str, content: bytes, message: str
) -> None:
    write_byte_level(tmp_path, byte_level_backend)
    (tmp_path / name).write_bytes(content)
    check_refused(tmp_path, message)


@given(data=st.data())
@settings(deadline=None, max_examples=5)
def test_a_damaged_tokenizer_model_loads_or_is_refused_in_one_line(
    sentencepiece_file: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder, intact = tmp_path_factory.mktemp("damaged"), sentencepiece_file.read_bytes()
    for _ in range(20):
        damaged = bytearray(intact)
        for place in data.draw(st.lists(st.integers(0, len(intact) - 1), max_size=4)):
            damaged[place] = data.draw(st.integers(0, 255))
        end = data.draw(st.just(len(intact)) | st.integers(0, len(intact)))
        (folder / "tokenizer.model").write_bytes(damaged[:end])
        try:
            Tokenizer.load(folder)
        except ModelFileError as error:
            assert "\n" not in str(error)  # noqa: PT017 - any damage may also be harmless


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no pieces"),
        (b"\x0a\xff\xff\xff\xff\x0f", "cut off or damaged"),
        (b"\x0a" + b"\xff" * 20, "number without an end"),
        (b"\x0b", "wire type 3"),
        (b"\x08\x01", "a number where a text was expected"),
        (b"\x0a\x03\x1a\x01a", "a text where a number was expected"),
        (b"\x0a\x03\x0a\x01a\x12\x02\x18\x03", "model type is 3"),
        (b"\x0a\x84\x10\x0a\x81\x10" + b"a" * 2049, "a piece of 2049 characters"),
    ],
)
def test_a_tokenizer_model_that_lies_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    check_refused(tmp_path, message)


def test_tokenizer_model_fields_are_those_that_sentencepiece_reads(sentencepiece_file: Path) -> None:
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(sentencepiece_file))
    model = sentencepiece_model.parse_model(sentencepiece_file.read_bytes())
    assert [piece.text for piece in model.pieces] == [oracle.id_to_piece(i) for i in range(oracle.vocab_size())]
    assert [piece.score for piece in model.pieces] == [oracle.get_score(i) for i in range(oracle.vocab_size())]
    kinds = [piece.kind for piece in model.pieces]
    assert [kind == sentencepiece_model.BYTE for kind in kinds] == [oracle.is_byte(i) for i in range(len(kinds))]
    assert [kind == sentencepiece_model.CONTROL for kind in kinds] == [oracle.is_control(i) for i in range(len(kinds))]
    assert (model.bos_id, model.byte_fallback) == (oracle.bos_id(), True)
