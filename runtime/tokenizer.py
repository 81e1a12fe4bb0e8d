"""Text to tokens and back, for one model folder."""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import tokenizers

from .detokenizer import StreamingDetokenizer
from .errors import ModelFileError, RequestError
from .token_text import Piece, TextRule, read_text_rule
from .tokenizer_files import backend_problem, load_backend


class Tokenizer:
    """The tokenizer of a model. Safe to use from several threads."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        # Some files ask for truncation or padding, meant for training; a prompt is never cut silently.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._pieces: dict[int, Piece] = {}
        self.texts: dict[int, str] = {}  # of tokens inside a text that are whole characters, filled by detokenizers
        self.special_ids = frozenset(
            token for token, added in backend.get_added_tokens_decoder().items() if added.special
        )

    @classmethod
    def load(cls, folder: Path) -> "Tokenizer":
        """Read the tokenizer of a model folder: tokenizer.json, else tokenizer.model, else vocab.json + merges.txt.

        Raises ModelFileError.
        """
        return cls(load_backend(folder))

    @cached_property
    def vocab_size(self) -> int:
        """One more than the highest token id; a model's vocabulary may be larger (padded), never smaller."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values(), default=-1)

    def vocab_size_within(self, limit: int) -> int:
        """The smaller of `limit` and `vocab_size`, without a look at the whole vocabulary."""
        while limit > 0 and self._backend.id_to_token(limit - 1) is None:
            limit -= 1
        return limit

    @cached_property
    def rule(self) -> TextRule:
        """How tokens become text. Raises ModelFileError when that cannot be done token by token."""
        return read_text_rule(self._backend)

    def encode(self, text: str, add_special_tokens: bool = False, parse_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`.

        `add_special_tokens` adds what the tokenizer puts around a text, as <s>. Special tokens spelled out in the
        text become that token, as chat templates need; without `parse_special_tokens` they are plain text.
        Raises RequestError for text that is not Unicode, ModelFileError when the tokenizer's files are damaged.
        """
        backend = self._backend if parse_special_tokens else self._literal_backend
        try:
            return backend.encode(text, add_special_tokens=add_special_tokens).ids
        except BaseException as error:
            if surrogate := re.search("[\ud800-\udfff]", text):
                raise RequestError(
                    f"the text has the lone surrogate U+{ord(surrogate[0]):04X} at character {surrogate.start()}; "
                    "it must be valid Unicode",
                    code="invalid_value",
                ) from None
            if problem := backend_problem(error):
                raise ModelFileError(f"the model's tokenizer cannot encode this text ({problem})") from None
            raise

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of `ids`; ids outside the vocabulary add nothing. The same text as when it is streamed."""
        detokenizer = StreamingDetokenizer(self, skip_special_tokens)
        return "".join([*map(detokenizer.put, ids), detokenizer.finish()])

    def id_of(self, token: str) -> int | None:
        """The id of a token by its string in the vocabulary, as "<|im_end|>"; None if there is no such token."""
        return self._backend.token_to_id(token)

    def string_of(self, token: int) -> str | None:
        """The string of a token in the vocabulary; None for an id that has none."""
        return self._backend.id_to_token(token)

    def first_difference(self, other: "Tokenizer") -> int | None:
        """The lowest id that is not the same token to another tokenizer; None where all are."""
        mine, others = (one._backend.get_vocab(with_added_tokens=True).items() for one in (self, other))
        return min((token for _, token in mine ^ others), default=None)

    def piece(self, token: int, first: bool) -> Piece | None:
        """What a token adds to a text, `first` when the text begins with it; None for an id outside the vocabulary."""
        if not first and token in self._pieces:
            return self._pieces[token]
        string = self._backend.id_to_token(token) if 0 <= token < 2**32 else None
        if string is None:
            return None
        piece = self.rule.piece(string, first)
        if not first:
            self._pieces[token] = piece
        return piece

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for inside a text; empty for an id outside the vocabulary."""
        piece = self.piece(token, False) or b""
        return piece.encode() if isinstance(piece, str) else piece

    def vocabulary(self, size: int) -> list[bytes]:
        """What each of the first `size` tokens stands for inside a text, special ones by their name.

        Empty for ids that have no token. Raises ModelFileError when a token's text cannot be had by itself.
        """
        return [self._bytes_or_name(token) for token in range(size)]

    def _bytes_or_name(self, token: int) -> bytes:
        string = self._backend.id_to_token(token)
        if string is None:
            return b""
        piece = string if token in self.special_ids else self.rule.piece(string, False)
        return piece.encode() if isinstance(piece, str) else piece

    @cached_property
    def _literal_backend(self) -> tokenizers.Tokenizer:
        # The switch is a property of the whole backend, so that flipping it would disturb other threads.
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        backend.encode_special_tokens = True
        return backend
