"""The figures of the quality page, against torch."""

import numpy as np
import pytest
import torch

from benchmarks.quality import divergence, perplexity


def logits(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((200, 50)).astype(np.float32) * 3


def test_divergence_is_that_of_torch() -> None:
    reference, candidate = logits(0), logits(1)
    log_probabilities = [torch.log_softmax(torch.from_numpy(each).double(), -1) for each in (candidate, reference)]
    kl = torch.nn.functional.kl_div(*log_probabilities, reduction="none", log_target=True).sum(-1)
    result = divergence(reference, candidate)
    assert result.mean_kl == pytest.approx(float(kl.mean()))
    assert result.max_kl == pytest.approx(float(kl.max()))


def test_the_same_logits_do_not_diverge() -> None:
    result = divergence(logits(0), logits(0))
    assert (result.mean_kl, result.max_kl, result.same_top) == (0, 0, 1)


def test_perplexity_is_the_exponential_of_torchs_cross_entropy() -> None:
    ids = np.random.default_rng(2).integers(0, 50, 200).tolist()
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(logits(0)[:-1]).double(), torch.tensor(ids[1:]))
    assert perplexity(logits(0), ids) == pytest.approx(float(loss.exp()))
