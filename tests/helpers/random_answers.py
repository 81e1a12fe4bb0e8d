"""Answers without a model: random tokens among those that a grammar allows."""

from typing import Any

import numpy as np
import numpy.typing as npt

from mlc_llm.runtime.grammar import Grammar
from mlc_llm.runtime.token_mask import TokenMask, new_mask

_CLOSING = (b"}", b"]", b'"', b",", b":")
Bools = npt.NDArray[np.bool_]


def bits(mask: TokenMask, size: int | None = None) -> Bools:
    """A mask as numpy has it."""
    return np.unpackbits(np.frombuffer(memoryview(mask), np.uint8), count=size, bitorder="little").view(np.bool_)


def allowed(mask: TokenMask) -> list[int]:
    """The tokens that a mask allows."""
    tokens: list[int] = np.flatnonzero(bits(mask)).tolist()
    return tokens


class RandomAnswers:
    """Answers of tokens with these texts."""

    def __init__(self, pieces: list[bytes], end_ids: set[int]) -> None:
        self._pieces, self._ends = pieces, np.array(sorted(end_ids))
        self._closing = {piece: pieces.index(piece) for piece in _CLOSING if piece in pieces}
        self._blank = np.array([not piece.strip() for piece in pieces])
        self._single = np.array([len(piece) == 1 for piece in pieces])

    def answer(self, grammar: Grammar, seed: int, length: int = 60, limit: int = 5000) -> list[int]:
        """Tokens up to the end token, which is left out. After `length` of them most choices are such that close."""
        random, mask, answer = np.random.default_rng(seed), new_mask(len(self._pieces)), list[int]()
        while len(answer) < limit:
            grammar.fill_mask(mask)
            tokens = bits(mask, len(self._pieces)).copy()
            hurry, ends = len(answer) >= length, self._ends[tokens[self._ends]]
            tokens[self._ends] = False
            if ends.size and (hurry or not tokens.any() or random.random() < 0.1):
                assert grammar.accept(int(ends[0]))
                return answer
            if random.random() < (0.7 if hurry else 0.3):
                tokens = self._towards_the_end(tokens)
            elif hurry:  # such as the @ without which an address does not end
                tokens = _some(tokens & self._single, tokens)
            answer.append(int(random.choice(np.flatnonzero(tokens))))
            assert grammar.accept(answer[-1])
        text = b"".join(self._pieces[token] for token in answer)
        raise AssertionError(f"no end after {limit} tokens: {text[:500]!r}")

    def _towards_the_end(self, tokens: Bools) -> Bools:
        """Those that get on with closing what is open, all that are not blank where none is known to."""
        open_ = {piece: token for piece, token in self._closing.items() if tokens[token]}
        in_string = b"}" in open_ and b"]" in open_  # only there may both come next
        for piece in (b'"',) if in_string else _CLOSING:
            if piece in open_:
                only: Any = np.zeros_like(tokens)
                only[open_[piece]] = True
                return only
        return _some(tokens & ~self._blank, tokens)


def _some(tokens: Bools, otherwise: Bools) -> Bools:
    return tokens if tokens.any() else otherwise
