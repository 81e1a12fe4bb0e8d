"""The kernels of the sampler against numpy: each by itself, and through the sampler."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from compiled_kernels import aarch64_target, compile_kernel, needs_qemu
from compiled_sampling import compiled_sampling
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_sampling import NumpySampling, sample

from mlc_llm.compiler.kernels.cpu.sample_token import sample_token
from mlc_llm.runtime.artifact import SAMPLING_BLOCK
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.sampler import BatchSampler, Sampler
from mlc_llm.runtime.sampling_kernels import Cuts, LibrarySampling
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.token_mask import TokenMask, new_mask

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def kernels() -> LibrarySampling:
    return compiled_sampling()


def choose(kernels: LibrarySampling, logits: Logits, cuts: Cuts, uniform: float) -> int:
    (token,) = kernels.draws([cuts], logits.size).choose(LazyArray.over(logits), [uniform])
    return token


@given(
    count=st.one_of(st.integers(1, 300), st.sampled_from([32_003, 49_152])),
    seed=st.integers(0, 1000),
    special=st.sampled_from([None, -math.inf, math.inf, math.nan, -math.nan]),
    offset=st.integers(0, 3),
)
@settings(deadline=None, max_examples=150)
def test_blocks_are_reduced_as_by_numpy(
    kernels: LibrarySampling, count: int, seed: int, special: float | None, offset: int
) -> None:
    rng, oracle = np.random.default_rng(seed), NumpySampling()
    logits: Logits = (rng.standard_normal(count + offset) * 8).astype(np.float32)[offset:]  # at any address
    if special is not None:
        logits[rng.integers(0, count, 1 + count // 100)] = special
    np.testing.assert_array_equal(kernels.block_max(logits), oracle.block_max(logits))
    if special in (None, -math.inf) and np.isfinite(largest := float(logits.max())):
        sums = kernels.block_exp_sum(logits, largest)
        np.testing.assert_allclose(sums, oracle.block_exp_sum(logits, largest), rtol=3e-5, atol=1e-35)
    # the first of the largest, or of the NaNs
    assert choose(kernels, logits, Cuts(), 0.0) == sample(logits, Cuts(), 0.0)


@given(data=st.data())
@settings(deadline=None, max_examples=120)
def test_draws_are_those_of_a_full_sort(kernels: LibrarySampling, data: st.DataObject) -> None:
    """Logits on a grid: weights are equal or clearly apart, so that rounding decides nothing but the odd draw."""
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    count = data.draw(st.one_of(st.integers(1, 200), st.just(5000)))
    spread = data.draw(st.sampled_from([0.0, 0.5, 3.0, 20.0, 300.0]))
    logits: Logits = (np.round(rng.standard_normal(count) * spread * 8) / 8).astype(np.float32)
    if data.draw(st.booleans()):
        logits[rng.random(count) < 0.3] = -math.inf
        logits[rng.integers(count)] = 1.0
    cuts = Cuts(
        temperature=data.draw(st.sampled_from([0.25, 1.0, 2.0])),
        top_k=data.draw(st.sampled_from([0, 0, 1, 2, 7, 40, 150])),
        top_p=data.draw(st.sampled_from([1.0, 1e-9, 0.1234, 0.5678, 0.9012, 0.99876])),
        min_p=data.draw(st.sampled_from([0.0, 0.0, 0.0123, 0.3456, 1.0])),
    )
    for uniform in (2e-6, 0.123456789, 0.5, 0.987654321, 1 - 2**-53):
        ours = choose(kernels, logits, cuts, uniform)
        nearby = {
            sample(logits, cuts._replace(top_p=min(1.0, cuts.top_p * factor)), shifted)
            for factor in (1, 1 - 1e-6, 1 + 1e-6)
            for shifted in (uniform, max(0.0, uniform - 1e-6), min(1 - 2**-53, uniform + 1e-6))
        }
        # at the very end, rounding may choose any of the tokens that have next to no weight
        assert ours in nearby or (uniform > 1 - 1e-6 and ours >= min(nearby))


def test_rounding_of_sums_gives_no_token_without_weight(kernels: LibrarySampling) -> None:
    """Draws at the borders of blocks, whose sums are rounded; the tokens there weigh nothing."""
    rng = np.random.default_rng(0)
    logits: Logits = rng.standard_normal(40 * SAMPLING_BLOCK).astype(np.float32)
    logits.reshape(40, SAMPLING_BLOCK)[:, [0, -2, -1]] = -60
    sums = np.exp(logits.astype(np.float64)).reshape(40, SAMPLING_BLOCK).sum(1)
    for border in (sums.cumsum() / sums.sum())[:-1]:
        for distance in np.linspace(-2e-7, 2e-7, 21):
            assert logits[choose(kernels, logits, Cuts(temperature=1.0), float(border + distance))] > -10


@pytest.mark.parametrize("size", [259, 1000])
def test_rows_are_chosen_as_each_by_itself(kernels: LibrarySampling, size: int) -> None:
    rng = np.random.default_rng(0)
    logits: Logits = (rng.standard_normal((8, 1000)) * 4).astype(np.float32)
    logits[2, 17], logits[5] = math.nan, -math.inf
    warm, nucleus, top = Cuts(temperature=0.8), Cuts(temperature=1.0, top_p=0.9), Cuts(temperature=2.0, top_k=40)
    cuts = [Cuts(), warm, warm, nucleus, top, warm, Cuts(), Cuts(temperature=1.0, min_p=0.05)]
    uniforms = rng.random(8).tolist()
    rows = LazyArray(logits.ctypes.data, (8, size), logits, 1000)
    draws = kernels.draws(cuts, size)
    expected = [sample(row[:size], *how) for row, *how in zip(logits, cuts, uniforms, strict=True)]
    assert draws.choose(rows, uniforms) == expected
    assert (expected[2], expected[5]) == (-18, -1)
    some = LazyArray(rows[3].address, (2, size), logits, 1000)
    assert kernels.draws(cuts[3:5], size).choose(some, uniforms[3:5]) == expected[3:5]
    assert draws.choose(rows, uniforms) == expected


def test_only_what_the_sampler_was_made_for(kernels: LibrarySampling) -> None:
    for rows, size in ((9, 100), (1, 50_001)):
        with pytest.raises(ValueError, match=f"{rows} rows of {size} logits: the sampler was made for 8 rows of 50000"):
            kernels.draws([Cuts()] * rows, size)
    draws = kernels.draws([Cuts()] * 2, 100)
    with pytest.raises(ValueError, match=r"logits of shape \(2, 99\) for 2 rows of 100"):
        draws.choose(LazyArray(0, (2, 99), None), [0.0] * 2)
    with pytest.raises(ValueError, match="rows of 50001 logits: the sampler was made for 50000"):
        draws.choose(LazyArray(0, (2, 100), None, 50_001), [0.0] * 2)


def test_forbidden_tokens_have_no_weight_at_all(kernels: LibrarySampling) -> None:
    logits = np.full(200, -math.inf, np.float32)
    logits[150] = 3
    assert kernels.block_exp_sum(logits, 3.0).tolist() == [0, 0, 1, 0]


@needs_qemu
def test_neon_chooses_as_numpy() -> None:
    size, rng = 1000, np.random.default_rng(0)
    kernel = compile_kernel(sample_token(), aarch64_target("cortex-a76"))
    scratch = [np.zeros((1, count), dtype) for count, dtype in ((16, "f4"), (16, "f4"), (size, "i4"), (size, "f4"))]
    for cuts in (Cuts(), Cuts(temperature=1.0), Cuts(temperature=0.7, top_k=40, top_p=0.9, min_p=0.01)):
        logits = (rng.standard_normal(size) * 4).astype(np.float32)
        token = np.zeros(1, np.int32)
        kernel(logits[None], np.array([[*cuts.settings, size]]), np.array([0.4]), token, *scratch)
        assert token[0] == sample(logits, cuts, 0.4)


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=1, temperature=0.2, top_p=0.9),
        SamplingParams(seed=1, temperature=1.5, top_p=0.95, top_k=50, min_p=0.01),
        SamplingParams(seed=1, min_p=0.1, frequency_penalty=0.5, logprobs=True, top_logprobs=20),
    ],
)
def test_the_sampler_chooses_as_with_numpy(kernels: LibrarySampling, params: SamplingParams) -> None:
    size, rng = 32_003, np.random.default_rng(0)
    samplers = Sampler(params, size, kernels), Sampler(params, size, NumpySampling())
    for _ in range(20):
        logits = (rng.standard_normal(size) * 4).astype(np.float32)
        ours, theirs = (sampler.sample(logits) for sampler in samplers)
        assert ours.token == theirs.token
        assert [token for token, _ in ours.top] == [token for token, _ in theirs.top]
        if ours.logprob is not None:
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-6)


def test_a_batch_chooses_as_its_requests_do_by_themselves(kernels: LibrarySampling) -> None:
    size, rng = 1000, np.random.default_rng(0)
    requests = [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.9, frequency_penalty=0.5),
        SamplingParams(seed=3, top_k=20, logprobs=True, top_logprobs=2),
        SamplingParams(temperature=0, logit_bias={5: -100}, repetition_penalty=1.2),
    ]
    alone, members = ([Sampler(params, size, kernels, [7]) for params in requests] for _ in range(2))
    batch = BatchSampler(members)
    for step in range(40):
        logits = (rng.standard_normal((len(requests), size)) * 4).astype(np.float32)
        expected = [sampler.sample(row) for sampler, row in zip(alone, logits, strict=True)]
        if step < 20:
            assert batch.sample(logits) == expected
        elif step < 30:  # in two batches
            found = [
                BatchSampler(part).sample(rows) for part, rows in ((members[:2], logits[:2]), (members[2:], logits[2:]))
            ]
            assert [*found[0], *found[1]] == expected
        else:
            assert [sampler.sample(row) for sampler, row in zip(members, logits, strict=True)] == expected
    with pytest.raises(EngineError, match=r"logits of shape \(4, 1000\); expected \[5, 1000\]"):
        batch.sample(logits[:4])
    logits[3, 9] = math.inf
    found = batch.sample(logits)
    assert [isinstance(one, EngineError) for one in found] == [False, False, False, True, False]
    assert "gave the logit inf for token 9" in str(found[3])


@pytest.mark.parametrize("with_mask", [(0,), (0, 1, 2, 3, 4), (2, 3)])
def test_a_batch_with_masks_chooses_as_its_requests_do_by_themselves(
    kernels: LibrarySampling, with_mask: tuple[int, ...]
) -> None:
    size, rng = 1000, np.random.default_rng(0)
    requests = [
        SamplingParams(temperature=0),
        SamplingParams(seed=1),
        SamplingParams(seed=2, top_p=0.9, frequency_penalty=0.5),
        SamplingParams(seed=3, top_k=20, logprobs=True, top_logprobs=2),
        SamplingParams(temperature=0, logit_bias={5: -100}),
    ]
    alone, members = ([Sampler(params, size, kernels) for params in requests] for _ in range(2))
    batch = BatchSampler(members)
    for step in range(20):
        logits = (rng.standard_normal((len(requests), size)) * 4).astype(np.float32)
        masks: list[TokenMask | None] = [None] * len(requests)
        for row in with_mask if step % 2 else ():
            masks[row] = new_mask(size)
            masks[row][:] = rng.integers(-(2**31), 2**31, len(masks[row])).tolist()
        expected = [sampler.sample(row, mask) for sampler, row, mask in zip(alone, logits, masks, strict=True)]
        assert batch.sample(logits, masks if step % 2 else ()) == expected
        for sampled, mask in zip(expected, masks, strict=True):
            assert mask is None or mask[sampled.token // 32] >> sampled.token % 32 & 1
