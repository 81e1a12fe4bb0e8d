"""A paged KV cache: which pages belong to which sequence, and the tables by which kernels find them.

Keys and values of 16 tokens over all layers are a page. Sequences that begin alike share pages; one that writes to a
shared page first takes a copy of it. The tensors are those that compiler/kernels/kv_cache.py describes.
"""

from array import array
from collections.abc import Sequence
from typing import Any

from . import ffi
from .artifact import KVCacheMetadata
from .errors import EngineError
from .tvm_runtime import Arena, nbytes_of

_MAX_SLOTS = 1 << 31  # slots are numbered with 32 bits


class _Sequence:
    """The tokens of a sequence, and the pages that hold them, as many as they take."""

    __slots__ = ("length", "pages")

    def __init__(self, length: int, pages: list[int]) -> None:
        self.length, self.pages = length, pages


class KVCache:
    """Sequences of keys and values in pages. Everything is checked before anything changes."""

    def __init__(
        self, layout: KVCacheMetadata, *, max_num_sequence: int, max_total_sequence_length: int, max_new_tokens: int
    ) -> None:
        """Room for that many sequences with that many tokens in all, of which one forward pass takes
        `max_new_tokens`. Memory is taken from the system when pages are first used. Raises EngineError when there is
        not that much.
        """
        self.page_size = layout.page_size
        self.max_num_sequence = max_num_sequence
        # each sequence may leave a part of its last page empty
        self._num_pages = -(-max_total_sequence_length // self.page_size) + max_num_sequence - 1
        self._sequences: dict[int, _Sequence] = {}
        self._next = 1  # sequence number
        self._free: list[int] = []
        rows = max(max_new_tokens, max_num_sequence)
        tables = [(rows,), (rows,), (max_num_sequence + 1,), (max_num_sequence + 1,),
                  (max_num_sequence * self._num_pages,), (max_num_sequence,)]  # fmt: skip
        rows_of_kv = (self._num_pages, layout.num_hidden_layers, 2, layout.num_key_value_heads, layout.page_size)
        arrays: list[tuple[tuple[int, ...], str]] = [(shape, "int32") for shape in tables]
        arrays.append(((*rows_of_kv, layout.head_dim), layout.dtype))
        if layout.dtype == "int8":
            arrays.append((rows_of_kv, "float32"))
        try:
            if self._num_pages * self.page_size >= _MAX_SLOTS:
                raise EngineError(f"at most {_MAX_SLOTS - 1} can be numbered")
            arena = Arena(sum(Arena.room(nbytes_of(shape, dtype)) for shape, dtype in arrays))
        except EngineError as error:
            raise EngineError(f"a KV cache of {max_total_sequence_length} tokens failed: {error}") from None
        self._owners: list[int] = []  # how many sequences hold a page, of those that were ever used
        made = [arena.tensor(shape, dtype) for shape, dtype in arrays]
        self._tables, self._stored = made[:6], made[6:]
        numbers = [table.bytes().cast("i") for table in self._tables]
        self._positions, self._slots, self._query_starts, self._page_starts, self._pages, self._lengths = numbers
        self._query_starts[0] = self._page_starts[0] = 0
        self._bytes = [stored.bytes() for stored in self._stored]
        self._arguments: dict[int, Any] = {}
        self._table_of: list[int] = []  # the sequences whose pages `_pages` lists

    def length(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return self._get(sequence).length

    def available_tokens(self) -> int:
        """Tokens for which there are free pages, if one sequence took them all."""
        return self._free_pages() * self.page_size

    def add(self) -> int:
        """A new, empty sequence. Raises EngineError when all are taken."""
        return self._add(_Sequence(0, []))

    def fork(self, parent: int, position: int) -> int:
        """A new sequence that shares the first `position` tokens of `parent`; both can go on."""
        source = self._get(parent)
        if not 0 <= position <= source.length:
            raise EngineError(f"sequence {parent} has {source.length} tokens; it cannot be forked at {position}")
        pages = source.pages[: -(-position // self.page_size)]
        sequence = self._add(_Sequence(position, pages))
        for page in pages:
            self._owners[page] += 1
        return sequence

    def remove(self, sequence: int) -> None:
        """Forget a sequence; the pages that were its own are free again."""
        self._drop(self._get(sequence), 0)
        del self._sequences[sequence]
        self._table_of = []

    def pop(self, sequence: int, count: int) -> None:
        """Take the last `count` tokens back."""
        entry = self._get(sequence)
        if not 0 <= count <= entry.length:
            raise EngineError(f"sequence {sequence} has {entry.length} tokens; {count} cannot be taken back")
        entry.length -= count
        self._drop(entry, -(-entry.length // self.page_size))
        self._table_of = []

    def begin_forward(self, sequences: Sequence[int], counts: Sequence[int]) -> Any:
        """Append `counts[i]` tokens to `sequences[i]`, which the forward pass that gets the result will store.

        Returns the tensors of the cache, as the library's functions take them; they are valid until the next call.
        Raises EngineError when the pages do not suffice.
        """
        self.require_room(sequences, counts)
        start = 0
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            entry = self._sequences[sequence]
            before = entry.length
            entry.length = after = before + count
            self._make_writable(entry, before)
            if count == 1:
                self._positions[start] = before
                self._slots[start] = entry.pages[-1] * self.page_size + before % self.page_size
            else:
                self._positions[start : start + count] = array("i", range(before, after))
                self._slots[start : start + count] = self._slots_of(entry, before)
            start += count
            self._query_starts[row + 1] = start
            self._lengths[row] = after
        self._list_pages(sequences)
        return self._tensors(start, len(sequences))

    def require_room(self, sequences: Sequence[int], counts: Sequence[int]) -> None:
        """Raise EngineError unless every `sequences[i]` can take `counts[i]` more tokens."""
        needed, free = sum(map(self.pages_needed, sequences, counts)), self._free_pages()
        if needed > free:
            raise EngineError(
                f"the KV cache is full: {free * self.page_size} tokens are free, {needed * self.page_size} are needed"
            )

    def pages_needed(self, sequence: int, count: int) -> int:
        """Free pages that `count` more tokens of a sequence take; one may be for the copy of a shared page."""
        entry = self._get(sequence)
        if not count:
            return 0
        shared = entry.length % self.page_size and self._owners[entry.pages[-1]] > 1
        return -(-(entry.length + count) // self.page_size) - len(entry.pages) + bool(shared)

    def _slots_of(self, entry: _Sequence, start: int) -> "array[int]":
        """Where the tokens of a sequence from `start` on are stored."""
        size, slots = self.page_size, array("i")
        for index in range(start // size, len(entry.pages)):
            first, end = max(start - index * size, 0), min(entry.length - index * size, size)
            page = entry.pages[index] * size
            slots.extend(range(page + first, page + end))
        return slots

    def _get(self, sequence: int) -> _Sequence:
        try:
            return self._sequences[sequence]
        except KeyError:
            raise EngineError(f"sequence {sequence} is not in the KV cache") from None

    def _add(self, entry: _Sequence) -> int:
        if len(self._sequences) >= self.max_num_sequence:
            raise EngineError(f"all {self.max_num_sequence} sequences of the KV cache are in use")
        sequence = self._next
        self._next += 1
        self._sequences[sequence] = entry
        return sequence

    def _free_pages(self) -> int:
        return self._num_pages - len(self._owners) + len(self._free)

    def _take_page(self) -> int:
        """A free page, one whose memory is there already if possible."""
        if self._free:
            page = self._free.pop()
        else:
            page = len(self._owners)
            self._owners.append(0)
        self._owners[page] = 1
        return page

    def _make_writable(self, entry: _Sequence, start: int) -> None:
        """Give a sequence pages of its own for its tokens from `start` on."""
        index = start // self.page_size
        if index < len(entry.pages) and entry.length > start and self._owners[entry.pages[index]] > 1:
            old, new = entry.pages[index], self._take_page()
            for memory in self._bytes:
                size = memory.nbytes // self._num_pages
                memory[new * size : (new + 1) * size] = memory[old * size : (old + 1) * size]
            self._owners[old] -= 1
            entry.pages[index] = new
            self._table_of = []
        missing = -(-entry.length // self.page_size) - len(entry.pages)
        if missing > 0:
            entry.pages.extend(self._take_page() for _ in range(missing))
            self._table_of = []

    def _drop(self, entry: _Sequence, keep: int) -> None:
        """Give up all pages of a sequence but the first `keep`."""
        for page in reversed(entry.pages[keep:]):
            self._owners[page] -= 1
            if not self._owners[page]:
                self._free.append(page)
        del entry.pages[keep:]

    def _list_pages(self, sequences: Sequence[int]) -> None:
        """Write the pages of `sequences` to the table, unless they are there."""
        if self._table_of == sequences:
            return
        start = 0
        for row, sequence in enumerate(sequences):
            entry = self._sequences[sequence]
            end = start + len(entry.pages)
            self._pages[start:end] = array("i", entry.pages)
            self._page_starts[row + 1] = start = end
        self._table_of = list(sequences)

    def _tensors(self, tokens: int, sequences: int) -> Any:
        """The tensors of a pass over so many tokens and sequences; those of decoding are kept."""
        if tokens == sequences and tokens in self._arguments:
            return self._arguments[tokens]
        # decoding goes on from page to page with the same tensors, so it gets the whole table
        pages = len(self._pages) if tokens == sequences else self._page_starts[sequences]
        counts = (tokens, tokens, sequences + 1, sequences + 1, pages, sequences)
        tables = [table.view((count,)) for table, count in zip(self._tables, counts, strict=True)]
        arguments = ffi.array([*tables, *self._stored])
        if tokens == sequences:
            self._arguments[tokens] = arguments
        return arguments
