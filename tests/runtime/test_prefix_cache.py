"""Kept beginnings are found again as far as their pages go, and make room in the order of their use."""

import random

import pytest
from fake_model import PAGE, FakePages

from mlc_llm.runtime.prefix_cache import PrefixCache

TEXT = list(range(1, 200))


class Texts:
    """A prefix cache, and sequences that fill pages for it."""

    def __init__(self, pages: int = 64) -> None:
        self.pages = FakePages(pages)
        self.cache = PrefixCache(self.pages)

    def begin(self, tokens: list[int], prompt_tokens: int = 1000) -> int:
        """A sequence with these tokens, which shares what is known."""
        found = self.cache.find(tokens)
        self.pages.hold(found)
        sequence = len(self.pages.sequences)
        self.pages.sequences[sequence] = found
        self.pages.append(sequence, tokens[len(found) * PAGE :])
        assert self.pages.text(sequence) == tokens
        self.cache.keep(tokens, self.pages.full_pages(sequence), prompt_tokens)
        return sequence

    def end(self, sequence: int) -> None:
        for page in self.pages.sequences[sequence]:
            self.pages.release(page)
        self.pages.sequences[sequence] = []

    def known(self, tokens: list[int]) -> int:
        """Tokens of the beginning that is known."""
        return len(self.cache.find(tokens)) * PAGE


def test_a_text_is_known_as_far_as_its_pages_are_full() -> None:
    texts = Texts()
    texts.end(texts.begin(TEXT[:22]))
    assert texts.known(TEXT[:22]) == texts.known(TEXT) == 20
    assert texts.known(TEXT[:19]) == 16
    assert texts.known([*TEXT[:10], 200, *TEXT[11:]]) == 8
    assert texts.known([200, *TEXT]) == texts.known([]) == 0
    assert texts.pages.free_pages() == 64 - 5


def test_texts_that_begin_alike_share_pages() -> None:
    texts = Texts()
    first, second = texts.begin(TEXT[:16]), texts.begin([*TEXT[:8], 201, 202, 203, 204])
    assert texts.pages.sequences[first][:2] == texts.pages.sequences[second][:2]
    assert len(texts.cache) == 5


def test_what_was_decoded_can_be_left_out() -> None:
    texts = Texts()
    texts.end(texts.begin(TEXT[:24], prompt_tokens=15))
    assert len(texts.cache.find(TEXT)) == 6
    assert len(texts.cache.find(TEXT, from_prompts=True)) == 3
    assert len(texts.cache.find(TEXT, multiple=4)) == 4
    assert len(texts.cache.find(TEXT, multiple=2, from_prompts=True)) == 2


def test_two_that_computed_the_same_keep_it_once() -> None:
    texts = Texts()
    texts.begin(TEXT[:8])
    texts.pages.sequences[1] = []
    texts.pages.append(1, TEXT[:12])
    texts.cache.keep(TEXT[:12], texts.pages.full_pages(1), 12)
    assert len(texts.cache) == 3
    texts.end(1)
    assert texts.known(TEXT[:12]) == 12
    assert texts.pages.free_pages() == 64 - 3


def test_the_ends_of_the_oldest_texts_make_room_first() -> None:
    texts = Texts(pages=6)
    for text in (TEXT[:8], TEXT[20:28], TEXT[40:44]):
        texts.end(texts.begin(text))
    texts.known(TEXT[:4])
    assert texts.cache.make_room(3) == 3
    assert [texts.known(text) for text in (TEXT[:8], TEXT[20:28], TEXT[40:44])] == [4, 0, 4]
    assert texts.pages.free_pages() == 4


def test_pages_in_use_make_no_room() -> None:
    texts = Texts()
    running = texts.begin(TEXT[:12])
    texts.end(texts.begin(TEXT[:16]))
    assert texts.cache.make_room(10) == 1
    assert texts.known(TEXT[:16]) == 12
    texts.end(running)
    assert texts.cache.make_room(10) == 3
    assert texts.pages.free_pages() == 64


def test_nothing_is_left_after_clearing() -> None:
    texts = Texts()
    texts.end(texts.begin(TEXT))
    texts.cache.clear()
    assert (texts.known(TEXT), len(texts.cache), texts.pages.free_pages()) == (0, 0, 64)


@pytest.mark.parametrize("seed", range(5))
def test_pages_hold_what_they_are_found_for(seed: int) -> None:
    """Many texts that grow out of each other, on few pages."""
    chance = random.Random(seed)
    texts = Texts(pages=40)
    running: list[int] = []
    for _ in range(300):
        while running and (chance.random() < 0.3 or texts.pages.free_pages() < 12):
            texts.end(running.pop(chance.randrange(len(running))))
            if texts.pages.free_pages() < 12:
                texts.cache.make_room(12 - texts.pages.free_pages())
        if texts.cache.make_room(0) or texts.pages.free_pages() < 12:
            texts.cache.make_room(12 - texts.pages.free_pages())
        if texts.pages.free_pages() >= 12:
            text = [chance.randint(1, 2) for _ in range(chance.randint(1, 40))]
            running.append(texts.begin(text))
    for sequence in running:
        texts.end(sequence)
    texts.cache.clear()
    assert texts.pages.free_pages() == 40
