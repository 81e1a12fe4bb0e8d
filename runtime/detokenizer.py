"""Tokens to text while they arrive."""

import codecs
from typing import Protocol

from .token_text import Piece, TextRule


class TokenSource(Protocol):
    """What the detokenizer needs to know of a tokenizer."""

    @property
    def rule(self) -> TextRule: ...
    @property
    def special_ids(self) -> frozenset[int]: ...
    @property
    def texts(self) -> dict[int, str]: ...
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

    def __init__(
        self, tokenizer: TokenSource, skip_special_tokens: bool = True, shown_ids: frozenset[int] = frozenset()
    ) -> None:
        """Special tokens are left out with `skip_special_tokens`, but for `shown_ids`."""
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids - shown_ids if skip_special_tokens else frozenset()
        self._strip_character, self._strip_left = tokenizer.rule.strip_start
        self._bytes = _utf8_decoder("replace" if tokenizer.rule.bytes_from == "byte_level" else _EACH_BYTE)
        self._first = True
        self._texts = tokenizer.texts
        self._between = False  # whether the next token's text depends on nothing before it

    def put(self, token: int) -> str:
        """Take one more token. Returns the text that is now certain; an id outside the vocabulary adds nothing."""
        if self._between and (known := self._texts.get(token)) is not None:
            return known
        if token in self._skipped:
            return ""
        piece = self._tokenizer.piece(token, self._first)
        if piece is None:
            return ""
        self._first = False
        if isinstance(piece, bytes):
            text = self._strip(self._bytes.decode(piece))
        else:
            text = self._strip(self._bytes.decode(b"", True) + piece)
        before, self._between = self._between, not self._strip_left and not self._bytes.getstate()[0]
        if before and self._between and token not in self._tokenizer.special_ids:
            self._texts[token] = text
        return text

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
