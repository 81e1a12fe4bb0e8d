"""What a library's sampling kernels compute, in numpy."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlc_llm.runtime.artifact import SAMPLING_BLOCK
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.sampling_kernels import Cuts, Draws, Logits


def blocks(values: Logits, filler: float) -> Logits:
    """[vocab] -> [blocks, 64], the last one filled up."""
    missing = -values.size % SAMPLING_BLOCK
    return np.pad(values, (0, missing), constant_values=filler).reshape(-1, SAMPLING_BLOCK)


def sample(logits: Logits, cuts: Cuts, uniform: float) -> int:
    """The token that a draw gives, -1 - the token with the largest logit where that is not finite."""
    best = int(logits.argmax())
    largest = float(logits[best])
    if not np.isfinite(largest):
        return -1 - best
    if cuts.temperature == 0:
        return best
    with np.errstate(over="ignore"):
        weights = np.exp((logits.astype(np.float64) - largest) / cuts.temperature).astype(np.float32)
    ranked = np.argsort(-weights, kind="stable")
    if cuts.top_k:
        ranked = ranked[: cuts.top_k]
    if cuts.top_p < 1:
        sums = weights[ranked].cumsum(dtype=np.float64)
        ranked = ranked[: int(np.searchsorted(sums, cuts.top_p * sums[-1])) + 1]
    ids = np.sort(ranked[weights[ranked] >= cuts.min_p])
    sums = weights[ids].cumsum(dtype=np.float64)
    place = np.searchsorted(sums, min(uniform * sums[-1], np.nextafter(sums[-1], 0)), side="right")
    return int(ids[place])


@dataclass
class NumpyDraws:
    """Rows of requests."""

    cuts: Sequence[Cuts]
    vocab_size: int

    def choose(self, logits: LazyArray, uniforms: list[float]) -> list[int]:
        rows = logits.numpy().reshape(len(self.cuts), -1)
        return [sample(*one) for one in zip(rows, self.cuts, uniforms, strict=True)]


class NumpySampling:
    """The oracle of the kernels, and what models without kernels have in their place."""

    def draws(self, cuts: Sequence[Cuts], vocab_size: int) -> Draws:
        return NumpyDraws(cuts, vocab_size)

    def block_max(self, logits: Logits) -> Logits:
        largest: Logits = blocks(logits, -np.inf).max(axis=1)
        return largest

    def block_exp_sum(self, logits: Logits, largest: float) -> Logits:
        weights = np.exp(logits.astype(np.float64) - largest)
        return blocks(weights, 0).sum(axis=1).astype(np.float32)
