"""Models without kernels whose cache holds the tokens themselves, so that a wrong cache gives a wrong answer."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy_sampling import NumpySampling

from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.kv_cache import CacheFullError
from mlc_llm.runtime.model import Logits

PAGE = 4


class FakeModel:
    """Its logits are a function of the tokens that a sequence holds, and its cache has pages that run out."""

    def __init__(
        self,
        logits: Callable[[tuple[int, ...]], Logits] | None = None,
        *,
        vocab_size: int = 259,
        context_window: int = 64,
        max_num_sequence: int = 4,
        pages: int = 64,
    ) -> None:
        self.vocab_size, self.context_window, self.max_num_sequence = vocab_size, context_window, max_num_sequence
        self.sampling = NumpySampling()
        self.sequences: dict[int, list[int]] = {}
        self.computed: list[int] = []  # how many tokens each pass took
        self.passes: list[str] = []
        self.fail_after: int | None = None  # passes
        self._pages = pages
        self._ids = itertools.count(1)
        self._logits = logits or self._hashed

    def _hashed(self, tokens: tuple[int, ...]) -> Logits:
        random = np.random.default_rng(list(tokens))
        return random.standard_normal(self.vocab_size).astype(np.float32) * 3

    def free_pages(self) -> int:
        return self._pages - sum(-(-len(tokens) // PAGE) for tokens in self.sequences.values())

    def add_sequence(self) -> int:
        if len(self.sequences) >= self.max_num_sequence:
            raise EngineError("all sequences are in use")
        sequence = next(self._ids)
        self.sequences[sequence] = []
        return sequence

    def fork_sequence(self, parent: int, position: int) -> int:
        sequence = self.add_sequence()
        self.sequences[sequence] = self.sequences[parent][:position]
        self.passes.append("fork")
        return sequence

    def remove_sequence(self, sequence: int) -> None:
        if self.sequences.pop(sequence, None) is None:
            raise EngineError("no such sequence")

    def pop(self, sequence: int, count: int) -> None:
        tokens = self.sequences[sequence]
        assert 0 <= count <= len(tokens)
        del tokens[len(tokens) - count :]

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Logits:
        return self._forward("prefill", sequence, tokens)

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Logits:
        parts = [self._forward("decode", *pair) for pair in zip(sequences, [[token] for token in tokens], strict=True)]
        return np.stack(parts)

    def _forward(self, name: str, sequence: int, tokens: Sequence[int]) -> Logits:
        held = len(self.sequences[sequence])
        if -(-(held + len(tokens)) // PAGE) - -(-held // PAGE) > self.free_pages():
            raise CacheFullError("the cache is full")
        if self.fail_after is not None and len(self.passes) >= self.fail_after:
            self.remove_sequence(sequence)
            raise EngineError("the model failed")
        self.sequences[sequence].extend(tokens)
        self.passes.append(name)
        self.computed.append(len(tokens))
        return self._logits(tuple(self.sequences[sequence]))


def says(answer: Sequence[int], vocab_size: int = 259) -> Callable[[tuple[int, ...]], Logits]:
    """Logits of a model that gives `answer` after the first prompt that it sees, and repeats its end."""
    start: list[int] = []

    def logits(tokens: tuple[int, ...]) -> Logits:
        if not start:
            start.append(len(tokens))
        place = min(len(tokens) - start[0], len(answer) - 1)
        result = np.zeros(vocab_size, np.float32)
        result[answer[place]] = 20
        return result

    return logits
