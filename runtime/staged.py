"""Tables that the host writes and kernels read: the same memory on the processor, a copy on a device."""

from collections.abc import Callable
from typing import Any

from . import ffi
from .ffi_tensor import Tensor, copier, copy, empty


class Staged:
    """Numbers, int32, in the host's memory, and where kernels find them."""

    def __init__(self, host: Tensor, device: ffi.Device) -> None:
        """`host`: one-dimensional. Raises FFIError when the device has no memory for a copy."""
        self.host = host
        self.device = host if device.is_host else empty(host.shape, host.dtype, device)

    @property
    def numbers(self) -> memoryview:
        """The host's memory, int32, to be written."""
        return self.host.bytes().cast("i")

    def view(self, count: int) -> Tensor:
        """The first `count` numbers, where kernels find them."""
        return self.device.view((count,))

    def send(self, count: int) -> Tensor:
        """The same, with what was written."""
        view = self.view(count)
        if self.device is not self.host and count:
            copy(self.host.view((count,)), view)
        return view

    def sender(self, count: int) -> Callable[[], Any]:
        """What brings the first `count` numbers to the device; made once, for what many steps do."""
        return copier(self.host.view((count,)), self.view(count))
