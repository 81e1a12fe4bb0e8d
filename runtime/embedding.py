"""Embeddings: a vector for each text, made of the model's last hidden states of its tokens."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .errors import EngineError
from .job import Work
from .kv_cache import CacheFullError
from .model import LanguageModel

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vector = npt.NDArray[np.float32]

Strategy = Literal["cls", "mean", "last"]


@dataclass(frozen=True)
class Pooling:
    """How the hidden states of a text's tokens become one vector: the first one, their mean or the last one; with
    `normalize` of length 1."""

    strategy: Strategy
    normalize: bool = True


class EmbeddingJob(Work):
    """The embeddings of some texts, which are computed in their order."""

    def __init__(self, texts: Sequence[Sequence[int]], pooling: Pooling) -> None:
        """`texts` are tokens, at least one of each."""
        super().__init__([], sum(map(len, texts)))  # no tokens: nothing is kept for texts that begin alike
        self.texts, self.pooling = texts, pooling
        self.vectors: list[Vector] = []  # of the texts that are done
        self._pooled: npt.NDArray[np.float64] | None = None  # of what is computed of the text that is not done
        self._left = self.prompt_tokens  # tokens of the texts that are not done

    @property
    def uncomputed(self) -> int:
        """Tokens that are yet to be computed, of all texts."""
        return self._left - self.computed

    @property
    def needed_tokens(self) -> int:
        """Tokens of the longest text."""
        return max(map(len, self.texts))

    def pieces(self, most_tokens: int, most_texts: int) -> list[Sequence[int]]:
        """What is due: a piece of a long text, or as many whole texts as fit."""
        first, *others = self.texts[len(self.vectors) : len(self.vectors) + most_texts]
        pieces = [first[self.computed : self.computed + most_tokens]]
        room = most_tokens - len(pieces[0])
        for text in others:
            room -= len(text)
            if room < 0:
                break
            pieces.append(text)
        return pieces

    def take(self, hidden: "Vector", lengths: Sequence[int]) -> None:
        """The hidden states [tokens, hidden] of pieces of these lengths. Raises EngineError for numbers that are not
        finite."""
        start = 0
        for length in lengths:
            self._add(hidden[start : start + length])
            start += length

    def _add(self, rows: "Vector") -> None:
        """More hidden states of the text that is not done."""
        import numpy as np

        before = None if not self.computed else self._pooled
        if self.pooling.strategy == "mean":
            pooled = rows.sum(0, dtype=np.float64)
            self._pooled = pooled if before is None else before + pooled
        elif self.pooling.strategy == "last" or before is None:
            self._pooled = rows[-1 if self.pooling.strategy == "last" else 0].astype(np.float64)
        length = len(self.texts[len(self.vectors)])
        self.computed += len(rows)
        if self.computed < length:
            return
        assert self._pooled is not None
        vector = self._pooled / length if self.pooling.strategy == "mean" else self._pooled
        self.vectors.append(scaled(vector) if self.pooling.normalize else vector.astype(np.float32))
        self.computed = 0
        self._left -= length
        if not np.isfinite(self.vectors[-1]).all():
            raise EngineError("the model's hidden states are not finite: its weights or its library are damaged")


def scaled(vector: "npt.NDArray[np.floating]") -> "Vector":
    """A vector at length 1, float32; zero stays as it is."""
    import numpy as np

    length = np.linalg.norm(vector.astype(np.float64))
    return (vector / (length or 1.0)).astype(np.float32)


def embed(model: LanguageModel, job: EmbeddingJob, most_tokens: int, make_room: Callable[[int], bool]) -> None:
    """One pass: the next texts of a job, together of at most so many tokens, or the next tokens of a long one.

    Texts that are done leave nothing in the KV cache. `make_room` frees pages that nobody needs, as many as it is told;
    where it cannot, fewer texts are taken. Raises CacheFullError when there is no room for one, before anything
    changes, and what the model raises.
    """
    pieces = job.pieces(most_tokens, model.embedded_at_once)
    while True:
        try:
            _pass(model, job, pieces)
            return
        except CacheFullError as full:
            if make_room(full.missing):
                continue
            if len(pieces) == 1:
                raise
            pieces = pieces[: len(pieces) // 2]


def _pass(model: LanguageModel, job: EmbeddingJob, pieces: Sequence[Sequence[int]]) -> None:
    others: list[int] = []
    try:
        if job.sequence is None:
            job.sequence = model.add_sequence()
        for _ in pieces[1:]:
            others.append(model.add_sequence())
        hidden = model.hidden_states([job.sequence, *others], pieces)
        job.take(hidden, [len(piece) for piece in pieces])
    finally:
        for sequence in others:
            with suppress(EngineError):  # the model has removed it already after a pass that failed
                model.remove_sequence(sequence)
    if not job.computed:
        sequence, job.sequence = job.sequence, None
        model.remove_sequence(sequence)
