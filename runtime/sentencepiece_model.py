"""SentencePiece's tokenizer.model, read without its package and turned into a `tokenizers` tokenizer.

The file is a protocol buffer, `ModelProto` of SentencePiece's sentencepiece_model.proto.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, processors

SPACE = "\u2581"  # SentencePiece's mark for a space

_MAX_PIECE_CHARACTERS = 1024  # bounds the work of finding merges, which is quadratic in it

# SentencePiece.Type
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
# TrainerSpec.ModelType
UNIGRAM, BPE = 1, 2


@dataclass(frozen=True)
class VocabularyEntry:
    """One piece of the vocabulary; its place is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True)
class SentencePieceModel:
    """What of a ModelProto decides how text becomes ids."""

    pieces: tuple[VocabularyEntry, ...]
    model_type: int = UNIGRAM
    byte_fallback: bool = False
    bos_id: int = 1
    add_dummy_prefix: bool = True
    remove_extra_whitespaces: bool = True
    precompiled_charsmap: bytes = b""


def parse_model(data: bytes) -> SentencePieceModel:
    """Read a serialized ModelProto. Raises ValueError when it is damaged."""
    pieces: list[VocabularyEntry] = []
    trainer: dict[int, int | bytes] = {}
    normalizer: dict[int, int | bytes] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_parse_piece(_as_bytes(value)))
        elif number == 2:
            trainer = dict(_fields(_as_bytes(value)))
        elif number == 3:
            normalizer = dict(_fields(_as_bytes(value)))
    if not pieces:
        raise ValueError("it has no pieces")
    return SentencePieceModel(
        tuple(pieces),
        model_type=_as_int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        bos_id=_as_int(trainer.get(41, 1)),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
        precompiled_charsmap=_as_bytes(normalizer.get(2, b"")),
    )


def to_tokenizer(model: SentencePieceModel, add_bos: bool) -> tokenizers.Tokenizer:
    """The same tokenizer for the `tokenizers` package; `add_bos` puts <s> before a text where special tokens are asked.

    Raises ValueError for model types other than BPE and unigram.
    """
    unknown = next((index for index, piece in enumerate(model.pieces) if piece.kind == UNKNOWN), None)
    if model.model_type == BPE:
        backend = tokenizers.Tokenizer(_bpe(model, unknown))
    elif model.model_type == UNIGRAM:
        vocab = [(piece.text, piece.score) for piece in model.pieces]
        backend = tokenizers.Tokenizer(models.Unigram(vocab, unknown, model.byte_fallback))
    else:
        raise ValueError(f"its model type is {model.model_type}; supported are 1 (unigram) and 2 (BPE)")
    backend.normalizer = _normalizer(model)
    steps: list[decoders.Decoder] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    backend.decoder = decoders.Sequence(steps)
    for piece in model.pieces:
        if piece.kind in (UNKNOWN, CONTROL, USER_DEFINED):
            special = piece.kind != USER_DEFINED
            backend.add_tokens([AddedToken(piece.text, normalized=False, special=special)])
    if add_bos and 0 <= model.bos_id < len(model.pieces):
        bos = model.pieces[model.bos_id].text
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, model.bos_id)]
        )
    return backend


def _bpe(model: SentencePieceModel, unknown: int | None) -> models.BPE:
    """Merges are not stored: any two pieces merge to a third, those with the best score first."""
    vocab = {piece.text: index for index, piece in enumerate(model.pieces)}
    scores = {piece.text: piece.score for piece in model.pieces if piece.kind in (NORMAL, USER_DEFINED)}
    merges: list[tuple[float, int, int, str, str]] = []
    for text, score in scores.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in scores and right in scores:
                merges.append((-score, vocab[left], vocab[right], left, right))
    merges.sort()
    return models.BPE(
        vocab=vocab,
        merges=[(left, right) for *_, left, right in merges],
        unk_token=None if unknown is None else model.pieces[unknown].text,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _normalizer(model: SentencePieceModel) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if model.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.precompiled_charsmap))
    if model.remove_extra_whitespaces:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    if model.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    steps.append(normalizers.Replace(" ", SPACE))
    return normalizers.Sequence(steps)


def _parse_piece(data: bytes) -> VocabularyEntry:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _as_bytes(fields.get(2, b"\0\0\0\0")))
    text = _as_bytes(fields.get(1, b"")).decode()
    if len(text) > _MAX_PIECE_CHARACTERS:
        raise ValueError(f"a piece of {len(text)} characters; at most {_MAX_PIECE_CHARACTERS} are read")
    return VocabularyEntry(text, score, _as_int(fields.get(3, NORMAL)))


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer message: number and value, an int for varints and raw bytes for the rest.

    See https://protobuf.dev/programming-guides/encoding/
    """
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        elif wire_type in (1, 5):
            size = 8 if wire_type == 1 else 4
        else:
            raise ValueError(f"wire type {wire_type} at byte {position}")
        if size > len(data) - position:
            raise ValueError(
                f"a field of {size} bytes at byte {position} of {len(data)}: the file is cut off or damaged"
            )
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(data) and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError(f"a number without an end at byte {position}: the file is cut off or damaged")


def _as_int(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("a text where a number was expected")
    return value - (1 << 64) if value >> 63 else value  # negative numbers come as two's complement


def _as_bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where a text was expected")
    return value
