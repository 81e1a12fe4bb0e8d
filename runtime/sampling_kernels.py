"""The kernels by which a model library chooses tokens, and reduces logits for their log-probabilities."""

import ctypes
import math
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from . import ffi
from .artifact import SAMPLING_BLOCK
from .lazy_array import LazyArray

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Logits: TypeAlias = "npt.NDArray[np.float32] | LazyArray"
Blocks: TypeAlias = "npt.NDArray[np.float32]"

_LOG2_E = math.log2(math.e)
_LEAST_EXPONENT = -125.0  # of 2: what is below has no weight for the kernels


@dataclass(frozen=True)
class Cuts:
    """How logits become the distribution that is drawn from: softmax of logits / temperature, then the cuts.

    In this order: the top_k most likely tokens (0: all), of these the fewest that reach top_p (1: all), and of these
    the ones that are at least min_p times as likely as the most likely one. Equals rank by token id. A temperature of
    0 takes the most likely token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    settings: tuple[float, ...] = field(init=False, repr=False)  # what the kernel takes, but for the random number

    def __post_init__(self) -> None:
        scale = _LOG2_E / self.temperature if self.temperature else 0.0
        # a little lower than needed, for rounding
        least = max(math.log2(self.min_p) - 1e-3, _LEAST_EXPONENT) if self.min_p > 0 else _LEAST_EXPONENT
        object.__setattr__(self, "settings", (scale, self.top_k, self.top_p, self.min_p, least))


class SamplingKernels(Protocol):
    """What is compiled."""

    def sample(self, logits: Logits, cuts: Cuts, uniform: float) -> tuple[int, float]:
        """The token of logits [vocab] that `uniform` of [0, 1) stands for: whose share of the running sum covers it.

        And the largest logit. Where that is not finite (NaN counts as the largest), the token is the one that has it.
        """
        ...

    def block_max(self, logits: Logits) -> Blocks:
        """The largest of each `SAMPLING_BLOCK` logits, NaN where there is one."""
        ...

    def block_exp_sum(self, logits: Logits, largest: float) -> Blocks:
        """The sum of exp(logit - largest) in each block."""
        ...


class KernelsByName(Protocol):
    """What `Library` is here."""

    def __getitem__(self, name: str) -> ffi.Function: ...


class LibrarySampling:
    """The kernels of a model library. Safe to use from several threads."""

    def __init__(self, library: KernelsByName, vocab_size: int) -> None:
        """For at most `vocab_size` logits at a time."""
        self._lock = threading.Lock()  # of all arguments
        self._block_max, self._block_exp_sum = library["block_max"], library["block_exp_sum"]
        self._logits, self._out = ffi.Lent("float32"), ffi.Lent("float32")
        self._settings, self._token, self._largest = (ctypes.c_double * 6)(), ctypes.c_int32(), ctypes.c_float()
        settings, token = _lent("float64", self._settings, 6), _lent("int32", self._token, 1)
        results = token, _lent("float32", self._largest, 1)
        blocks = -(-vocab_size // SAMPLING_BLOCK)
        sizes = (blocks, blocks, vocab_size, vocab_size)
        self._scratch = [(ctypes.c_float * size)() for size in sizes]  # numbers of 4 bytes
        self._scratch_lent = [ffi.Lent(dtype) for dtype in ("float32", "float32", "int32", "float32")]
        self._sample = library["sample_token"].prepared(self._logits, settings, *self._scratch_lent, *results)
        self._size = 0

    def sample(self, logits: Logits, cuts: Cuts, uniform: float) -> tuple[int, float]:
        with self._lock:
            self._logits.point(_address(logits), logits.size)
            if logits.size != self._size:
                self._lend_scratch(logits.size)
            self._settings[:] = [*cuts.settings, uniform]
            self._sample()
            return self._token.value, self._largest.value

    def block_max(self, logits: Logits) -> Blocks:
        return self._reduced(self._block_max, logits)

    def block_exp_sum(self, logits: Logits, largest: float) -> Blocks:
        return self._reduced(self._block_exp_sum, logits, largest, _LOG2_E)

    def _reduced(self, kernel: ffi.Function, logits: Logits, *scalars: float) -> Blocks:
        import numpy as np

        out = np.empty(-(-logits.size // SAMPLING_BLOCK), np.float32)
        with self._lock:
            self._logits.point(_address(logits), logits.size)
            self._out.point(_address(out), out.size)
            kernel(self._logits, *scalars, self._out)
        return out

    def _lend_scratch(self, size: int) -> None:
        blocks = -(-size // SAMPLING_BLOCK)
        for lent, memory, count in zip(self._scratch_lent, self._scratch, (blocks, blocks, size, size), strict=True):
            lent.point(ctypes.addressof(memory), count)
        self._size = size


def _lent(dtype: str, memory: Any, count: int) -> ffi.Lent:
    lent = ffi.Lent(dtype)
    lent.point(ctypes.addressof(memory), count)
    return lent


def _address(array: Logits) -> int:
    """Where a contiguous array begins."""
    if isinstance(array, LazyArray):
        return array.address
    if array.flags.writeable:  # three times as fast as numpy's own ways to say it
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    address: int = array.__array_interface__["data"][0]
    return address
