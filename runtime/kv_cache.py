"""The paged KV cache of TVM's runtime, with the bookkeeping that refuses what would overflow it.

TVM checks too, but in the middle of a change, which leaves the cache unusable; here everything is checked first.
"""

from dataclasses import dataclass, replace

from . import ffi
from .errors import EngineError
from .library import Library
from .tvm_runtime import global_function, one_line


@dataclass(frozen=True)
class _Span:
    """Where a sequence lies in its pages: pages of the sink, then those of the window, which begins at `offset`."""

    held: int = 0  # tokens, at most the window
    sink: int = 0  # of them, those at the beginning of the text; 0 as long as nothing has slid out
    offset: int = 0

    def pages(self, size: int) -> int:
        """How many pages of `size` tokens that takes."""
        return -(-(self.held - self.sink + self.offset) // size)

    def slid(self, window: int, sink: int, size: int) -> "_Span":
        """The same after what has left the window is gone, as TVM's `SlideWindowForSequence` does it."""
        out = self.held - window
        if out <= 0:
            return self
        start = replace(self, sink=sink, offset=sink) if sink and not self.sink else self
        first, within = divmod(start.offset + out, size)
        return _Span(window, start.sink, min(first, -(-start.sink // size)) * size + within)


class KVCache:
    """Sequences of keys and values in pages. `state` is what the library's functions take."""

    def __init__(self, library: Library, *, max_num_sequence: int, max_total_sequence_length: int) -> None:
        """Room for that many sequences with that many tokens in all. Raises EngineError when memory runs out."""
        metadata = library.metadata
        self.page_size = metadata.kv_cache.page_size
        self.max_num_sequence = max_num_sequence
        # A model's window counts the token that looks, TVM's only those that it looks back at. Within one prefill
        # chunk TVM lets all tokens look back as far as the first one does, so long prompts see a little more.
        self.window = metadata.sliding_window_size - 1 if metadata.sliding_window_size > 1 else None
        self._sink = max(metadata.attention_sink_size, 0)
        self._lengths: dict[int, int] = {}
        self._spans: dict[int, _Span] = {}
        self._forked: set[int] = set()
        self._next = 0
        self._shape = ffi.shape
        limits = (
            max_num_sequence,
            max_total_sequence_length,
            metadata.prefill_chunk_size,
            self.page_size,
            int(self.window is not None),
        )
        try:
            self.state = library["create_tir_paged_kv_cache"](*(self._shape((limit,)) for limit in limits))
        except Exception as error:
            raise EngineError(f"a KV cache of {max_total_sequence_length} tokens failed: {one_line(error)}") from None
        names = ("add_sequence", "fork_sequence", "remove_sequence", "popn", "begin_forward", "end_forward")
        self._call = {name: global_function(f"vm.builtin.kv_state_{name}") for name in names}
        self._available_pages = global_function("vm.builtin.attention_kv_cache_get_num_available_pages")
        self._enable_window = global_function("vm.builtin.attention_kv_cache_enable_sliding_window_for_seq")

    def length(self, sequence: int) -> int:
        """Tokens that a sequence has taken; with a sliding window, more than the cache still holds."""
        try:
            return self._lengths[sequence]
        except KeyError:
            raise EngineError(f"sequence {sequence} is not in the KV cache") from None

    def available_tokens(self) -> int:
        """Tokens for which there are free pages, if one sequence took them all."""
        return int(self._available_pages(self.state)) * self.page_size

    def add(self) -> int:
        """A new, empty sequence. Raises EngineError when all are taken."""
        sequence = self._new_id()
        self._call["add_sequence"](self.state, sequence)
        if self.window is not None:
            self._enable_window(self.state, sequence, self.window, self._sink)
        self._lengths[sequence] = 0
        self._spans[sequence] = _Span()
        return sequence

    def fork(self, parent: int, position: int) -> int:
        """A new sequence that shares the first `position` tokens of `parent`; both can go on."""
        if not 0 <= position <= self.length(parent):
            raise EngineError(f"sequence {parent} has {self.length(parent)} tokens; it cannot be forked at {position}")
        if self.window is not None:
            raise EngineError(f"sequence {parent} has a sliding window of {self.window}; it cannot be forked")
        self._check_pages(1)  # a page that the two share in part is copied
        sequence = self._new_id()
        self._call["fork_sequence"](self.state, parent, sequence, position)
        self._lengths[sequence] = position
        self._spans[sequence] = _Span(position)
        self._forked |= {parent, sequence}
        return sequence

    def remove(self, sequence: int) -> None:
        """Forget a sequence; its pages are free again."""
        self.length(sequence)
        self._call["remove_sequence"](self.state, sequence)
        del self._lengths[sequence], self._spans[sequence]
        self._forked.discard(sequence)

    def pop(self, sequence: int, count: int) -> None:
        """Take the last `count` tokens back."""
        if not 0 <= count <= self.length(sequence):
            raise EngineError(f"sequence {sequence} has {self.length(sequence)} tokens; {count} cannot be taken back")
        if not self.can_rewind(sequence):
            raise EngineError(f"sequence {sequence} has left its sliding window of {self.window}; it cannot go back")
        if sequence in self._forked:
            self._check_pages(1)  # a page that is shared in part is copied
        self._call["popn"](self.state, sequence, count)
        self._lengths[sequence] -= count
        self._spans[sequence] = _Span(self._lengths[sequence])

    def can_rewind(self, sequence: int) -> bool:
        """Whether tokens can be taken back: not after the sliding window has dropped some."""
        return self.window is None or self.length(sequence) <= self.window

    def begin_forward(self, sequences: list[int], counts: list[int]) -> None:
        """Make room for `counts[i]` more tokens in `sequences[i]`. Raises EngineError when the pages do not suffice."""
        self.require_room(sequences, counts)
        self._call["begin_forward"](self.state, self._shape(tuple(sequences)), self._shape(tuple(counts)))
        for sequence, count in zip(sequences, counts, strict=True):
            self._spans[sequence] = self._grown(sequence, count)
            self._lengths[sequence] += count

    def end_forward(self) -> None:
        """The forward pass that `begin_forward` announced is complete."""
        self._call["end_forward"](self.state)

    def require_room(self, sequences: list[int], counts: list[int]) -> None:
        """Raise EngineError unless every `sequences[i]` can take `counts[i]` more tokens."""
        self._check_pages(sum(map(self.pages_needed, sequences, counts)))

    def pages_needed(self, sequence: int, count: int) -> int:
        """Free pages that `count` more tokens of a sequence take."""
        self.length(sequence)
        before, after = self._spans[sequence], self._grown(sequence, count)
        return max(0, after.pages(self.page_size) - before.pages(self.page_size))

    def _grown(self, sequence: int, count: int) -> _Span:
        span = self._spans[sequence]
        span = replace(span, held=span.held + count)
        return span if self.window is None else span.slid(self.window, self._sink, self.page_size)

    def _check_pages(self, count: int) -> None:
        free = int(self._available_pages(self.state))
        if count > free:
            raise EngineError(
                f"the KV cache is full: {free * self.page_size} tokens are free, {count * self.page_size} are needed"
            )

    def _new_id(self) -> int:
        if len(self._lengths) >= self.max_num_sequence:
            raise EngineError(f"all {self.max_num_sequence} sequences of the KV cache are in use")
        self._next += 1
        return self._next
