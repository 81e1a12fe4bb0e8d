"""Tokens to text while they arrive."""

import codecs
from collections.abc import Sequence
from typing import Protocol

from .token_text import Piece, TextRule


class TokenSource(Protocol):
    """What the detokenizer needs to know of a tokenizer."""

    @property
    def rule(self) -> TextRule: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    def piece(self, token: int, first: bool) -> Piece | None: ...


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


_EACH_BYTE = "mlc_llm.replace_each_byte"
codecs.register_error(_EACH_BYTE, _replace_each_byte)
_utf8_decoder = codecs.getincrementaldecoder("utf-8")


class StreamingDetokenizer:
    """Turns the tokens of one text into characters as soon as these are certain.

    However the tokens are split over calls, the joined text is that of the one-shot decode, and the work per token is
    constant. Bytes that are no UTF-8 become U+FFFD as the reference tokenizers do it: one for each broken character
    in byte-level vocabularies, one for each byte in vocabularies with byte fallback. (`tokenizers` also replaces the
    valid characters beside broken bytes of the latter kind, as if it could not stream; SentencePiece does not.)
    """

    def __init__(self, tokenizer: TokenSource, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._strip_character, self._strip_left = tokenizer.rule.strip_start
        self._bytes = _utf8_decoder("replace" if tokenizer.rule.bytes_from == "byte_level" else _EACH_BYTE)
        self._first = True

    def put(self, ids: Sequence[int]) -> str:
        """Take more tokens. Returns the text that is now certain; ids outside the vocabulary add nothing."""
        parts: list[str] = []
        for token in ids:
            if token in self._skipped:
                continue
            piece = self._tokenizer.piece(token, self._first)
            if piece is None:
                continue
            self._first = False
            if isinstance(piece, bytes):
                parts.append(self._bytes.decode(piece))
            else:
                parts += (self._bytes.decode(b"", True), piece)
        return self._strip("".join(parts))

    def finish(self) -> str:
        """The tokens have ended: returns what was held back, U+FFFD for an incomplete character."""
        return self._strip(self._bytes.decode(b"", True))

    def _strip(self, text: str) -> str:
        while self._strip_left and text:
            if not text.startswith(self._strip_character):
                self._strip_left = 0
                break
            text = text[1:]
            self._strip_left -= 1
        return text
