"""Choosing tokens on devices, against a full sort in numpy."""

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from device_kernels import Kernel, compile_kernel
from device_kernels import device_kind as device_kind
from numpy_sampling import sample

from mlc_llm.compiler.kernels.gpu.sample_token import FOUND, sample_token
from mlc_llm.runtime.artifact import SAMPLING_BLOCK
from mlc_llm.runtime.sampling_kernels import Cuts

Logits = npt.NDArray[np.float32]

SOME, MANY = 3011, 262_144  # sizes of vocabularies that no number of threads divides, and of the largest
NEARLY_ONE = float(np.nextafter(np.float32(1), np.float32(0)))


@cache
def compiled(kind: str, vocab: int) -> Kernel:
    return compile_kernel(sample_token(vocab), kind)


def choose(
    kind: str, logits: Logits, cuts: Sequence[Cuts], uniforms: Sequence[float], count: int | None = None
) -> list[int]:
    """A token for each row of logits [rows, vocab], of which the first `count` are looked at."""
    rows, vocab = logits.shape
    settings = np.array([[*one.settings, count or vocab] for one in cuts], np.float32)
    tokens, blocks = np.full(rows, 10**9, np.int32), -(-vocab // SAMPLING_BLOCK)
    shapes = (rows, blocks), (rows, blocks), (rows, vocab), (rows, FOUND)
    scratch = [np.full(shape, 77, dtype) for shape, dtype in zip(shapes, ("i4", "f4", "i4", "i4"), strict=True)]
    compiled(kind, vocab)(logits, settings, np.array(uniforms, np.float32), tokens, *scratch)
    chosen: list[int] = tokens.tolist()
    return chosen


def expected(logits: Logits, cuts: Cuts, uniform: float) -> int:
    """What numpy chooses, given numbers of float32 as the device is."""
    return sample(logits, cuts._replace(top_p=float(np.float32(cuts.top_p))), float(np.float32(uniform)))


def is_right(token: int, logits: Logits, cuts: Cuts, uniform: float, slack: float = 4e-6) -> bool:
    """Whether a token is what numpy chooses, or would with sums that are rounded a little differently."""
    nearby = {
        expected(logits, cuts._replace(top_p=min(1.0, cuts.top_p * factor)), shifted)
        for factor in (1, 1 - slack, 1 + slack)
        for shifted in (uniform, max(0.0, uniform - slack), min(NEARLY_ONE, uniform + slack))
    }
    # at the very end, rounding may choose any of the tokens that have next to no weight
    return token in nearby or (uniform > 1 - slack and token >= min(nearby))


@pytest.mark.parametrize("seed", range(6))
def test_draws_are_those_of_a_full_sort(kind: str, seed: int) -> None:
    """Logits on a grid: weights are equal or clearly apart, so that rounding decides nothing but the odd draw."""
    rng = np.random.default_rng(seed)
    rows, count = 16, int(rng.choice([1, 2, 63, 64, 65, 200, 1025, SOME]))
    logits: Logits = np.full((rows, SOME), 1e30, np.float32)  # what follows is not looked at
    spread = rng.choice([0.0, 0.5, 3.0, 20.0, 300.0], (rows, 1))
    logits[:, :count] = np.round(rng.standard_normal((rows, count)) * spread * 8) / 8
    if seed % 2:
        logits[:, :count][rng.random((rows, count)) < 0.3] = -math.inf
        logits[:, rng.integers(count)] = 1.0
    cuts = [
        Cuts(
            temperature=rng.choice([0.25, 1.0, 2.0]),
            top_k=int(rng.choice([0, 0, 1, 2, 7, 40, 150, SOME])),
            top_p=rng.choice([1.0, 1e-9, 0.1234, 0.5678, 0.9012, 0.99876]),
            min_p=rng.choice([0.0, 0.0, 0.0123, 0.3456, 1.0]),
        )
        for _ in range(rows)
    ]
    for uniform in (2e-6, 0.123456789, 0.987654321, 1.0):
        tokens = choose(kind, logits, cuts, [uniform] * rows, count)
        for token, row, one in zip(tokens, logits, cuts, strict=True):
            assert is_right(token, row[:count], one, min(uniform, NEARLY_ONE)), (one, uniform, count)
        assert choose(kind, logits, cuts, [uniform] * rows, count) == tokens


@pytest.mark.parametrize("special", [None, -math.inf, math.inf, math.nan, -math.nan])
def test_the_most_likely_is_the_first_of_equals_and_nan_is_above_all(kind: str, special: float | None) -> None:
    rng = np.random.default_rng(0)
    logits: Logits = np.round(rng.standard_normal((20, SOME)) * 4).astype(np.float32)
    logits[0], logits[1], logits[2] = -0.0, -math.inf, -1.0
    logits[0, 70] = 0.0
    logits[2, [90, 700]] = -0.0, 0.0
    if special is not None:
        for row in logits[3:]:
            row[rng.integers(0, SOME, rng.integers(1, 9))] = special
        logits[5, :30] = math.inf
    tokens = choose(kind, logits, [Cuts()] * 20, [0.5] * 20)
    assert tokens == [sample(row, Cuts(), 0.5) for row in logits]
    assert (tokens[0], tokens[1], tokens[2]) == (0, -1, 90)
    # a draw has nothing to give where the largest is not finite
    unusable = [row for row, token in enumerate(tokens) if token < 0]
    for cuts in (Cuts(temperature=1.0), Cuts(temperature=1.0, top_k=5, top_p=0.5)):
        chosen = choose(kind, logits, [cuts] * 20, [0.5] * 20)
        assert [chosen[row] for row in unusable] == [tokens[row] for row in unusable]


def test_rows_are_chosen_as_each_by_itself(kind: str) -> None:
    rng = np.random.default_rng(0)
    logits: Logits = (rng.standard_normal((8, SOME)) * 4).astype(np.float32)
    logits[2, 17], logits[5] = math.nan, -math.inf
    warm, nucleus, top = Cuts(temperature=0.8), Cuts(temperature=1.0, top_p=0.9), Cuts(temperature=2.0, top_k=40)
    cuts = [Cuts(), warm, warm, nucleus, top, warm, Cuts(), Cuts(temperature=1.0, min_p=0.05)]
    uniforms = rng.random(8).tolist()
    tokens = choose(kind, logits, cuts, uniforms)
    assert tokens == [expected(*one) for one in zip(logits, cuts, uniforms, strict=True)]
    assert (tokens[2], tokens[5]) == (-18, -1)
    for i in range(6):
        assert choose(kind, logits[i : i + 1], cuts[i : i + 1], uniforms[i : i + 1]) == tokens[i : i + 1]


@pytest.mark.slow
def test_shares_of_a_large_vocabulary_add_up(kind: str) -> None:
    """The draw for many numbers, where each token weighs little beside the sum: 262144 terms of float32."""
    rng = np.random.default_rng(0)
    row: Logits = (rng.standard_normal(MANY) * 0.5).astype(np.float32)
    weights = np.exp(row.astype(np.float64))
    shares = weights.cumsum() / weights.sum()
    uniforms = rng.random(4).astype(np.float32)
    cuts = [Cuts(temperature=1.0)] * 2 + [Cuts(temperature=1.0, top_p=0.9999999)] * 2
    tokens = choose(kind, np.tile(row, (4, 1)), cuts, uniforms.tolist())
    for token, uniform in zip(tokens, uniforms, strict=True):
        assert abs(shares[token] - uniform) < 8e-6


def test_rounding_of_sums_gives_no_token_without_weight(kind: str) -> None:
    """Draws at the borders of blocks, whose sums are rounded; the tokens there weigh nothing."""
    rng = np.random.default_rng(0)
    row: Logits = np.full(SOME, -math.inf, np.float32)
    blocks = row[: SOME // SAMPLING_BLOCK * SAMPLING_BLOCK].reshape(-1, SAMPLING_BLOCK)
    blocks[:, 1:-2] = rng.standard_normal((len(blocks), SAMPLING_BLOCK - 3))
    sums = np.exp(blocks.astype(np.float64)).sum(1)
    borders = (sums.cumsum() / sums.sum())[:-1]
    uniforms = (borders[:, None] + np.linspace(-2e-7, 2e-7, 5)).reshape(-1)
    for cuts in (Cuts(temperature=1.0), Cuts(temperature=1.0, top_p=0.9999), Cuts(temperature=1.0, min_p=1e-5)):
        tokens = choose(kind, np.tile(row, (len(uniforms), 1)), [cuts] * len(uniforms), uniforms.tolist())
        assert np.isfinite(row[tokens]).all()
