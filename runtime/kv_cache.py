"""A paged KV cache: which pages belong to which sequence, and the tables by which kernels find them.

Keys and values of 16 tokens over all layers are a page. Sequences that begin alike share pages; one that writes to a
shared page first takes a copy of it. The tensors are those that compiler/kernels/kv_cache.py describes.
"""

from array import array
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

from . import ffi
from .artifact import KVCacheMetadata
from .errors import EngineError
from .ffi_tensor import empty
from .page_pool import PagePool
from .staged import Staged
from .tvm_runtime import Arena, nbytes_of, one_line

_MAX_SLOTS = 1 << 31  # slots are numbered with 32 bits


class CacheFullError(EngineError):
    """There are not as many free pages as new tokens need: `missing` more would do."""

    def __init__(self, message: str, missing: int) -> None:
        super().__init__(message)
        self.missing = missing


class _Sequence:
    """The tokens of a sequence, and the pages that hold them, as many as they take."""

    __slots__ = ("length", "next_slot", "pages", "room")

    def __init__(self, length: int, pages: list[int]) -> None:
        self.length, self.pages = length, pages
        # `room` more tokens can be stored from `next_slot` on: as far as is known without a look at the pages
        self.room = self.next_slot = 0


class KVCache:
    """Sequences of keys and values in pages. Everything is checked before anything changes."""

    def __init__(
        self,
        layout: KVCacheMetadata,
        *,
        max_num_sequence: int,
        max_total_sequence_length: int,
        max_new_tokens: int,
        device: ffi.Device = ffi.HOST,
        copy_page: Callable[..., Any] | None = None,
    ) -> None:
        """Room for that many sequences with that many tokens in all, of which one forward pass takes
        `max_new_tokens`. The host's memory is taken from the system when pages are first used. Raises EngineError when
        there is not that much. `copy_page(*stored, old, new)` copies a page of a `device`.
        """
        self.page_size = layout.page_size
        self.dtype: str = layout.dtype  # of keys and values
        self.max_num_sequence = max_num_sequence
        # each sequence may leave a part of its last page empty
        self.num_pages = -(-max_total_sequence_length // self.page_size) + max_num_sequence - 1
        self._sequences: dict[int, _Sequence] = {}
        self._next = 1  # sequence number
        rows = max(max_new_tokens, max_num_sequence)
        tables = [rows, rows, max_num_sequence + 1, max_num_sequence + 1,
                  max_num_sequence * self.num_pages, max_num_sequence, max_num_sequence + 1]  # fmt: skip
        sheets, rows_of_sheet = -(-self.num_pages // layout.sheet_pages), layout.sheet_pages * layout.page_size
        rows_of_kv = (sheets, layout.num_hidden_layers, 2, layout.num_key_value_heads, rows_of_sheet)
        stored: list[tuple[tuple[int, ...], str]] = [((*rows_of_kv, layout.head_dim), layout.dtype)]
        if layout.dtype == "int8":
            stored.append((rows_of_kv, "float32"))
        arrays = [((size,), "int32") for size in tables] + (stored if device.is_host else [])
        try:
            if self.num_pages * self.page_size >= _MAX_SLOTS:
                raise EngineError(f"at most {_MAX_SLOTS - 1} can be numbered")
            arena = Arena(sum(Arena.room(nbytes_of(shape, dtype)) for shape, dtype in arrays))
            made = [arena.tensor(shape, dtype) for shape, dtype in arrays]
            staged = [Staged(table, device) for table in made[:7]]
            self._stored = made[7:] or [empty(shape, dtype, device) for shape, dtype in stored]
        except (EngineError, ffi.FFIError) as error:
            reason = one_line(error)
            raise EngineError(f"a KV cache of {max_total_sequence_length} tokens failed: {reason}") from None
        self._pool = PagePool(self.num_pages, layout.sheet_pages)
        self._tables, self._each = staged[:6], staged[6]
        numbers = [table.numbers for table in self._tables]
        self._positions, self._slots, self._query_starts, self._page_starts, self._pages, self._lengths = numbers
        self._query_starts[0] = self._page_starts[0] = 0
        self._each.numbers[:] = array("i", range(max_num_sequence + 1))
        self._each.send(max_num_sequence + 1)
        self._device, self._copy = device, copy_page
        self._senders: dict[int, list[Callable[[], Any]]] = {}  # of the tables of a decoding step, by sequences
        self._bytes = [tensor.bytes() for tensor in self._stored] if device.is_host else []
        self._sheet_pages, self._sheets = layout.sheet_pages, sheets
        self._heads = prod(rows_of_kv[1:4])  # in whose keys or values a sheet has one piece of a page each
        self._table_of: list[int] = []  # the sequences whose pages `_pages` lists

    def length(self, sequence: int) -> int:
        """Tokens of a sequence."""
        return self._get(sequence).length

    def available_tokens(self) -> int:
        """Tokens for which there are free pages, if one sequence took them all."""
        return self.free_pages() * self.page_size

    def free_pages(self) -> int:
        """Pages that nobody holds."""
        return len(self._pool)

    def add(self, pages: Sequence[int] = ()) -> int:
        """A new sequence, which begins with full pages that somebody holds. Raises EngineError when all are taken."""
        sequence = self._add(_Sequence(len(pages) * self.page_size, list(pages)))
        self._pool.hold(pages)
        return sequence

    def full_pages(self, sequence: int) -> list[int]:
        """The pages of a sequence that are full: they stay as they are for as long as anybody holds them."""
        entry = self._get(sequence)
        return entry.pages[: entry.length // self.page_size]

    def hold(self, pages: Sequence[int]) -> None:
        """Keep pages of a sequence for longer than it lasts, until they are released."""
        self._pool.hold(pages)

    def release(self, page: int) -> bool:
        """Hold a page no longer. Returns whether it is free now."""
        return self._pool.release(page)

    def fork(self, parent: int, position: int) -> int:
        """A new sequence that shares the first `position` tokens of `parent`; both can go on."""
        source = self._get(parent)
        if not 0 <= position <= source.length:
            raise EngineError(f"sequence {parent} has {source.length} tokens; it cannot be forked at {position}")
        source.room = 0  # its last page may be shared now
        pages = source.pages[: -(-position // self.page_size)]
        sequence = self._add(_Sequence(position, pages))
        self._pool.hold(pages)
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
        entry.room = 0
        self._drop(entry, -(-entry.length // self.page_size))
        self._table_of = []

    def begin_forward(self, sequences: Sequence[int], counts: Sequence[int]) -> Any:
        """Append `counts[i]` tokens to `sequences[i]`, which the forward pass that gets the result will store.

        Returns the tensors of the cache, as the library's functions take them; they are valid until the next call.
        Raises CacheFullError when the pages do not suffice.
        """
        self.require_room(sequences, counts)
        start = 0
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            entry = self._sequences[sequence]
            before, after = entry.length, entry.length + count
            self._make_writable(entry, count)
            entry.length, entry.room = after, 0
            self._positions[start : start + count] = array("i", range(before, after))
            self._slots[start : start + count] = self._slots_of(entry, before)
            start += count
            self._query_starts[row + 1] = start
            self._lengths[row] = after
        if self._table_of != sequences:
            self._list_pages(sequences)
        rows = len(sequences)
        sizes = (start, start, rows + 1, rows + 1, self._page_starts[rows], rows)
        return ffi.array([*map(Staged.send, self._tables, sizes), *self._stored])

    def begin_decode(self, sequences: Sequence[int]) -> None:
        """Append one token to each of `sequences`, which differ; the forward pass takes `decode_tensors`.

        The same as `begin_forward`, for every step of every answer: within a page there is little to do. Raises
        CacheFullError when the pages do not suffice.
        """
        known = self._sequences
        try:
            entries = [known[sequence] for sequence in sequences]
        except KeyError as error:
            raise EngineError(f"sequence {error} is not in the KV cache") from None
        for entry in entries:
            if not entry.room:
                self._open(sequences, entries)
                break
        positions, slots, lengths = self._positions, self._slots, self._lengths
        for row, entry in enumerate(entries):
            positions[row] = entry.length
            slots[row] = entry.next_slot
            entry.length += 1
            lengths[row] = entry.length
            entry.next_slot += 1
            entry.room -= 1
        listed = self._table_of != sequences
        if listed:
            self._list_pages(sequences)
        if not self._device.is_host:
            self._send(len(entries), listed)

    def _send(self, rows: int, listed: bool) -> None:
        """Bring the tables of a decoding step to the device."""
        senders = self._senders.get(rows)
        if senders is None:
            positions, slots, _, _, _, lengths = self._tables
            senders = self._senders[rows] = [table.sender(rows) for table in (positions, slots, lengths)]
        for send in senders:
            send()
        if listed:
            _, _, _, page_starts, pages, _ = self._tables
            page_starts.send(rows + 1)
            pages.send(self._page_starts[rows])

    def decode_tensors(self, count: int) -> Any:
        """The tensors of the cache for passes that `begin_decode` begins with `count` sequences: always the same."""
        positions, slots, _, page_starts, pages, lengths = self._tables
        # decoding goes on from page to page, so it gets the whole table
        tables = [positions.view(count), slots.view(count), self._each.view(count + 1),
                  page_starts.view(count + 1), pages.device, lengths.view(count)]  # fmt: skip
        return ffi.array([*tables, *self._stored])

    def require_room(self, sequences: Sequence[int], counts: Sequence[int]) -> None:
        """Raise CacheFullError unless every `sequences[i]` can take `counts[i]` more tokens."""
        needed, free = sum(map(self.pages_needed, sequences, counts)), self.free_pages()
        if needed > free:
            raise CacheFullError(
                f"the KV cache is full: {free * self.page_size} tokens are free, {needed * self.page_size} are needed",
                needed - free,
            )

    def pages_needed(self, sequence: int, count: int) -> int:
        """Free pages that `count` more tokens of a sequence take; one may be for the copy of a shared page."""
        entry = self._get(sequence)
        if not count:
            return 0
        shared = entry.length % self.page_size and self._pool.is_shared(entry.pages[-1])
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

    def _open(self, sequences: Sequence[int], entries: Sequence[_Sequence]) -> None:
        """Find out where the next tokens are stored, and how many fit behind them."""
        self.require_room(sequences, [1] * len(sequences))
        for entry in entries:
            if not entry.room:
                self._make_writable(entry, 1)
                offset = entry.length % self.page_size
                entry.next_slot = entry.pages[-1] * self.page_size + offset
                entry.room = self.page_size - offset

    def _make_writable(self, entry: _Sequence, count: int) -> None:
        """Give a sequence pages of its own for `count` more tokens."""
        index, end = entry.length // self.page_size, entry.length + count
        if index < len(entry.pages) and count and self._pool.is_shared(entry.pages[index]):
            old, new = entry.pages[index], self._pool.take(entry.pages[index - 1] if index else -1)
            self._copy_page(old, new)
            self._pool.release(old)
            entry.pages[index] = new
            self._table_of = []
        missing = -(-end // self.page_size) - len(entry.pages)
        if missing > 0:
            for _ in range(missing):
                entry.pages.append(self._pool.take(entry.pages[-1] if entry.pages else -1))
            self._table_of = []

    def _copy_page(self, old: int, new: int) -> None:
        """Copy what is stored in a page, one piece for every layer, head, and keys or values."""
        if self._copy is not None:
            self._copy(*self._stored, old, new)
            return
        together = self._sheet_pages
        for memory in self._bytes:
            size = memory.nbytes // (self._sheets * self._heads * together)
            (source, of), (target, at) = divmod(old, together), divmod(new, together)
            for head in range(self._heads):
                read = ((source * self._heads + head) * together + of) * size
                write = ((target * self._heads + head) * together + at) * size
                memory[write : write + size] = memory[read : read + size]

    def _drop(self, entry: _Sequence, keep: int) -> None:
        """Give up all pages of a sequence but the first `keep`."""
        for page in reversed(entry.pages[keep:]):
            self._pool.release(page)
        del entry.pages[keep:]

    def _list_pages(self, sequences: Sequence[int]) -> None:
        """Write the pages of `sequences` to the table."""
        start = 0
        for row, sequence in enumerate(sequences):
            entry = self._sequences[sequence]
            end = start + len(entry.pages)
            self._pages[start:end] = array("i", entry.pages)
            self._page_starts[row + 1] = start = end
        self._table_of = list(sequences)
