"""The kernels by which a model library chooses tokens, and reduces logits for their log-probabilities."""

import ctypes
import math
import mmap
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

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
    settings: tuple[float, ...] = field(init=False, repr=False)  # what the kernel takes

    def __post_init__(self) -> None:
        scale = _LOG2_E / self.temperature if self.temperature else 0.0
        # a little lower than needed, for rounding
        least = max(math.log2(self.min_p) - 1e-3, _LEAST_EXPONENT) if self.min_p > 0 else _LEAST_EXPONENT
        object.__setattr__(self, "settings", (scale, self.top_k, self.top_p, self.min_p, least))


class Draws(Protocol):
    """Requests whose tokens are chosen together, each from its row of logits."""

    def choose(self, logits: LazyArray, uniforms: list[float]) -> list[int]:
        """A token for each row of logits [rows, vocab], or for [vocab] as the only one.

        It is the one that the row's number of [0, 1) stands for: whose share of the running sum covers it. Where the
        largest logit is not finite (NaN counts as the largest): -1 - the token that has it.
        """
        ...


class SamplingKernels(Protocol):
    """What is compiled."""

    def draws(self, cuts: Sequence[Cuts]) -> Draws:
        """For requests whose tokens are chosen so. Many steps are done with it, one after another."""
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

    def __init__(self, library: KernelsByName, vocab_size: int, max_rows: int) -> None:
        """For at most that many rows of at most `vocab_size` logits."""
        self.lock = threading.Lock()  # of all arguments
        self.sample_token = library["sample_token"]
        # mapped, not used: only draws among many tokens need much of it
        nbytes = 4 * max_rows * 2 * (vocab_size + -(-vocab_size // SAMPLING_BLOCK))
        self.scratch = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._block_max, self._block_exp_sum = library["block_max"], library["block_exp_sum"]
        self._logits, self._out = ffi.Lent("float32"), ffi.Lent("float32")

    def draws(self, cuts: Sequence[Cuts]) -> "LibraryDraws":
        return LibraryDraws(self, cuts)

    def block_max(self, logits: Logits) -> Blocks:
        return self._reduced(self._block_max, logits)

    def block_exp_sum(self, logits: Logits, largest: float) -> Blocks:
        return self._reduced(self._block_exp_sum, logits, largest, _LOG2_E)

    def _reduced(self, kernel: ffi.Function, logits: Logits, *scalars: float) -> Blocks:
        import numpy as np

        out = np.empty(-(-logits.size // SAMPLING_BLOCK), np.float32)
        with self.lock:
            self._logits.point(_address(logits), logits.size)
            self._out.point(_address(out), out.size)
            kernel(self._logits, *scalars, self._out)
        return out


class LibraryDraws:
    """The arguments of a library's `sample_token`, made once."""

    def __init__(self, kernels: LibrarySampling, cuts: Sequence[Cuts]) -> None:
        rows = len(cuts)
        self._kernels, self._rows = kernels, rows
        self._settings = (ctypes.c_double * (5 * rows))(*(value for one in cuts for value in one.settings))
        self._uniforms, self._tokens = (ctypes.c_double * rows)(), (ctypes.c_int32 * rows)()
        self._logits, settings, uniforms = ffi.Lent("float32", 2), ffi.Lent("float64", 2), ffi.Lent("float64")
        settings.point(ctypes.addressof(self._settings), rows, 5)
        uniforms.point(ctypes.addressof(self._uniforms), rows)
        self._scratch = [ffi.Lent(dtype, 2) for dtype in ("float32", "float32", "int32", "float32")]
        tokens = ffi.Lent("int32")
        tokens.point(ctypes.addressof(self._tokens), rows)
        self._sample = kernels.sample_token.prepared(self._logits, settings, uniforms, *self._scratch, tokens)
        self._size = self._stride = 0

    def choose(self, logits: LazyArray, uniforms: list[float]) -> list[int]:
        size, stride = logits.shape[-1], logits.stride
        if size != self._size or stride != self._stride:
            self._lend(size, stride)
        self._logits.form.data = logits.address
        self._uniforms[:] = [*uniforms]
        with self._kernels.lock:
            self._sample()
        return self._tokens[:]

    def _lend(self, size: int, stride: int) -> None:
        """For rows of `size` logits that begin `stride` apart: lend what depends on that."""
        blocks = -(-size // SAMPLING_BLOCK)
        sizes = blocks, blocks, size, size
        if 4 * self._rows * sum(sizes) > len(self._kernels.scratch):
            raise ValueError(f"{self._rows} rows of {size} logits are more than the sampler was made for")
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._kernels.scratch))
        for lent, count in zip(self._scratch, sizes, strict=True):
            lent.point(address, self._rows, count)
            address += 4 * self._rows * count
        self._logits.point(0, self._rows, stride)
        self._size, self._stride = size, stride


def _address(array: Logits) -> int:
    """Where a contiguous array begins."""
    if isinstance(array, LazyArray):
        return array.address
    if array.flags.writeable:  # three times as fast as numpy's own ways to say it
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    address: int = array.__array_interface__["data"][0]
    return address
