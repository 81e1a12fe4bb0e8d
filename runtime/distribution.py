"""The probabilities with which tokens are drawn, for rules that need more than a draw."""

from typing import TYPE_CHECKING, TypeAlias

from .sampling_kernels import Cuts

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Probabilities: TypeAlias = "npt.NDArray[np.float64]"


def distribution(logits: "npt.NDArray[np.float32]", cuts: Cuts) -> Probabilities:
    """What the kernels draw from: finite logits [vocab] to probabilities [vocab], by cuts that are not greedy."""
    import numpy as np

    with np.errstate(over="ignore"):
        weights = np.exp((logits - logits.max()) * np.float32(1 / cuts.temperature))
    ids = np.flatnonzero(weights)
    if cuts.top_k and cuts.top_k < ids.size:
        ids = ids[weights[ids] >= np.partition(weights[ids], -cuts.top_k)[-cuts.top_k]]
        ids = ids[np.argsort(-weights[ids], kind="stable")][: cuts.top_k]
    if cuts.top_p < 1:
        # those that are rarer than this weigh less than 1 - top_p together
        total = weights[ids].sum(dtype=np.float64)
        ids = ids[weights[ids] >= (1 - cuts.top_p) * total / (ids.size + 1)]
        ids = ids[np.argsort(-weights[ids], kind="stable")]
        sums = weights[ids].cumsum(dtype=np.float64)
        ids = ids[: int(np.searchsorted(sums, cuts.top_p * total)) + 1]
    ids = ids[weights[ids] >= cuts.min_p]
    result = np.zeros(logits.size)
    result[ids] = weights[ids]
    result /= result.sum()
    return result


def drawn(probabilities: Probabilities, uniform: float) -> int:
    """The token that a number of [0, 1) stands for: whose share of the running sum covers it."""
    import numpy as np

    sums = probabilities.cumsum()
    return int(np.searchsorted(sums, min(uniform * sums[-1], np.nextafter(sums[-1], 0)), side="right"))
