"""The kernels by which a model library chooses tokens, and reduces logits for their log-probabilities."""

import ctypes
import math
import mmap
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, Protocol, TypeAlias

from . import ffi
from .artifact import SAMPLING_BLOCK
from .ffi_tensor import Lent, Tensor, copier, copy, empty, tensor
from .lazy_array import LazyArray

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Logits: TypeAlias = "npt.NDArray[np.float32] | LazyArray"
Blocks: TypeAlias = "npt.NDArray[np.float32]"
Arguments = ParamSpec("Arguments")

_LOG2_E = math.log2(math.e)
_LARGEST_UNIFORM = 1 - 2**-24  # below 1 as a float32
_LEAST_EXPONENT = -125.0  # of 2: what is below has no weight for the kernels


class Cuts(NamedTuple):
    """How logits become the distribution that is drawn from: softmax of logits / temperature, then the cuts.

    In this order: the top_k most likely tokens (0: all), of these the fewest that reach top_p (1: all), and of these
    the ones that are at least min_p times as likely as the most likely one. Equals rank by token id. A temperature of
    0 takes the most likely token.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    @property
    def settings(self) -> tuple[float, ...]:
        """What the kernel takes."""
        scale = _LOG2_E / self.temperature if self.temperature else 0.0
        # a little lower than needed, for rounding
        least = max(math.log2(self.min_p) - 1e-3, _LEAST_EXPONENT) if self.min_p > 0 else _LEAST_EXPONENT
        return scale, self.top_k, self.top_p, self.min_p, least


class Draws(Protocol):
    """Requests whose tokens are chosen together, each from its row of logits."""

    @property
    def vocab_size(self) -> int: ...

    def choose(self, logits: LazyArray, uniforms: list[float]) -> list[int]:
        """A token for each row of logits [rows, vocab], or for [vocab] as the only one.

        It is the one that the row's number of [0, 1) stands for: whose share of the running sum covers it. Where the
        largest logit is not finite (NaN counts as the largest): -1 - the token that has it.
        """
        ...


class SamplingKernels(Protocol):
    """What is compiled."""

    def draws(self, cuts: Sequence[Cuts], vocab_size: int) -> Draws:
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
        self.vocab_size, self.max_rows = vocab_size, max_rows
        self.lock = threading.Lock()  # of all arguments
        self.sample_token = library["sample_token"]
        # mapped, not used: only draws among many tokens need much of it
        nbytes = 4 * max_rows * 2 * (vocab_size + -(-vocab_size // SAMPLING_BLOCK))
        self.scratch = mmap.mmap(-1, nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._block_max, self._block_exp_sum = library["block_max"], library["block_exp_sum"]
        self._logits, self._out = Lent("float32"), Lent("float32")

    def draws(self, cuts: Sequence[Cuts], vocab_size: int) -> "LibraryDraws":
        return LibraryDraws(self, cuts, vocab_size)

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
    """What `sample_token` takes and gives, made once: to be called by itself, or within the pass of a model."""

    def __init__(self, kernels: LibrarySampling, cuts: Sequence[Cuts], vocab_size: int) -> None:
        rows = len(cuts)
        if rows > kernels.max_rows or vocab_size > kernels.vocab_size:
            raise ValueError(
                f"{rows} rows of {vocab_size} logits: the sampler was made for {kernels.max_rows} rows of "
                f"{kernels.vocab_size}"
            )
        self.vocab_size = vocab_size
        settings = [value for one in cuts for value in (*one.settings, vocab_size)]
        self.settings = (ctypes.c_double * len(settings))(*settings)
        self.uniforms: Any = (ctypes.c_double * rows)()
        self.tokens: Any = (ctypes.c_int32 * rows)()
        # for the model's functions: settings, uniforms, tokens
        self.tensors = (
            tensor(ctypes.addressof(self.settings), "float64", (rows, len(settings) // rows), self.settings),
            tensor(ctypes.addressof(self.uniforms), "float64", (rows,), self.uniforms),
            tensor(ctypes.addressof(self.tokens), "int32", (rows,), self.tokens),
        )
        # with these tensors, of the model: its pass, and the choice from logits that lie on a device
        self.pass_: Callable[[], None] | None = None
        self.on_device: Callable[[Tensor, Tensor], None] | None = None
        self._kernels, self._rows = kernels, rows
        self._logits = Lent("float32", 2)
        self._scratch = [Lent(dtype, 2) for dtype in ("float32", "float32", "int32", "float32")]
        self._sample = kernels.sample_token.prepared(self._logits, *self.tensors, *self._scratch)
        self._stride = 0

    def choose(self, logits: LazyArray, uniforms: list[float]) -> list[int]:
        if logits.size != self._rows * self.vocab_size:
            raise ValueError(f"logits of shape {logits.shape} for {self._rows} rows of {self.vocab_size}")
        if logits.stride != self._stride:
            self._lend(logits.stride)
        self._logits.form.data = logits.address
        self.uniforms[:] = uniforms
        with self._kernels.lock:
            self._sample()
        tokens: list[int] = self.tokens[:]
        return tokens

    def _lend(self, stride: int) -> None:
        """Lend the kernel what depends on how far from one another rows begin."""
        if stride > self._kernels.vocab_size:
            raise ValueError(f"rows of {stride} logits: the sampler was made for {self._kernels.vocab_size}")
        blocks = -(-stride // SAMPLING_BLOCK)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self._kernels.scratch))
        for lent, count in zip(self._scratch, (blocks, blocks, stride, stride), strict=True):
            lent.point(address, self._rows, count)
            address += 4 * self._rows * count
        self._logits.point(0, self._rows, stride)
        self._stride = stride


class StagedDraws:
    """What the pass of a model takes of draws: their own tensors on the processor; on a device copies of them, with
    settings and random numbers of 32 bits."""

    def __init__(self, draws: LibraryDraws, device: ffi.Device) -> None:
        """Raises FFIError when the device has no memory for them."""
        self.tensors: tuple[Tensor, ...] = draws.tensors
        self._draws = draws
        if device.is_host:
            return
        settings, _, tokens = draws.tensors
        self._settings = (ctypes.c_float * (settings.shape[0] * settings.shape[1]))(*draws.settings)
        self._uniforms = (ctypes.c_float * len(draws.tokens))()
        host = [tensor(ctypes.addressof(memory), "float32", shape, memory)
                for memory, shape in ((self._settings, settings.shape), (self._uniforms, tokens.shape))]  # fmt: skip
        self.tensors = tuple(empty(one.shape, one.dtype, device) for one in (*host, tokens))
        copy(host[0], self.tensors[0])
        self._send, self._tokens = copier(host[1], self.tensors[1]), tokens

    def around(self, choose: Callable[Arguments, None]) -> Callable[Arguments, None]:
        """A call that chooses tokens, with the draws' random numbers before and their tokens after it."""
        if self.tensors is self._draws.tensors:
            return choose

        def send_choose_and_read(*args: Arguments.args, **kwargs: Arguments.kwargs) -> None:
            self._uniforms[:] = [min(uniform, _LARGEST_UNIFORM) for uniform in self._draws.uniforms]
            self._send()
            choose(*args, **kwargs)
            copy(self.tensors[2], self._tokens)

        return send_choose_and_read


def _address(array: Logits) -> int:
    """Where a contiguous array begins."""
    if isinstance(array, LazyArray):
        return array.address
    if array.flags.writeable:  # three times as fast as numpy's own ways to say it
        return ctypes.addressof(ctypes.c_char.from_buffer(array.data))
    address: int = array.__array_interface__["data"][0]
    return address
