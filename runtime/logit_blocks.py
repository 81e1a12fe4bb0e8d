"""The distribution of the next token, of whose logits only the blocks that matter are looked at.

The library's kernels read all logits and give a number for each block of 64 (see compiler/kernels/cpu/sampling.py).
"""

import ctypes
import math
import threading
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from . import ffi
from .artifact import SAMPLING_BLOCK

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_LOG2_E = math.log2(math.e)
_LEAST, _SETTINGS = (
    -125.0,
    7,
)  # of the kernel `draw`: the lowest exponent of 2 that has weight, how many numbers it takes


@dataclass(frozen=True)
class Cuts:
    """How logits become the distribution that is drawn from: softmax of logits / temperature, then the cuts.

    In this order: the top_k most likely tokens (0: all), of these the fewest that reach top_p (1: all), and of these
    the ones that are at least min_p times as likely as the most likely one. Equals rank by token id.
    """

    temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0


class KernelsByName(Protocol):
    """What `Library` is here."""

    def __getitem__(self, name: str) -> ffi.Function: ...


class SamplingKernels(Protocol):
    """What sampling has compiled."""

    def block_max(self, logits: Logits) -> Logits:
        """Of logits [vocab] the largest in each block, NaN where there is one."""
        ...

    def block_exp_sum(self, logits: Logits, largest: float, temperature: float) -> Logits:
        """The sum of exp((logit - largest) / temperature) in each block."""
        ...

    def draw(self, logits: Logits, maxima: Logits, largest: float, cuts: Cuts, uniform: float) -> int:
        """The token whose share of the running sum of the distribution covers `uniform` of [0, 1)."""
        ...


class LibrarySampling:
    """The sampling kernels of a model library. Safe to use from several threads."""

    def __init__(self, library: KernelsByName, vocab_size: int) -> None:
        """For at most `vocab_size` logits at a time."""
        self._lock = threading.Lock()  # of all arguments
        self._logits, self._maxima = ffi.Lent("float32"), ffi.Lent("float32")
        blocks = -(-vocab_size // SAMPLING_BLOCK)
        self._reduced, self._settings = _Memory(blocks, "float32"), _Memory(_SETTINGS, "float64")
        self._ids, self._weights = _Memory(vocab_size, "int32"), _Memory(vocab_size, "float32")
        self._token = _Memory(1, "int32")
        self._size = 0
        self._block_max = library["block_max"].prepared(self._logits, self._reduced.lent)
        self._block_exp_sum = library["block_exp_sum"]
        memory = (self._reduced, self._settings, self._ids, self._weights, self._token)
        self._draw = library["draw"].prepared(self._logits, self._maxima, *(m.lent for m in memory))

    def block_max(self, logits: Logits) -> Logits:
        with self._lock:
            blocks = self._lend(logits)
            self._block_max()
            return self._reduced.copy(blocks)

    def block_exp_sum(self, logits: Logits, largest: float, temperature: float) -> Logits:
        with self._lock:
            blocks = self._lend(logits)
            self._block_exp_sum(self._logits, largest, _LOG2_E / temperature, self._reduced.lent)
            return self._reduced.copy(blocks)

    def draw(self, logits: Logits, maxima: Logits, largest: float, cuts: Cuts, uniform: float) -> int:
        scale, top_k = _LOG2_E / cuts.temperature, cuts.top_k if cuts.top_k < logits.size else 0
        # a little lower than needed, for rounding
        least = max(math.log2(cuts.min_p) - 1e-3, _LEAST) if cuts.min_p > 0 else _LEAST
        with self._lock:
            self._lend(logits)
            self._maxima.point(_address(maxima), maxima.size)
            self._settings.array[:] = (largest, scale, top_k, cuts.top_p, cuts.min_p, least, uniform)
            self._block_exp_sum(self._logits, largest, scale, self._reduced.lent)
            self._draw()
            return int(self._token.array[0])

    def _lend(self, logits: Logits) -> int:
        """Let the arguments stand for these logits. Returns the number of their blocks."""
        blocks = -(-logits.size // SAMPLING_BLOCK)
        self._logits.point(_address(logits), logits.size)
        if logits.size != self._size:
            self._size = logits.size
            self._reduced.resize(blocks)
            self._ids.resize(logits.size)
            self._weights.resize(logits.size)
        return blocks


class _Memory:
    """An array of ours that is lent to kernels."""

    def __init__(self, count: int, dtype: str) -> None:
        self.array = np.empty(count, dtype)
        self._address = _address(self.array)
        self.lent = ffi.Lent(dtype)
        self.resize(count)

    def resize(self, count: int) -> None:
        """Lend only the first `count` elements."""
        self.lent.point(self._address, count)

    def copy(self, count: int) -> Logits:
        """The first `count` elements."""
        copied: Logits = self.array[:count].copy()
        return copied


def _address(array: npt.NDArray[Any]) -> int:
    """Where a contiguous array begins."""
    if array.flags.writeable:  # three times as fast as numpy's own ways to say it
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    address: int = array.__array_interface__["data"][0]
    return address


class LogitBlocks:
    """The logits [vocab] of one token to choose.

    Which tokens matter, the maxima of the blocks say: at least `n` logits are not below the n-th largest maximum.
    """

    def __init__(self, logits: Logits, kernels: SamplingKernels) -> None:
        self.logits = logits = np.ascontiguousarray(logits)
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

    def top(self, count: int) -> tuple[Ids, Logits]:
        """Ids, ascending, and logits of the `count` most likely tokens; of equals the lowest ids."""
        if count <= self._maxima.size:
            ids, logits = self.not_below(float(_largest(self._maxima, count)))
        else:
            ids, logits = np.arange(self.logits.size), self.logits
        kept = _first(logits, count, _largest(logits, count))
        return ids[kept], logits[kept]

    def draw(self, cuts: Cuts, uniform: float) -> int:
        """The token that a number of [0, 1) stands for."""
        return self._kernels.draw(self.logits, self._maxima, float(self.largest), cuts, uniform)

    def logprobs(self, token: int, top: int) -> tuple[float, list[tuple[int, float]]]:
        """Log-probability of a token, and `top` most likely tokens with theirs; impossible ones are left out."""
        sums = self._kernels.block_exp_sum(self.logits, float(self.largest), 1.0)
        log_total = math.log(sums.sum(dtype=np.float64))
        pairs: list[tuple[int, float]] = []
        with np.errstate(over="ignore"):  # overflow to -inf is as good as the tiny probability that it stands for
            if top:
                ids, logits = self.top(min(top, self.logits.size))
                shifted = logits - self.largest
                order = np.argsort(-shifted, kind="stable")
                pairs = [(int(ids[i]), float(shifted[i]) - log_total) for i in order if shifted[i] > -math.inf]
            return float(self.logits[token] - self.largest) - log_total, pairs


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
