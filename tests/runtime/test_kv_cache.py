"""Pages: whatever is added, forked, taken back and removed, the tables lead to the tokens that a sequence has."""

import itertools
from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime.artifact import KVCacheMetadata, KVDtype
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.kv_cache import CacheFullError, KVCache

PAGE, LAYERS = 16, 3


def make(
    sequences: int = 4, tokens: int = 512, dtype: KVDtype = "float32", new: int = 64, sheet_pages: int = 1
) -> KVCache:
    layout = KVCacheMetadata(
        num_hidden_layers=LAYERS, num_attention_heads=2, num_key_value_heads=2, head_dim=4, dtype=dtype,
        sheet_pages=sheet_pages,
    )  # fmt: skip
    return KVCache(layout, max_num_sequence=sequences, max_total_sequence_length=tokens, max_new_tokens=new)


def pages_of(stored: Any) -> Any:
    """The sheets of a tensor page by page: a view, `[sheets, sheet_pages, layers, 2, heads, PAGE, ..]`."""
    return np.moveaxis(stored.reshape(*stored.shape[:4], -1, PAGE, *stored.shape[5:]), 4, 1)


class Text:
    """Sequences of a cache beside the tokens that they should hold. A token is stored as its number, in all layers."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.tokens: dict[int, list[int]] = {}
        self.next = 1

    def forward(self, sequences: list[int], counts: list[int]) -> None:
        """Append new tokens as a forward pass does, and read all of these sequences back through the tables."""
        if max(counts) == 1:
            self.cache.begin_decode(sequences)
            state = self.cache.decode_tensors(len(sequences))
        else:
            state = self.cache.begin_forward(sequences, counts)
        tensors = [np.from_dlpack(tensor) for tensor in state]
        positions, slots, query_starts, page_starts, pages, lengths = tensors[:6]
        new = np.arange(self.next, self.next + sum(counts))
        self.next += sum(counts)
        stored_pages = [pages_of(stored) for stored in tensors[6:]]  # int8 rows come with scales
        together = stored_pages[0].shape[1]
        for stored in stored_pages:
            sheets, of = np.divmod(slots // PAGE, together)
            stored[sheets, of, :, :, :, slots % PAGE] = new.reshape(-1, *[1] * (stored.ndim - 3)) % 100
        assert positions.shape == slots.shape == (sum(counts),)
        assert query_starts.tolist() == [0, *np.cumsum(counts)]
        start = 0
        for row, (sequence, count) in enumerate(zip(sequences, counts, strict=True)):
            text = self.tokens.setdefault(sequence, [])
            assert positions[start : start + count].tolist() == list(range(len(text), len(text) + count))
            text.extend(new[start : start + count].tolist())
            assert lengths[row] == len(text) == self.cache.length(sequence)
            own = pages[page_starts[row] : page_starts[row + 1]]
            assert len(own) == -(-len(text) // PAGE)
            for stored in stored_pages:
                found = np.moveaxis(stored[own // together, own % together], 4, 1).reshape(len(own) * PAGE, -1)[
                    : len(text)
                ]
                assert (found == np.array(text)[:, None] % 100).all()
            start += count


@pytest.mark.parametrize("sheet_pages", [1, 4])
def test_random_histories(sheet_pages: int) -> None:
    chance = np.random.default_rng(0)
    text = Text(make(sequences=5, tokens=640, sheet_pages=sheet_pages))
    cache, room = text.cache, text.cache.available_tokens()
    for _ in range(1500):
        alive = list(text.tokens)
        match chance.integers(6):
            case 0 if len(alive) < 5:
                text.tokens[cache.add()] = []
            case 1 if 0 < len(alive) < 5:
                parent = int(chance.choice(alive))
                position = int(chance.integers(len(text.tokens[parent]) + 1))
                text.tokens[cache.fork(parent, position)] = text.tokens[parent][:position]
            case 2 if alive and chance.random() < 0.5:
                sequence = int(chance.choice(alive))
                cache.remove(sequence)
                del text.tokens[sequence]
            case 3 if alive:
                sequence = int(chance.choice(alive))
                count = int(chance.integers(min(len(text.tokens[sequence]), 40) + 1))
                cache.pop(sequence, count)
                del text.tokens[sequence][len(text.tokens[sequence]) - count :]
            case _ if alive:
                some = chance.permutation(alive)[: chance.integers(1, len(alive) + 1)].tolist()
                counts = [1] * len(some)
                if chance.random() < 0.4:
                    counts = [int(chance.choice([1, 1, 1, 2, 7, 30])) for _ in some]
                if sum(counts) <= 64 and sum(map(cache.pages_needed, some, counts)) * PAGE <= cache.available_tokens():
                    text.forward(some, counts)
    for sequence in list(text.tokens):
        cache.remove(sequence)
    assert cache.available_tokens() == room


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_a_page_that_is_shared_in_part_is_copied_by_the_one_that_writes(dtype: KVDtype) -> None:
    text = Text(make(dtype=dtype, sheet_pages=4))
    parent = text.cache.add()
    text.forward([parent], [40])
    free = text.cache.available_tokens()
    child = text.cache.fork(parent, 37)
    text.tokens[child] = text.tokens[parent][:37]
    assert text.cache.available_tokens() == free
    text.forward([child, parent], [1, 1])
    assert text.cache.available_tokens() == free - PAGE
    text.forward([parent, child], [1, 1])
    assert text.cache.available_tokens() == free - PAGE


@pytest.mark.parametrize("dtype", ["float16", "float32", "int8"])
def test_the_metadata_tell_what_a_token_takes(dtype: KVDtype) -> None:
    layout = KVCacheMetadata(
        num_hidden_layers=LAYERS, num_attention_heads=6, num_key_value_heads=2, head_dim=64, dtype=dtype, sheet_pages=4
    )
    cache = KVCache(layout, max_num_sequence=1, max_total_sequence_length=128, max_new_tokens=1)
    stored = [np.from_dlpack(tensor) for tensor in cache.decode_tensors(1)][6:]
    assert sum(tensor.nbytes for tensor in stored) == 128 * layout.bytes_per_token


def test_shared_pages_are_free_when_the_last_sequence_has_gone() -> None:
    text = Text(make())
    room = text.cache.available_tokens()
    parent = text.cache.add()
    text.forward([parent], [48])
    child = text.cache.fork(parent, 32)
    text.cache.remove(parent)
    assert text.cache.available_tokens() == room - 32
    text.cache.pop(child, 20)
    assert text.cache.available_tokens() == room - 16
    text.cache.remove(child)
    assert text.cache.available_tokens() == room


def test_pages_that_have_been_used_are_used_again() -> None:
    """Others cost memory that the system has not given yet."""
    text = Text(make())
    first = text.cache.add()
    text.forward([first], [40])
    used = set(np.from_dlpack(text.cache.begin_forward([first], [1])[4])[:3].tolist())
    text.cache.remove(first)
    again = text.cache.add()
    assert set(np.from_dlpack(text.cache.begin_forward([again], [40])[4])[:3].tolist()) == used


def test_texts_that_grow_side_by_side_lie_in_sheets_of_their_own() -> None:
    text = Text(make(tokens=512, sheet_pages=4))
    sequences = [text.cache.add() for _ in range(3)]
    for _ in range(100):
        text.forward(sequences, [1, 1, 1])
    pages, starts = (np.from_dlpack(text.cache.begin_forward(sequences, [0, 0, 0])[i]) for i in (4, 3))
    for start, end in itertools.pairwise(starts):
        own = pages[start:end]
        assert (np.diff(own)[np.arange(1, len(own)) % 4 != 0] == 1).all()
        assert (own[::4] % 4 == 0).all()


def test_every_sequence_can_waste_a_part_of_a_page() -> None:
    cache = make(sequences=4, tokens=64)
    for count in (13, 17, 17, 17):
        cache.begin_forward([cache.add()], [count])


def test_the_room_is_checked_before_anything_changes() -> None:
    cache = make(sequences=2, tokens=64, new=100)
    one, two = cache.add(), cache.add()
    cache.begin_forward([one], [17])
    free = cache.available_tokens()
    with pytest.raises(EngineError, match=f"the KV cache is full: {free} tokens are free, {free + 16} are needed"):
        cache.begin_forward([one, two], [16, free])
    assert (cache.length(one), cache.length(two), cache.available_tokens()) == (17, 0, free)
    cache.begin_forward([one, two], [15, free])
    assert cache.available_tokens() == 0
    with pytest.raises(CacheFullError):
        cache.begin_decode([one, two])
    assert (cache.length(one), cache.length(two)) == (32, free)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda cache: cache.length(9), "sequence 9 is not in the KV cache"),
        (lambda cache: cache.remove(9), "sequence 9 is not in the KV cache"),
        (lambda cache: cache.begin_forward([9], [1]), "sequence 9 is not in the KV cache"),
        (lambda cache: cache.begin_decode([1, 9]), "sequence 9 is not in the KV cache"),
        (lambda cache: cache.pop(1, 6), "sequence 1 has 5 tokens; 6 cannot be taken back"),
        (lambda cache: cache.pop(1, -1), "sequence 1 has 5 tokens; -1 cannot be taken back"),
        (lambda cache: cache.fork(1, 6), "sequence 1 has 5 tokens; it cannot be forked at 6"),
        (lambda cache: [cache.add() for _ in range(4)], "all 4 sequences of the KV cache are in use"),
    ],
)
def test_what_cannot_be_is_one_line(call: Any, message: str) -> None:
    cache = make()
    cache.begin_forward([cache.add()], [5])
    with pytest.raises(EngineError, match=message):
        call(cache)


def test_tensors_are_aligned_for_kernels() -> None:
    cache = make(dtype="int8")
    for tensor in cache.begin_forward([cache.add()], [1]):
        assert np.from_dlpack(tensor).ctypes.data % 64 == 0


def test_memory_that_is_not_there_is_one_line() -> None:
    with pytest.raises(EngineError, match="a KV cache of 1099511627776 tokens failed: at most 2147483647 can be"):
        make(tokens=1 << 40)
