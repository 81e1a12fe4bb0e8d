"""What a token stands for: the `decoder` of a tokenizer.json, read as a rule for one token at a time."""

import json
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import tokenizers

from .errors import ModelFileError

# Whole characters, or bytes that may join with those of neighbouring tokens to make a character.
Piece = str | bytes

_BYTE_TOKENS = {form.format(byte): bytes([byte]) for byte in range(256) for form in ("<0x{:02X}>", "<0x{:02x}>")}


def _byte_level_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in byte-level vocabularies (GPT-2's `bytes_to_unicode`, inverted)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    return alphabet | {chr(256 + index): byte for index, byte in enumerate(others)}


_BYTE_LEVEL = _byte_level_alphabet()

TokenStep = Callable[[str, bool], str]  # (token, is it the first of the text) -> token


class TextRule(NamedTuple):
    """How token strings become text.

    - bytes_from: tokens are bytes in the byte-level alphabet ("byte_level"), only those like <0x0A> are
      ("byte_fallback"), or none is ("none").
    - steps: what happens to every other token, in order.
    - strip_start: this character is dropped at the start of the text, at most that many times.
    """

    bytes_from: Literal["byte_level", "byte_fallback", "none"]
    steps: tuple[TokenStep, ...] = ()
    strip_start: tuple[str, int] = ("", 0)

    def piece(self, token: str, first: bool) -> Piece:
        """What `token` adds to a text; `first` says whether it is the first token of it."""
        if self.bytes_from == "byte_level":
            # An added token with a character that is not of the alphabet stands for itself.
            mapped = [_BYTE_LEVEL.get(character, -1) for character in token]
            return token.encode() if -1 in mapped else bytes(mapped)
        if self.bytes_from == "byte_fallback" and (byte := _BYTE_TOKENS.get(token)):
            return byte
        for step in self.steps:
            token = step(token, first)
        return token


def read_text_rule(backend: tokenizers.Tokenizer) -> TextRule:
    """The rule that `backend.decoder` follows.

    Raises ModelFileError for a decoder whose text cannot be had token by token (CTC, WordPiece, regular expressions):
    no model that generates text is known to have one.
    """
    decoder = backend.decoder
    if decoder is None:
        return TextRule("none", (lambda token, first: token if first else f" {token}",))
    spec = json.loads(decoder.__getstate__())
    specs = spec["decoders"] if spec["type"] == "Sequence" else [spec]
    kinds = [spec["type"] for spec in specs]
    if kinds == ["ByteLevel"]:
        return TextRule("byte_level")
    fused = kinds.index("Fuse") if "Fuse" in kinds else len(kinds)
    steps = tuple(_token_step(spec) for spec in specs[:fused] if spec["type"] != "ByteFallback")
    strip_start = ("", 0)
    for spec in specs[fused + 1 :]:
        if spec["type"] != "Strip" or spec["stop"] != 0 or strip_start[1]:
            raise _unsupported(spec)
        strip_start = (spec["content"], spec["start"])
    return TextRule("byte_fallback" if "ByteFallback" in kinds else "none", steps, strip_start)


def _token_step(spec: dict[str, Any]) -> TokenStep:
    if spec["type"] == "Replace" and "String" in spec["pattern"]:
        old, new = spec["pattern"]["String"], spec["content"]
        return lambda token, first: token.replace(old, new)
    if spec["type"] == "Metaspace":
        mark, at_start = spec["replacement"], " " if spec["prepend_scheme"] == "never" else ""
        return lambda token, first: token.replace(mark, at_start if first else " ")
    raise _unsupported(spec)


def _unsupported(spec: dict[str, Any]) -> ModelFileError:
    return ModelFileError(
        f"tokenizer.json has the decoder {json.dumps(spec, ensure_ascii=False)[:200]}, which cannot stream text; "
        "supported are ByteLevel, Metaspace, ByteFallback, Replace of a string, Fuse and Strip at the start"
    )
