"""What a library's sampling kernels compute, in numpy."""

import numpy as np

from mlc_llm.runtime.artifact import SAMPLING_BLOCK
from mlc_llm.runtime.logit_blocks import Logits


def blocks(values: Logits, filler: float) -> Logits:
    """[vocab] -> [blocks, 64], the last one filled up."""
    missing = -values.size % SAMPLING_BLOCK
    return np.pad(values, (0, missing), constant_values=filler).reshape(-1, SAMPLING_BLOCK)


class NumpySampling:
    """The oracle of the kernels, and what models without kernels have in their place."""

    def block_max(self, logits: Logits) -> Logits:
        largest: Logits = blocks(logits, -np.inf).max(axis=1)
        return largest

    def block_exp_sum(self, logits: Logits, largest: float, temperature: float) -> Logits:
        with np.errstate(over="ignore"):
            weights = np.exp((logits.astype(np.float64) - largest) / temperature)
        return blocks(weights, 0).sum(axis=1).astype(np.float32)
