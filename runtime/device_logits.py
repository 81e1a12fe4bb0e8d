"""Logits that a pass has left on a device, and the choice of tokens from them there."""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from .artifact import CHANGE_WORDS, CHANGED_ROW_WORDS
from .ffi import Device, Function
from .ffi_tensor import Tensor
from .lazy_array import LazyArray
from .sampling_kernels import Draws, LibraryDraws, StagedDraws
from .staged import Staged
from .token_mask import TokenMask
from .tvm_runtime import ALIGNMENT, Arena

_WORD = 4  # bytes
_ROW = struct.Struct(f"={CHANGED_ROW_WORDS}i")  # place and number of its changes, place and words of its mask
_LEAST_WORDS = 4096

Result = TypeVar("Result")


class DeviceLogits(LazyArray):
    """Logits [rows, vocab] that come to the host when something of them is asked for, unless tokens are chosen before.

    A device computes them still when they are made: what fails meanwhile fails when they are used.
    """

    __slots__ = ("_failed", "_host", "_sampler", "_tensor")

    def __init__(
        self, tensor: Tensor, vocab_size: int, sampler: "DeviceSampler", failed: Callable[[BaseException], None]
    ) -> None:
        """The first `vocab_size` columns of `tensor`. `failed` is told of the error that a use of them ends with."""
        rows, self.stride = tensor.shape
        self.shape, self.owner = (rows, vocab_size), tensor
        self._tensor, self._sampler, self._failed = tensor, sampler, failed
        self._host: Tensor | None = None

    @property
    def address(self) -> int:  # type: ignore[override]
        """Where they are on the host."""
        if self._host is None:
            self._host = self._attempt(self._tensor.to_host)
            self.owner = self._host
        return self._host.address

    def columns(self, count: int) -> "DeviceLogits":
        return DeviceLogits(self._tensor, count, self._sampler, self._failed)

    def choose(
        self, draws: Draws, uniforms: list[float], changes: Sequence[bytearray], masks: Sequence[TokenMask | None]
    ) -> list[int]:
        """A token for each row, as `draws.choose` would choose it after `changes` (see `Adjustments`) and masks.

        The logits are changed so from then on.
        """
        return self._attempt(lambda: self._sampler.choose(self._tensor, draws, uniforms, changes, masks))

    def _attempt(self, work: Callable[[], Result]) -> Result:
        try:
            return work()
        except BaseException as error:
            self._failed(error)
            raise


class DeviceSampler:
    """Has the library's function `adjust_and_sample` choose tokens. Not for several threads at once."""

    def __init__(self, function: Function, device: Device) -> None:
        self._function, self._device = function, device
        self._words: Staged | None = None

    def choose(
        self, logits: Tensor, draws: Draws, uniforms: list[float], changes: Sequence[bytearray],
        masks: Sequence[TokenMask | None],
    ) -> list[int]:  # fmt: skip
        """See `DeviceLogits`. Raises FFIError when the device fails, or has no memory for what is sent."""
        assert isinstance(draws, LibraryDraws)
        draws.uniforms[:] = uniforms
        choose = draws.on_device or self._chooser(draws)
        choose(logits, self._sent(changes, masks))
        tokens: list[int] = draws.tokens[:]
        return tokens

    def _chooser(self, draws: LibraryDraws) -> Callable[[Tensor, Tensor], None]:
        staged = StagedDraws(draws, self._device)

        def choose(logits: Tensor, words: Tensor) -> None:
            self._function(logits, words, *staged.tensors)

        draws.on_device = staged.around(choose)
        return draws.on_device

    def _sent(self, changes: Sequence[bytearray], masks: Sequence[TokenMask | None]) -> Tensor:
        """What is changed, on the device."""
        nbytes = _ROW.size * len(changes)
        nbytes += sum(map(len, changes)) + sum(ctypes.sizeof(mask) for mask in masks if mask is not None)
        if self._words is None or nbytes > self._words.host.nbytes:
            self._words = None  # before the next one is made
            room = max(_LEAST_WORDS, nbytes // _WORD * 5 // 4)
            self._words = Staged(Arena(room * _WORD + ALIGNMENT).tensor((room,), "int32"), self._device)
        return self._words.send(written(self._words.host.bytes(), changes, masks))


def written(memory: memoryview, changes: Sequence[bytearray], masks: Sequence[TokenMask | None]) -> int:
    """Write what is changed in the layout that compiler/kernels/gpu/sample_adjust.py describes. Returns its words."""
    end = _ROW.size * len(changes)
    for row, (some, mask) in enumerate(zip(changes, masks, strict=True)):
        start, middle = end, end + len(some)
        end = middle + (0 if mask is None else ctypes.sizeof(mask))
        memory[start:middle] = some
        if mask is not None:
            memory[middle:end] = memoryview(mask).cast("B")
        places = start // _WORD, len(some) // (CHANGE_WORDS * _WORD), middle // _WORD, (end - middle) // _WORD
        _ROW.pack_into(memory, _ROW.size * row, *places)
    return end // _WORD
