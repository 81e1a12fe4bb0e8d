"""Models with a sliding window forget what has left it, and need no more room for a text without an end."""

from pathlib import Path

import numpy as np
import pytest
import tiny_model

from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.kv_cache import KVCache
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.model import Model

WINDOW = 32
TOKENS = np.random.default_rng(3).integers(0, 256, 120).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("window")
    sizes = {"sliding_window_size": WINDOW, "attention_sink_size": 0, "context_window_size": -1}
    config = tiny_model.write_folder(folder, **sizes)
    tiny_model.LibraryBuilder().build(folder / "tiny.so", tiny_model.metadata(config))
    return folder


def load(folder: Path, tokens: int) -> Model:
    return Model.load(folder, folder / "tiny.so", max_num_sequence=2, max_total_sequence_length=tokens)


def test_each_token_sees_its_window_only(folder: Path) -> None:
    model = load(folder, 2 * WINDOW)
    assert model.context_window > 1 << 20
    expected = tiny_model.reference_logits(TOKENS, window=WINDOW)
    sequence = model.add_sequence()
    other = model.add_sequence()
    np.testing.assert_allclose(model.prefill(sequence, TOKENS[:20]), expected[19], rtol=0, atol=2e-4)
    for place in range(20, 120):
        logits = model.decode([sequence, other], [TOKENS[place]] * 2)[0]
        np.testing.assert_allclose(logits, expected[place], rtol=0, atol=2e-4)


def test_a_text_can_go_back_until_the_window_moves(folder: Path) -> None:
    model = load(folder, 2 * WINDOW)
    sequence = model.add_sequence()
    model.prefill(sequence, TOKENS[:25])
    model.pop(sequence, 5)
    expected = tiny_model.reference_logits(TOKENS[:21])[-1]
    np.testing.assert_allclose(model.decode([sequence], [TOKENS[20]])[0], expected, rtol=0, atol=2e-4)
    model.prefill(sequence, TOKENS[:60])
    assert not model.can_rewind(sequence)
    with pytest.raises(EngineError, match="has left its sliding window of 31; it cannot go back"):
        model.pop(sequence, 1)
    assert not model.can_fork()
    with pytest.raises(EngineError, match="has a sliding window of 31; it cannot be forked"):
        model.fork_sequence(sequence, 5)


@pytest.mark.parametrize("sink", [-1, 1, 4, 16, 20])
def test_pages_are_foreseen_as_the_runtime_takes_them(folder: Path, sink: int) -> None:
    """The runtime checks in the middle of a change, so the count before must be the count after."""
    library = Library.load(folder / "tiny.so")
    library.metadata.attention_sink_size = sink
    chance = np.random.default_rng(sink + 1)
    cache = KVCache(library, max_num_sequence=2, max_total_sequence_length=2 * WINDOW)
    sequences = [cache.add(), cache.add()]
    for _ in range(300):
        sequence = sequences[chance.integers(2)]
        count = int(chance.choice([1, 1, 1, 2, 7, 16, 31]))
        needed, free = cache.pages_needed(sequence, count), cache.available_tokens() // 16
        before = cache._spans[sequence].pages(16)
        cache.begin_forward([sequence], [count])
        cache.end_forward()
        taken = free - cache.available_tokens() // 16
        assert max(0, taken) == needed
        assert cache._spans[sequence].pages(16) == before + taken


def test_a_cache_smaller_than_the_window_limits_the_context(folder: Path) -> None:
    assert load(folder, 16).context_window == 16
