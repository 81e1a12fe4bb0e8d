"""Kept texts save work, and never change an answer, however few sequences and pages there are."""

import random

import numpy as np
import pytest
from fake_model import FakeModel

from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.prefix_cache import MIN_SHARED_TOKENS, Lease, PrefixCache

TEXT = list(range(1, 200))


def used_once(cache: PrefixCache, tokens: list[int]) -> Lease:
    lease = Lease()
    cache.advance(lease, tokens)
    cache.close(lease)
    return lease


def test_a_text_that_goes_on_is_not_computed_again() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    assert used_once(cache, TEXT[:20]).cached_tokens == 0
    assert used_once(cache, TEXT[:30]).cached_tokens == 20
    assert model.computed == [20, 10]


def test_the_same_text_again_computes_its_last_token_only() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    used_once(cache, TEXT[:20])
    assert used_once(cache, TEXT[:20]).cached_tokens == 19
    assert model.computed == [20, 1]
    assert len(model.sequences) == 1


def test_a_text_that_turns_off_goes_back_to_where_it_did() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    used_once(cache, TEXT[:20])
    assert used_once(cache, [*TEXT[:15], 200, 201]).cached_tokens == 15
    assert list(model.sequences.values()) == [[*TEXT[:15], 200, 201]]


def test_a_long_text_is_not_thrown_away_for_a_short_beginning() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    used_once(cache, TEXT[:50])
    assert used_once(cache, [*TEXT[:10], 200]).cached_tokens == 0
    assert used_once(cache, TEXT[:51]).cached_tokens == 50
    assert "fork" not in model.passes


def test_a_long_beginning_is_shared() -> None:
    model = FakeModel(pages=200)
    cache = PrefixCache(model)
    used_once(cache, TEXT)
    assert used_once(cache, [*TEXT[:MIN_SHARED_TOKENS], 250]).cached_tokens == MIN_SHARED_TOKENS
    assert model.passes == ["prefill", "fork", "decode"]
    assert used_once(cache, [*TEXT, 251]).cached_tokens == len(TEXT)


def test_a_text_in_use_is_shared_but_never_changed() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    first, second = Lease(), Lease()
    cache.advance(first, TEXT[:80])
    cache.advance(second, [*TEXT[:80], 250])
    assert (first.cached_tokens, second.cached_tokens) == (0, 80)
    cache.advance(first, [*TEXT[:80], 251])
    assert sorted(model.sequences.values()) == [[*TEXT[:80], 250], [*TEXT[:80], 251]]


def test_the_oldest_text_makes_room_for_a_new_one() -> None:
    model = FakeModel(max_num_sequence=2)
    cache = PrefixCache(model)
    used_once(cache, [1, 2, 3])
    used_once(cache, [4, 5, 6])
    used_once(cache, [7, 8, 9])
    assert sorted(model.sequences.values()) == [[4, 5, 6], [7, 8, 9]]


def test_the_text_with_the_most_in_common_is_taken_when_there_is_no_room() -> None:
    model = FakeModel(max_num_sequence=2)
    cache = PrefixCache(model)
    used_once(cache, TEXT[:50])
    used_once(cache, [7, 8, 9])
    assert used_once(cache, [*TEXT[:10], 250]).cached_tokens == 10
    assert sorted(model.sequences.values()) == [[*TEXT[:10], 250], [7, 8, 9]]


def test_pages_are_taken_from_texts_that_nobody_uses_first() -> None:
    model = FakeModel(pages=6)
    cache = PrefixCache(model)
    running = Lease()
    cache.advance(running, TEXT[:8])
    used_once(cache, [50, *TEXT[:8]])
    new = Lease()
    cache.advance(new, [60, *TEXT[:11]])
    assert sorted(model.sequences.values()) == [TEXT[:8], [60, *TEXT[:11]]]


def test_a_text_in_use_comes_back_after_it_had_to_make_room() -> None:
    model = FakeModel(max_num_sequence=1)
    cache = PrefixCache(model)
    first, second = Lease(), Lease()
    cache.advance(first, [1, 2, 3])
    cache.advance(second, [4, 5])
    assert first.entry is None
    logits = cache.advance(first, [1, 2, 3, 4])
    np.testing.assert_array_equal(logits, model._hashed((1, 2, 3, 4)))
    assert first.cached_tokens == 0


def test_a_text_that_no_cache_can_hold_is_an_error_and_leaves_nothing() -> None:
    model = FakeModel(pages=3)
    cache = PrefixCache(model)
    with pytest.raises(EngineError, match="the cache is full"):
        cache.advance(Lease(), TEXT[:13])
    assert not model.sequences


def test_after_a_pass_that_failed_the_text_is_computed_again() -> None:
    model = FakeModel()
    cache = PrefixCache(model)
    lease = Lease()
    cache.advance(lease, [1, 2])
    model.fail_after = 1
    with pytest.raises(EngineError, match="the model failed"):
        cache.advance(lease, [1, 2, 3])
    assert lease.entry is None
    assert not model.sequences
    model.fail_after = None
    np.testing.assert_array_equal(cache.advance(lease, [1, 2, 3]), model._hashed((1, 2, 3)))
    cache.close(lease)
    cache.close(lease)  # nothing left to close


@pytest.mark.parametrize("seed", range(6))
def test_whatever_happens_the_logits_are_those_of_the_text(seed: int) -> None:
    """Many generations at once on a small model: each sees the logits of its own tokens, at every step."""
    chance = random.Random(seed)
    model = FakeModel(max_num_sequence=chance.randint(1, 3), pages=40)
    cache = PrefixCache(model)
    running: list[tuple[Lease, list[int]]] = []
    texts: list[list[int]] = [[1]]
    for _ in range(400):
        if len(running) < 4 and chance.random() < 0.3:
            text = list(chance.choice(texts))
            text = [
                *text[: chance.randint(0, len(text))],
                *(chance.randint(1, 250) for _ in range(chance.randint(1, 70))),
            ]
            running.append((Lease(), text[:140]))
        if running and chance.random() < 0.2:
            lease, tokens = running.pop(chance.randrange(len(running)))
            cache.close(lease)
            texts.append(tokens)
        for lease, tokens in running:
            np.testing.assert_array_equal(cache.advance(lease, tokens), model._hashed(tuple(tokens)))
            if len(tokens) < 150:
                tokens.append(chance.randint(1, 250))
