"""The kernels of the sampler against numpy, and through the sampler."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy_sampling import NumpySampling

from mlc_llm.compiler.kernels.cpu.sampling import sampling_kernels
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime import ffi
from mlc_llm.runtime.logit_blocks import LibrarySampling
from mlc_llm.runtime.sampler import Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.tvm_runtime import load_runtime

Logits = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> LibrarySampling:
    """The kernels, compiled for this machine and called as the runtime calls them."""
    functions = {name: function.with_attr("global_symbol", name) for name, function in sampling_kernels().items()}
    path = tmp_path_factory.mktemp("kernels") / "sampling.so"
    tvm.compile(tvm.IRModule(functions), target=resolve_target().tvm_target()).export_library(str(path))
    load_runtime()
    return LibrarySampling(ffi.load_module(str(path)), 49_152)


@given(
    count=st.one_of(st.integers(1, 300), st.sampled_from([32_003, 49_152])),
    seed=st.integers(0, 1000),
    special=st.sampled_from([None, -math.inf, math.inf, math.nan, -math.nan]),
    offset=st.integers(0, 3),
    temperature=st.sampled_from([2.0, 1.0, 0.2, 1e-4]),
)
@settings(deadline=None, max_examples=300)
def test_blocks_are_reduced_as_by_numpy(
    kernels: LibrarySampling, count: int, seed: int, special: float | None, offset: int, temperature: float
) -> None:
    rng, oracle = np.random.default_rng(seed), NumpySampling()
    logits: Logits = (rng.standard_normal(count + offset) * 8).astype(np.float32)[offset:]  # at any address
    if special is not None:
        logits[rng.integers(0, count, 1 + count // 100)] = special
    np.testing.assert_array_equal(kernels.block_max(logits), oracle.block_max(logits))
    if special in (None, -math.inf) and np.isfinite(largest := float(logits.max())):
        sums = kernels.block_exp_sum(logits, largest, temperature)
        np.testing.assert_allclose(
            sums, oracle.block_exp_sum(logits, largest, temperature), rtol=3e-5 / min(temperature, 1), atol=1e-35
        )


def test_forbidden_tokens_have_no_weight_at_all(kernels: LibrarySampling) -> None:
    logits = np.full(200, -math.inf, np.float32)
    logits[150] = 3
    assert kernels.block_exp_sum(logits, 3.0, 1.0).tolist() == [0, 0, 1, 0]


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
