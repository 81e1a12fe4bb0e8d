"""Which text each sequence of the KV cache holds, so that a prompt that begins like one is not computed again."""

import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from .errors import EngineError
from .kv_cache import CacheFullError
from .model import LanguageModel, Logits

# What is shared in part only is copied; below a page of the KV cache that would be all.
MIN_SHARED_TOKENS = 16


@dataclass(eq=False)
class _Entry:
    """A sequence of the KV cache and the tokens whose keys and values it holds."""

    sequence: int
    tokens: list[int]
    lease: "Lease | None"
    last_use: int = 0


@dataclass(eq=False)
class Lease:
    """One generation's claim on a sequence. The sequence may be taken away; the next `advance` makes it again."""

    cached_tokens: int | None = None  # how much of the first text was there already
    entry: _Entry | None = field(default=None, repr=False)


class PrefixCache:
    """Hands the model's sequences to generations, and keeps them afterwards until their room is needed.

    A generation only says what its text is (`advance`). Where a kept sequence begins with the same tokens it is taken
    back to where they part, or shared if that would throw away more than it saves. When sequences or pages run out,
    the least recently used text goes: one that no generation uses, else that of another generation, which is computed
    again when that one goes on. So any number of generations can be open at once. Safe to use from several threads.
    """

    def __init__(self, model: LanguageModel) -> None:
        self._model = model
        self._entries: list[_Entry] = []
        self._lock = threading.Lock()
        self._clock = 0

    def advance(self, lease: Lease, tokens: Sequence[int]) -> Logits:
        """The logits after `tokens`, [vocab], of which those of the lease's last call are a prefix.

        Raises EngineError when the tokens do not fit even into an empty cache, or the model fails.
        """
        with self._lock:
            entry = lease.entry
            if entry is None:
                entry = self._find(tokens)
                entry.lease, lease.entry = lease, entry
                if lease.cached_tokens is None:
                    lease.cached_tokens = len(entry.tokens)
            self._clock += 1
            entry.last_use = self._clock
            try:
                return self._compute(entry, tokens[len(entry.tokens) :])
            except BaseException:  # an interrupted pass leaves the sequence half written
                self._remove(entry)
                raise

    def close(self, lease: Lease) -> None:
        """The generation has ended; its text stays for the next one."""
        with self._lock:
            if lease.entry is not None:
                lease.entry.lease = None
                lease.entry = None

    def _compute(self, entry: _Entry, tokens: Sequence[int]) -> Logits:
        while True:
            try:
                if len(tokens) == 1 and entry.tokens:
                    logits: Logits = self._model.decode([entry.sequence], tokens)[0]
                else:
                    logits = self._model.prefill(entry.sequence, tokens)
            except CacheFullError:
                if len(self._entries) == 1:
                    raise
                self._remove(self._least_useful(entry))
            else:
                entry.tokens.extend(tokens)
                return logits

    def _find(self, tokens: Sequence[int]) -> _Entry:
        """A sequence that holds a prefix of `tokens` and is nobody's; at least one token is left to compute."""
        common = {entry: _common_length(entry.tokens, tokens[:-1]) for entry in self._entries}
        idle = [entry for entry in self._entries if entry.lease is None]
        best = max(idle, key=lambda entry: (common[entry], -entry.last_use), default=None)
        if best is not None and 0 < len(best.tokens) <= 2 * common[best]:
            return self._rewind(best, common[best])
        if len(self._entries) < self._model.max_num_sequence:
            return self._share(common) or self._add()
        if best is not None:
            return self._rewind(best, common[best])
        self._remove(self._least_useful(None))
        return self._add()

    def _add(self) -> _Entry:
        entry = _Entry(self._model.add_sequence(), [], None)
        self._entries.append(entry)
        return entry

    def _share(self, common: dict[_Entry, int]) -> _Entry | None:
        """A new sequence on the longest beginning that another one has, None where that is not worth it."""
        parent = max(common, key=common.__getitem__, default=None)
        if parent is None or common[parent] < MIN_SHARED_TOKENS:
            return None
        sequence = self._model.fork_sequence(parent.sequence, common[parent])
        entry = _Entry(sequence, parent.tokens[: common[parent]], None)
        self._entries.append(entry)
        return entry

    def _rewind(self, entry: _Entry, length: int) -> _Entry:
        """A sequence, taken back to its first `length` tokens."""
        self._model.pop(entry.sequence, len(entry.tokens) - length)
        del entry.tokens[length:]
        return entry

    def _least_useful(self, keep: _Entry | None) -> _Entry:
        others = (entry for entry in self._entries if entry is not keep)
        return min(others, key=lambda entry: (entry.lease is not None, entry.last_use))

    def _remove(self, entry: _Entry) -> None:
        self._entries.remove(entry)
        if entry.lease is not None:
            entry.lease.entry = None
        with suppress(EngineError):  # the model has removed it already after a pass that failed
            self._model.remove_sequence(entry.sequence)


def _common_length(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two texts have in common from their start."""
    length = min(len(first), len(second))
    if first[:length] == second[:length]:
        return length
    return next(i for i in range(length) if first[i] != second[i])
