"""What a library's sampling kernels compute, in numpy."""

import numpy as np

from mlc_llm.runtime.artifact import SAMPLING_BLOCK
from mlc_llm.runtime.sampling_kernels import Cuts, Logits


def blocks(values: Logits, filler: float) -> Logits:
    """[vocab] -> [blocks, 64], the last one filled up."""
    missing = -values.size % SAMPLING_BLOCK
    return np.pad(values, (0, missing), constant_values=filler).reshape(-1, SAMPLING_BLOCK)


class NumpySampling:
    """The oracle of the kernels, and what models without kernels have in their place."""

    def sample(self, logits: Logits, cuts: Cuts, uniform: float) -> tuple[int, float]:
        best = int(logits.argmax())
        largest = float(logits[best])
        if cuts.temperature == 0 or not np.isfinite(largest):
            return best, largest
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
        return int(ids[place]), largest

    def block_max(self, logits: Logits) -> Logits:
        largest: Logits = blocks(logits, -np.inf).max(axis=1)
        return largest

    def block_exp_sum(self, logits: Logits, largest: float) -> Logits:
        weights = np.exp(logits.astype(np.float64) - largest)
        return blocks(weights, 0).sum(axis=1).astype(np.float32)
