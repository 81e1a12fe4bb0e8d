"""The distribution of the next token, of whose logits only the blocks that matter are looked at.

The library's kernels read all logits and give a number for each block of 64 (see compiler/kernels/cpu/sampling.py).
"""

import ctypes
import math
import threading
from typing import Protocol

import numpy as np
import numpy.typing as npt

from . import ffi
from .artifact import SAMPLING_BLOCK

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_NEARLY_ALL = 0.999  # of the weight: where the rest is so little, the kernels' rounding would show
_SELDOM_MORE = 64  # blocks with tokens of a nucleus
_FEW = 2048  # candidates that may as well be sorted


class KernelsByName(Protocol):
    """What `Library` is here."""

    def __getitem__(self, name: str) -> ffi.Function: ...


class SamplingKernels(Protocol):
    """What sampling has compiled; both functions take logits [vocab] and give a number for each block of them."""

    def block_max(self, logits: Logits) -> Logits:
        """The largest logit, NaN where there is one."""
        ...

    def block_exp_sum(self, logits: Logits, largest: float, temperature: float) -> Logits:
        """The sum of exp((logit - largest) / temperature)."""
        ...


class LibrarySampling:
    """The sampling kernels of a model library. Safe to use from several threads."""

    def __init__(self, library: KernelsByName, vocab_size: int) -> None:
        """For at most `vocab_size` logits at a time."""
        self._logits, out = ffi.Lent("float32"), ffi.Lent("float32")
        self._out, self._out_lent = np.empty(-(-vocab_size // SAMPLING_BLOCK), np.float32), out
        self._out_address = _address(self._out)
        self._block_max = library["block_max"].prepared(self._logits, out)
        self._block_exp_sum = library["block_exp_sum"]
        self._lock = threading.Lock()  # of the arguments

    def block_max(self, logits: Logits) -> Logits:
        with self._lock:
            blocks = self._lend(logits)
            self._block_max()
            maxima: Logits = self._out[:blocks].copy()
        return maxima

    def block_exp_sum(self, logits: Logits, largest: float, temperature: float) -> Logits:
        with self._lock:
            blocks = self._lend(logits)
            self._block_exp_sum(self._logits, largest, math.log2(math.e) / temperature, self._out_lent)
            sums: Logits = self._out[:blocks].copy()
        return sums

    def _lend(self, logits: Logits) -> int:
        """Let the arguments stand for these logits. Returns the number of their blocks."""
        blocks = -(-logits.size // SAMPLING_BLOCK)
        self._logits.point(_address(logits), logits.size)
        self._out_lent.point(self._out_address, blocks)
        return blocks


def _address(array: Logits) -> int:
    """Where a contiguous array begins; three times as fast as numpy's own ways to say it."""
    return ctypes.addressof(ctypes.c_char.from_buffer(array.data))


class LogitBlocks:
    """The logits [vocab] of one token to choose. Weights are the softmax but for its scale: the largest is 1.

    Which tokens matter, the maxima of the blocks say: at least `n` logits are not below the n-th largest maximum.
    """

    def __init__(self, logits: Logits, kernels: SamplingKernels) -> None:
        self.logits = logits
        self._kernels = kernels
        self._maxima = kernels.block_max(logits)
        first = int(self._maxima.argmax()) * SAMPLING_BLOCK  # to numpy a NaN is the largest
        self.best = first + int(logits[first : first + SAMPLING_BLOCK].argmax())
        self.largest = logits[self.best]

    def not_below(self, bound: float) -> tuple[Ids, Logits]:
        """Ids, ascending, and logits of the tokens whose logits are at least `bound`."""
        whole = self.logits.size // SAMPLING_BLOCK
        (blocks,) = (self._maxima[:whole] >= bound).nonzero()
        rows = self.logits[: whole * SAMPLING_BLOCK].reshape(whole, SAMPLING_BLOCK)[blocks]
        chosen, within = (rows >= bound).nonzero()
        ids = blocks[chosen] * SAMPLING_BLOCK + within
        logits = rows[chosen, within]
        if whole < self._maxima.size and self._maxima[whole] >= bound:
            rest = self.logits[whole * SAMPLING_BLOCK :]
            (places,) = (rest >= bound).nonzero()
            ids = np.concatenate([ids, places + whole * SAMPLING_BLOCK])
            logits = np.concatenate([logits, rest[places]])
        return ids, logits

    def weights(self, logits: Logits, temperature: float) -> Logits:
        """exp((logit - largest) / temperature)."""
        scaled = logits - self.largest
        scaled /= np.float32(temperature)
        weights: Logits = np.exp(scaled, out=scaled)
        return weights

    def top(self, count: int) -> tuple[Ids, Logits]:
        """Ids, ascending, and logits of the `count` most likely tokens; of equals the lowest ids."""
        if count <= self._maxima.size:
            ids, logits = self.not_below(float(_largest(self._maxima, count)))
        else:
            ids, logits = np.arange(self.logits.size), self.logits
        kept = _first(logits, count, _largest(logits, count))
        return ids[kept], logits[kept]

    def nucleus(self, top_p: float, temperature: float) -> tuple[Ids, Logits]:
        """Ids, ascending, and weights of the fewest most likely tokens that have at least `top_p` of all weight."""
        if top_p < _NEARLY_ALL:
            missing = top_p * float(self._sums(temperature).sum(dtype=np.float64))
            if missing <= 1:
                return np.array([self.best]), np.ones(1, np.float32)
            maxima = np.sort(self._maxima)[::-1]
            for most in (_SELDOM_MORE, maxima.size):
                reached = self.weights(maxima[:most], temperature).cumsum(dtype=np.float64) >= missing
                if reached[-1]:
                    ids, logits = self.not_below(float(maxima[reached.argmax()]))
                    weights = self.weights(logits, temperature)
                    kept = nucleus(weights, missing)
                    return ids[kept], weights[kept]
        weights = self.weights(self.logits, temperature)
        kept = nucleus(weights, top_p * float(weights.sum(dtype=np.float64)))
        return kept, weights[kept]

    def pick(self, uniform: float, temperature: float) -> int:
        """The token whose share of the running sum of all weights covers `uniform` of [0, 1)."""
        sums = self._sums(temperature).cumsum(dtype=np.float64)
        target = uniform * float(sums[-1])
        block = _covering(sums, target)
        first = block * SAMPLING_BLOCK
        weights = self.weights(self.logits[first : first + SAMPLING_BLOCK], temperature)
        within = weights.cumsum(dtype=np.float64)
        return first + _covering(within, target - (float(sums[block - 1]) if block else 0.0))

    def logprobs(self, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """Log-probability of a token, and `top` most likely tokens with theirs; impossible ones are left out."""
        log_total = math.log(self._sums(1.0).sum(dtype=np.float64))
        pairs: list[tuple[int, float]] = []
        if top:
            ids, logits = self.top(min(top, self.logits.size))
            shifted = logits - self.largest
            order = np.argsort(-shifted, kind="stable")
            pairs = [(int(ids[i]), float(shifted[i]) - log_total) for i in order if shifted[i] > -math.inf]
        return float(self.logits[token] - self.largest) - log_total, pairs

    def _sums(self, temperature: float) -> Logits:
        return self._kernels.block_exp_sum(self.logits, float(self.largest), temperature)


def _largest(values: Logits, count: int) -> np.float32:
    """The `count`-th largest value."""
    place = values.size - count
    value: np.float32 = np.partition(values, place)[place]
    return value


def _first(values: Logits, count: int, threshold: np.float32) -> Ids:
    """Ascending places of the `count` largest values, the smallest of which is `threshold`; of equals the lowest."""
    (places,) = (values >= threshold).nonzero()
    if surplus := places.size - count:
        equal = np.flatnonzero(values[places] == threshold)
        places = np.delete(places, equal[-surplus:])
    return places


def nucleus(weights: Logits, missing: float) -> Ids:
    """Places of the fewest largest weights whose sum is at least `missing`, ascending.

    The smallest of them is found as quickselect finds it: split the candidates at their mean, go on with the side
    that has it, and sort when few are left. So the work is that of a few passes, not that of a sort; the range of
    float32 leaves no room for a distribution that takes many.
    """
    candidates, above = weights, 0  # `above` weights that are larger than all candidates are in
    while candidates.size > _FEW:
        is_larger = candidates > candidates.mean()
        larger = np.compress(is_larger, candidates)
        if not 0 < larger.size < candidates.size:
            break  # all are equal
        mass = float(larger.sum(dtype=np.float64))
        if mass >= missing:
            candidates = larger
        else:
            missing -= mass
            above += larger.size
            candidates = np.compress(~is_larger, candidates)
    ordered = np.sort(candidates)[::-1]
    place = int(ordered.cumsum(dtype=np.float64).searchsorted(missing))
    place = min(place, ordered.size - 1)  # the sums are rounded and may stay just below `missing`
    return _first(weights, above + place + 1, ordered[place])


def pick(weights: Logits, uniform: float) -> int:
    """The place whose share of the running sum covers `uniform` of [0, 1); never one of weight 0."""
    sums = weights.cumsum(dtype=np.float64)
    return _covering(sums, uniform * float(sums[-1]))


def _covering(sums: npt.NDArray[np.float64], target: float) -> int:
    """The first place whose running sum is above `target`, which rounding may have lifted to the last sum."""
    return int(sums.searchsorted(min(target, math.nextafter(sums[-1], 0)), side="right"))
