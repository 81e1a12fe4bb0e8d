"""What the sampler chooses: oracles are transformers' logits processors and formulas written out in full."""

import ctypes
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compiled_sampling import compiled_sampling
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mlc_llm.runtime.errors import EngineError, RequestError
from mlc_llm.runtime.sampler import BatchSampler, Sampled, Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.token_mask import new_mask

Floats = npt.NDArray[Any]
KERNELS = compiled_sampling()
LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.5, 0.25], np.float32)


def expected_probabilities(
    logits: Floats, params: SamplingParams, generated: Sequence[int] = (), prompt: Sequence[int] = ()
) -> Floats:
    """The distribution of the next token, step by step as `Sampler` documents it, by transformers from penalties on."""
    scores = torch.tensor(logits, dtype=torch.float64)[None]
    for token, bias in params.logit_bias.items():
        scores[0, token] += -math.inf if bias == -100 else bias
    for token, count in Counter(generated).items():
        scores[0, token] -= params.presence_penalty + count * params.frequency_penalty
    ids = torch.tensor([[*prompt, *generated]], dtype=torch.int64)
    if params.repetition_penalty != 1 and ids.numel():
        scores = RepetitionPenaltyLogitsProcessor(params.repetition_penalty)(ids, scores)
    if params.temperature != 1:
        scores = TemperatureLogitsWarper(float(params.temperature))(ids, scores)
    if params.top_k:
        scores = TopKLogitsWarper(params.top_k)(ids, scores)
    if params.top_p < 1:
        scores = TopPLogitsWarper(params.top_p)(ids, scores)
    if params.min_p:
        scores = MinPLogitsWarper(params.min_p)(ids, scores)
    return np.asarray(torch.softmax(scores, dim=-1)[0].numpy())


class Sweep(Sampler):
    """A sampler whose draws go evenly through [0, 1), so that counting gives its distribution exactly."""

    def probabilities(self, logits: Floats, steps: int = 1000) -> Floats:
        counts = np.zeros(logits.size)
        for step in range(steps):
            self.uniform = (step + 0.5) / steps
            counts[self.sample(logits).token] += 1
        return counts / steps


def draws(params: SamplingParams, logits: Floats, count: int) -> list[int]:
    sampler = Sampler(params, logits.size, KERNELS)
    return [sampler.sample(logits).token for _ in range(count)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0),
        SamplingParams(top_k=3),
        SamplingParams(top_k=8),
        SamplingParams(top_k=100),
        SamplingParams(top_p=0.7),
        SamplingParams(min_p=0.2),
        SamplingParams(temperature=1.5, top_k=6, top_p=0.8, min_p=0.3),
        SamplingParams(logit_bias={0: -100, 5: 4.0, 6: -0.5}),
        SamplingParams(repetition_penalty=1.5),
        SamplingParams(repetition_penalty=0.7, logit_bias={4: -1}, temperature=0.8),
    ],
)
def test_the_distribution_is_that_of_transformers(params: SamplingParams) -> None:
    prompt = [0, 4, 4, 7]
    sampler = Sweep(params, LOGITS.size, KERNELS, prompt)
    if params.repetition_penalty != 1:  # each choice changes the next one's distribution
        first = [Sweep(params, LOGITS.size, KERNELS, prompt) for _ in range(1000)]
        tokens = []
        for step, one in enumerate(first):
            one.uniform = (step + 0.5) / 1000
            tokens.append(one.sample(LOGITS).token)
        found = np.bincount(tokens, minlength=LOGITS.size) / 1000
    else:
        found = sampler.probabilities(LOGITS)
    np.testing.assert_allclose(found, expected_probabilities(LOGITS, params, prompt=prompt), atol=1.01e-3)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_cuts_of_any_distribution_are_those_of_transformers(data: st.DataObject) -> None:
    levels = st.integers(-60, 60).map(lambda level: level / 8)
    logits = np.array(data.draw(st.lists(levels, min_size=1, max_size=30, unique=True)), np.float32)
    params = SamplingParams(
        temperature=data.draw(st.sampled_from([0.3, 1.0, 1.9])),
        top_k=data.draw(st.integers(0, 12).filter(lambda k: k != 1)),
        top_p=data.draw(st.floats(0.05, 1)),
        min_p=data.draw(st.sampled_from([0.0, 0.07, 0.5])),
    )
    nearby = [expected_probabilities(logits, SamplingParams(**{**vars(params), "top_p": top_p}))
              for top_p in (params.top_p * (1 - 1e-5), min(params.top_p * (1 + 1e-5), 1))]  # fmt: skip
    assume(np.array_equal(nearby[0] > 0, nearby[1] > 0))  # not where rounding decides
    found = Sweep(params, logits.size, KERNELS).probabilities(logits, 400)
    np.testing.assert_allclose(found, nearby[0], atol=2.6e-3)


@given(st.integers(0, 2**32), st.floats(0, 1), st.sampled_from([0.05, 1.0, 6.0, 40.0]), st.integers(1, 3000))
@settings(deadline=None, max_examples=200)
def test_never_a_token_outside_the_nucleus(seed: int, top_p: float, spread: float, size: int) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.standard_normal(size) * spread).round(1).astype(np.float32)  # rounded: with ties
    weights = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = weights / weights.sum()
    for token in draws(SamplingParams(top_p=top_p, seed=seed), logits, 20):
        more_likely = probabilities[logits > logits[token]].sum()
        assert more_likely < top_p + 1e-6 or logits[token] == logits.max()


@pytest.mark.parametrize(
    "kind", ["peaked", "normal", "flat", "two levels", "many levels", "all equal", "all but one forbidden"]
)
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999999])
def test_the_nucleus_of_a_large_vocabulary_is_that_of_a_full_sort(kind: str, top_p: float) -> None:
    size, rng = 50_000, np.random.default_rng(3)
    logits = {
        "peaked": rng.standard_normal(size) * 10,
        "normal": rng.standard_normal(size) * 3,
        "flat": rng.standard_normal(size) * 0.01,
        "two levels": np.where(np.arange(size) % 1000 == 0, 0.0, -12.0),
        "many levels": np.arange(size) // 500 * -0.7,
        "all equal": np.zeros(size),
        "all but one forbidden": np.where(np.arange(size) == 777, -5.0, -math.inf),
    }[kind].astype(np.float32)
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-weights, kind="stable")
    count = int(np.searchsorted(np.cumsum(weights[order]), top_p * weights.sum())) + 1
    nucleus = np.sort(order[:count])
    sampler = Sweep(SamplingParams(top_p=top_p), size, KERNELS)
    ends = []
    for uniform in (0.0, 1 - 2**-53):
        sampler.uniform = uniform
        ends.append(sampler.sample(logits).token)
    assert ends == [nucleus[0], nucleus[-1]]
    assert set(draws(SamplingParams(top_p=top_p, seed=1), logits, 30)) <= set(nucleus.tolist())


def test_draws_pass_a_chi_square_test() -> None:
    count = 20_000
    observed = np.bincount(draws(SamplingParams(seed=11), LOGITS, count), minlength=LOGITS.size)
    expected = expected_probabilities(LOGITS, SamplingParams()) * count
    chi_square = ((observed - expected) ** 2 / expected).sum()
    assert chi_square < 24.32  # 7 degrees of freedom, p = 0.001


def test_draws_of_the_same_step_under_different_seeds_pass_a_chi_square_test() -> None:
    count = 10_000
    tokens = [draws(SamplingParams(seed=seed), LOGITS, 1)[0] for seed in range(count)]
    expected = expected_probabilities(LOGITS, SamplingParams()) * count
    chi_square = ((np.bincount(tokens, minlength=LOGITS.size) - expected) ** 2 / expected).sum()
    assert chi_square < 24.32


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(frequency_penalty=0.7),
        SamplingParams(presence_penalty=1.3),
        SamplingParams(repetition_penalty=1.8),
        SamplingParams(frequency_penalty=-0.5, presence_penalty=0.9, repetition_penalty=0.6),
    ],
)
def test_penalties_count_what_was_generated(params: SamplingParams) -> None:
    prompt, generated, steps = [6, 5], [0, 1, 1, 1, 4], 500
    counts = np.zeros(LOGITS.size)
    for step in range(steps):
        sampler = Sweep(params, LOGITS.size, KERNELS, prompt)
        for token in generated:
            forced = np.full(LOGITS.size, -1e9, np.float32)
            forced[token], sampler.uniform = 50, 0.5
            assert sampler.sample(forced).token == token
        sampler.uniform = (step + 0.5) / steps
        counts[sampler.sample(LOGITS).token] += 1
    expected = expected_probabilities(LOGITS, params, generated, prompt)
    np.testing.assert_allclose(counts / steps, expected, atol=2.1e-3)


def test_a_seed_makes_draws_that_do_not_change_between_versions() -> None:
    flat = np.zeros(1000, np.float32)
    assert draws(SamplingParams(seed=42), flat, 8) == [820, 368, 876, 66, 986, 967, 849, 407]
    assert draws(SamplingParams(seed=-1), flat, 8) == draws(SamplingParams(seed=-1), flat, 8)
    assert len({tuple(draws(SamplingParams(seed=seed), flat, 8)) for seed in (0, 1, -1, 2**63 - 1, -(2**63))}) == 5


def test_without_a_seed_every_request_draws_its_own() -> None:
    flat = np.zeros(1000, np.float32)
    assert draws(SamplingParams(), flat, 8) != draws(SamplingParams(), flat, 8)


def test_a_draw_depends_only_on_the_seed_and_its_place_in_the_answer() -> None:
    sampler, other = (Sampler(SamplingParams(seed=5), LOGITS.size, KERNELS) for _ in range(2))
    for _ in range(7):
        sampler.sample(LOGITS)
        other.sample(LOGITS[::-1])
        draws(SamplingParams(seed=9), LOGITS, 1)  # another request in between
    assert [sampler.sample(LOGITS) for _ in range(20)] == [other.sample(LOGITS) for _ in range(20)]


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1e-5),
        SamplingParams(top_p=0),
        SamplingParams(top_p=1e-9),
        SamplingParams(top_k=1),
        SamplingParams(min_p=1.0),
        SamplingParams(temperature=0, top_p=0.1, top_k=5, seed=3),
    ],
)
def test_greedy_requests_take_the_most_likely_token(params: SamplingParams) -> None:
    assert set(draws(params, LOGITS, 20)) == {0}


def test_equal_logits_rank_by_token_id() -> None:
    ties = np.array([0, 3, 3, 1, 3, 3], np.float32)
    assert set(draws(SamplingParams(temperature=0), ties, 3)) == {1}
    assert set(draws(SamplingParams(top_k=2, seed=1), ties, 60)) == {1, 2}
    assert set(draws(SamplingParams(top_p=0.5, seed=1), ties, 60)) == {1, 2, 4}
    assert [token for token, _ in Sampler(
        SamplingParams(logprobs=True, top_logprobs=3), 6, KERNELS).sample(ties).top] == [1, 2, 4]  # fmt: skip


def test_a_bias_of_minus_100_forbids_whatever_the_logit() -> None:
    logits = LOGITS.copy()
    logits[0] = 500
    assert 0 not in draws(SamplingParams(logit_bias={0: -100}, seed=2), logits, 200)
    assert draws(SamplingParams(logit_bias={0: -100}, temperature=0), logits, 1) == [6]
    assert set(draws(SamplingParams(logit_bias={5: 100}, seed=2), LOGITS, 50)) == {5}


def test_impossible_tokens_are_never_chosen() -> None:
    logits = np.array([-math.inf, 0, -math.inf, 0, -math.inf], np.float32)
    sampler = Sweep(SamplingParams(top_k=4), 5, KERNELS)
    assert sampler.probabilities(logits).tolist() == [0, 0.5, 0, 0.5, 0]
    sampler = Sweep(SamplingParams(), 5, KERNELS)
    for uniform, token in ((0.0, 1), (1 - 2**-53, 3)):
        sampler.uniform = uniform
        assert sampler.sample(logits).token == token


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.7, top_k=2),
        SamplingParams(top_p=0.8, logit_bias={0: 100, 5: 2.0}),
        SamplingParams(min_p=0.3, repetition_penalty=1.5),
    ],
)
@pytest.mark.parametrize("allowed", [[1, 2, 6], [7], [0, 3, 4, 5, 6]])
def test_a_mask_leaves_the_distribution_of_the_allowed_tokens(params: SamplingParams, allowed: list[int]) -> None:
    logits = np.resize(LOGITS, 70)
    mask = new_mask(logits.size)
    for token in (*allowed, 40, 69):
        mask[token // 32] |= ctypes.c_int32(1 << token % 32).value
    forbidden = np.isin(np.arange(logits.size), [*allowed, 40, 69], invert=True)
    steps, counts = 500, np.zeros(logits.size)
    for step in range(steps):
        sampler = Sweep(params, logits.size, KERNELS, [0, 6])
        sampler.uniform = (step + 0.5) / steps
        counts[sampler.sample(logits, mask).token] += 1
    expected = expected_probabilities(np.where(forbidden, -math.inf, logits), params, prompt=[0, 6])
    np.testing.assert_allclose(counts / steps, expected, atol=2.1e-3)
    assert not counts[forbidden].any()


def test_a_mask_that_allows_nothing_leaves_nothing_to_choose() -> None:
    with pytest.raises(EngineError, match="no token is left to choose"):
        Sampler(SamplingParams(), LOGITS.size, KERNELS).sample(LOGITS, new_mask(LOGITS.size))


def test_logits_of_masked_tokens_may_be_the_lowest_floats() -> None:
    logits = np.full(6, np.finfo(np.float32).min, np.float32)
    logits[2] = 40
    assert set(draws(SamplingParams(temperature=0.1, repetition_penalty=1.5, seed=1), logits, 5)) == {2}


@pytest.mark.parametrize("params", [SamplingParams(logprobs=True, top_logprobs=5), SamplingParams(
    logprobs=True, top_logprobs=5, temperature=0.3, top_k=2, frequency_penalty=1, logit_bias={0: -100})])  # fmt: skip
def test_logprobs_are_those_of_the_model(params: SamplingParams) -> None:
    expected = torch.log_softmax(torch.tensor(LOGITS, dtype=torch.float64), dim=-1)
    sampler = Sampler(params, LOGITS.size, KERNELS)
    for _ in range(10):
        sampled = sampler.sample(LOGITS)
        assert sampled.logprob == pytest.approx(float(expected[sampled.token]), abs=1e-6)
        top = torch.topk(expected, 5)
        assert [token for token, _ in sampled.top] == top.indices.tolist()
        assert [logprob for _, logprob in sampled.top] == pytest.approx(top.values.tolist(), abs=1e-6)


def test_logprobs_come_only_when_asked_and_impossible_tokens_have_none() -> None:
    logits = np.array([-math.inf, 1, 0], np.float32)
    assert Sampler(SamplingParams(), 3, KERNELS).sample(logits).logprob is None
    assert Sampler(SamplingParams(logprobs=True), 3, KERNELS).sample(logits).top == []
    sampled = Sampler(SamplingParams(logprobs=True, top_logprobs=20), 3, KERNELS).sample(logits)
    assert [token for token, _ in sampled.top] == [1, 2]
    assert all(math.isfinite(logprob) for _, logprob in sampled.top)


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("value", "message"), [(math.nan, "gave the logit nan for token 3"), (math.inf, "gave the logit inf for token 3")]
)
@pytest.mark.parametrize("bias", [{}, {3: -5}])
def test_damaged_logits_are_an_engine_error(
    temperature: float, value: float, message: str, bias: dict[int, float]
) -> None:
    logits = LOGITS.copy()
    logits[3] = value
    with pytest.raises(EngineError, match=message):
        Sampler(SamplingParams(temperature=temperature, logit_bias=bias), LOGITS.size, KERNELS).sample(logits)


def test_damaged_logits_of_a_pass_are_an_engine_error() -> None:
    samplers = [Sampler(SamplingParams(temperature=0), 8, KERNELS) for _ in range(2)]
    assert samplers[0].accept(5) == Sampled(5)
    assert BatchSampler(samplers).accept([5, 6]) == [Sampled(5), Sampled(6)]
    message = "the logit of token 3 is not finite: the model's weights or its library are damaged"
    with pytest.raises(EngineError, match=message):
        samplers[0].accept(-4)
    good, bad = BatchSampler(samplers).accept([5, -4])
    assert (good, str(bad)) == (Sampled(5), message)


def test_infinite_logits_of_forbidden_tokens_are_an_engine_error() -> None:
    logits = LOGITS.copy()
    logits[3] = math.inf
    with pytest.raises(EngineError, match="gave the logit nan for token 3"):
        Sampler(SamplingParams(logit_bias={3: -100}), LOGITS.size, KERNELS).sample(logits)
    with pytest.raises(EngineError, match="gave the logit nan for token 3"):
        Sampler(SamplingParams(), LOGITS.size, KERNELS).sample(logits, new_mask(LOGITS.size))


def test_when_every_token_is_forbidden_there_is_nothing_to_choose() -> None:
    with pytest.raises(EngineError, match="no token is left to choose"):
        Sampler(SamplingParams(logit_bias={0: -100, 1: -100}), 2, KERNELS).sample(np.zeros(2, np.float32))


def test_logits_of_another_size_are_an_engine_error() -> None:
    with pytest.raises(EngineError, match=r"logits of shape \(1, 8\); expected \[8\]"):
        Sampler(SamplingParams(), 8, KERNELS).sample(LOGITS[None])


def test_invalid_requests_are_refused_before_anything_is_sampled() -> None:
    with pytest.raises(RequestError):
        Sampler(SamplingParams(temperature=-1), 8, KERNELS)
    with pytest.raises(EngineError, match="outside the model's vocabulary of 8"):
        Sampler(SamplingParams(repetition_penalty=1.1), 8, KERNELS, [3, 8])


def test_the_logits_of_the_caller_stay_as_they_are() -> None:
    logits = LOGITS.copy()
    logits.setflags(write=False)
    params = SamplingParams(
        logit_bias={1: 5}, frequency_penalty=1, repetition_penalty=1.2, top_p=0.9, logprobs=True, top_logprobs=3
    )
    sampler = Sampler(params, LOGITS.size, KERNELS, [2])
    for _ in range(5):
        sampler.sample(logits)
    np.testing.assert_array_equal(logits, LOGITS)
