"""Log-probabilities of tokens, from logits of which only the blocks that matter are looked at."""

import math

import numpy as np
import numpy.typing as npt

from .artifact import SAMPLING_BLOCK
from .sampling_kernels import SamplingKernels

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


def logprobs(logits: Logits, token: int, top: int, kernels: SamplingKernels) -> tuple[float, list[tuple[int, float]]]:
    """Log-probability of a token, and the `top` most likely tokens with theirs; impossible ones are left out.

    `logits` [vocab] are contiguous, and at least one of them is finite.
    """
    maxima = kernels.block_max(logits)
    largest = maxima.max()
    log_total = math.log(kernels.block_exp_sum(logits, float(largest)).sum(dtype=np.float64))
    pairs: list[tuple[int, float]] = []
    with np.errstate(over="ignore"):  # overflow to -inf is as good as the tiny probability that it stands for
        if top:
            ids, values = _most_likely(logits, maxima, min(top, logits.size))
            shifted = values - largest
            order = np.argsort(-shifted, kind="stable")
            pairs = [(int(ids[i]), float(shifted[i]) - log_total) for i in order if shifted[i] > -math.inf]
        return float(logits[token] - largest) - log_total, pairs


def _most_likely(logits: Logits, maxima: Logits, count: int) -> tuple[Ids, Logits]:
    """Ids, ascending, and logits of the `count` most likely tokens; of equals the lowest ids.

    At least `count` logits are not below the maximum of a block that ranks there among the maxima.
    """
    if count <= maxima.size:
        ids, values = _not_below(logits, maxima, _largest(maxima, count))
    else:
        ids, values = np.arange(logits.size), logits
    threshold = _largest(values, count)
    (places,) = (values >= threshold).nonzero()
    if surplus := places.size - count:
        equal = np.flatnonzero(values[places] == threshold)
        places = np.delete(places, equal[-surplus:])
    return ids[places], values[places]


def _not_below(logits: Logits, maxima: Logits, bound: float) -> tuple[Ids, Logits]:
    """Ids, ascending, and logits of the tokens whose logits are at least `bound`."""
    whole = logits.size // SAMPLING_BLOCK
    (blocks,) = (maxima[:whole] >= bound).nonzero()
    rows = logits[: whole * SAMPLING_BLOCK].reshape(whole, SAMPLING_BLOCK)[blocks]
    chosen, within = (rows >= bound).nonzero()
    ids, values = blocks[chosen] * SAMPLING_BLOCK + within, rows[chosen, within]
    rest = logits[whole * SAMPLING_BLOCK :]
    (places,) = (rest >= bound).nonzero()
    return np.concatenate([ids, places + whole * SAMPLING_BLOCK]), np.concatenate([values, rest[places]])


def _largest(values: Logits, count: int) -> float:
    """The `count`-th largest value."""
    place = values.size - count
    return float(np.partition(values, place)[place])
