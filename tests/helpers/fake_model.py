"""Models without kernels whose cache holds the tokens themselves, so that a wrong cache gives a wrong answer."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy_sampling import NumpySampling

from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.kv_cache import CacheFullError
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.model import Logits
from mlc_llm.runtime.sampling_kernels import Draws

PAGE = 4


class FakePages:
    """Pages by number, each with the tokens in it and how many hold it."""

    page_size = PAGE
    dtype = "float16"

    def __init__(self, count: int) -> None:
        self.num_pages = count
        self.owners: dict[int, int] = {}
        self.tokens: dict[int, list[int]] = {}
        self.sequences: dict[int, list[int]] = {}  # the pages of each
        self._ids = itertools.count()

    def free_pages(self) -> int:
        return self.num_pages - len(self.owners)

    def full_pages(self, sequence: int) -> list[int]:
        if sequence not in self.sequences:
            raise EngineError("no such sequence")
        return [page for page in self.sequences[sequence] if len(self.tokens[page]) == PAGE]

    def hold(self, pages: Sequence[int]) -> None:
        for page in pages:
            assert page in self.owners
            self.owners[page] += 1

    def release(self, page: int) -> bool:
        self.owners[page] -= 1
        if self.owners[page]:
            return False
        del self.owners[page], self.tokens[page]
        return True

    def text(self, sequence: int) -> list[int]:
        return [token for page in self.sequences[sequence] for token in self.tokens[page]]

    def append(self, sequence: int, tokens: Sequence[int]) -> None:
        pages = self.sequences[sequence]
        last = pages[-1] if pages else None
        room = PAGE - len(self.tokens[last]) if last is not None else 0
        missing = -(-(len(tokens) - room) // PAGE) - self.free_pages()
        if missing > 0:
            raise CacheFullError("the cache is full", missing)
        for token in tokens:
            if not pages or len(self.tokens[pages[-1]]) == PAGE:
                page = next(self._ids)
                self.owners[page], self.tokens[page] = 1, []
                pages.append(page)
            assert self.owners[pages[-1]] == 1, "a page that is shared is written to"
            self.tokens[pages[-1]].append(token)

    def pop(self, sequence: int, count: int) -> None:
        kept = self.text(sequence)
        kept = kept[: len(kept) - count]
        for page in self.sequences[sequence]:
            self.release(page)
        self.sequences[sequence] = []
        self.append(sequence, kept)


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
        prefill_chunk_size: int = 1024,
    ) -> None:
        self.vocab_size, self.context_window, self.max_num_sequence = vocab_size, context_window, max_num_sequence
        self.prefill_chunk_size = prefill_chunk_size
        self.embedded_at_once, self.hidden_size = 3, 32
        self.sampling = NumpySampling()
        self.embedded: list[list[int]] = []  # how many tokens of each text each pass for embeddings took
        self.computed: list[int] = []  # how many tokens each pass took
        self.passes: list[str] = []
        self.batches: list[int] = []  # how many answers each decoding pass was for
        self.texts: list[list[int]] = []  # what the sequence of each pass held after it
        self.fail_after: int | None = None  # passes
        self.pages = FakePages(pages)
        self._ids = itertools.count(1)
        self._logits = logits or self._hashed

    @property
    def sequences(self) -> dict[int, list[int]]:
        """The tokens of each sequence."""
        return {sequence: self.pages.text(sequence) for sequence in self.pages.sequences}

    def _hashed(self, tokens: tuple[int, ...]) -> Logits:
        random = np.random.default_rng(list(tokens))
        return random.standard_normal(self.vocab_size).astype(np.float32) * 3

    def add_sequence(self, pages: Sequence[int] = ()) -> int:
        if len(self.pages.sequences) >= self.max_num_sequence + self.embedded_at_once:
            raise EngineError("all sequences are in use")
        sequence = next(self._ids)
        self.pages.hold(pages)
        self.pages.sequences[sequence] = list(pages)
        return sequence

    def fork_sequence(self, parent: int, position: int) -> int:
        whole, rest = divmod(position, PAGE)
        sequence = self.add_sequence(self.pages.sequences[parent][:whole])
        self.pages.append(sequence, self.pages.text(parent)[position - rest : position])
        self.passes.append("fork")
        return sequence

    def remove_sequence(self, sequence: int) -> None:
        if sequence not in self.pages.sequences:
            raise EngineError("no such sequence")
        for page in self.pages.sequences.pop(sequence):
            self.pages.release(page)

    def pop(self, sequence: int, count: int) -> None:
        self.pages.pop(sequence, count)

    def prefill(self, sequence: int, tokens: Sequence[int]) -> Logits:
        return self._forward("prefill", sequence, tokens)

    def logits_of(self, sequence: int, tokens: Sequence[int]) -> Logits:
        return np.stack([np.asarray(self._forward("verify", sequence, [token])) for token in tokens])

    def verify(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> Logits:
        missing = sum(-(-len(some) // PAGE) + 1 for some in tokens) - self.pages.free_pages()
        if missing > 0:
            raise CacheFullError("the cache is full", missing)
        return np.concatenate([self.logits_of(*pair) for pair in zip(sequences, tokens, strict=True)])

    def hidden_states(self, sequences: Sequence[int], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        """Of each token: those of its text so far, hashed."""
        missing = sum(-(-len(some) // PAGE) for some in tokens) - self.pages.free_pages()
        if missing > 0:
            raise CacheFullError("the cache is full", missing)
        self.embedded.append([len(some) for some in tokens])
        rows = []
        for sequence, some in zip(sequences, tokens, strict=True):
            for token in some:
                rows.append(self._forward("hidden_states", sequence, [token])[: self.hidden_size])
        return np.stack(rows)

    def decode(self, sequences: Sequence[int], tokens: Sequence[int]) -> Logits:
        full = [sequence for sequence in sequences if len(self.pages.text(sequence)) % PAGE == 0]
        if len(full) > self.pages.free_pages():
            raise CacheFullError("the cache is full", len(full) - self.pages.free_pages())
        self.batches.append(len(sequences))
        parts = [self._forward("decode", *pair) for pair in zip(sequences, [[token] for token in tokens], strict=True)]
        return np.stack(parts)

    def decode_and_sample(
        self, sequences: Sequence[int], tokens: Sequence[int], draws: Draws, uniforms: list[float]
    ) -> list[int]:
        return draws.choose(LazyArray.over(self.decode(sequences, tokens)[:, : draws.vocab_size]), uniforms)

    def _forward(self, name: str, sequence: int, tokens: Sequence[int]) -> Logits:
        if self.fail_after is not None and len(self.passes) >= self.fail_after:
            self.remove_sequence(sequence)
            raise EngineError("the model failed")
        self.pages.append(sequence, tokens)
        self.passes.append(name)
        self.computed.append(len(tokens))
        self.texts.append(self.pages.text(sequence))
        if name == "prefill" and isinstance(self._logits, Says):
            self._logits.prompted(len(self.texts[-1]))
        return self._logits(tuple(self.texts[-1]))


class Says:
    """Logits of a model that gives `answer` after the first prompt that it sees, and repeats its end."""

    def __init__(self, answer: Sequence[int], vocab_size: int = 259) -> None:
        self._answer, self._vocab_size = answer, vocab_size
        self._start, self._answered = 0, False

    def prompted(self, length: int) -> None:
        """A piece of a prompt has been computed, which has so many tokens now."""
        if not self._answered:
            self._start = length

    def __call__(self, tokens: tuple[int, ...]) -> Logits:
        place = len(tokens) - self._start
        self._answered = self._answered or place > 0
        result = np.zeros(self._vocab_size, np.float32)
        result[self._answer[min(place, len(self._answer) - 1)]] = 20
        return result
