"""Arrays of float32 that become numpy's when something of numpy's is asked of them.

To import numpy takes a sixth of a start and 12 MB, and to choose tokens with the kernels of a library needs only the
address of the logits.
"""

import ctypes
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt


class LazyArray:
    """Float32 numbers [size], or [rows, size], in memory that `owner` keeps alive; a row is contiguous."""

    __slots__ = ("address", "owner", "shape", "stride")

    def __init__(self, address: int, shape: tuple[int, ...], owner: Any, stride: int = 0) -> None:
        """Rows begin `stride` numbers after one another."""
        self.address, self.shape, self.owner, self.stride = address, shape, owner, stride or shape[-1]

    @classmethod
    def over(cls, array: "npt.NDArray[np.float32] | LazyArray") -> "LazyArray":
        """The numbers of a numpy array, or of a copy where they do not lie together."""
        if isinstance(array, cls):
            return array
        import numpy as np

        array = np.ascontiguousarray(array, np.float32)
        return cls(array.__array_interface__["data"][0], array.shape, array)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return self.shape[0] if len(self.shape) == 1 else self.shape[0] * self.shape[1]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        """A row, or the first numbers of the only one, as they are; anything else as numpy has it."""
        if len(self.shape) == 2 and type(index) is int and 0 <= index < self.shape[0]:
            return LazyArray(self.address + 4 * self.stride * index, self.shape[1:], self.owner)
        if len(self.shape) == 1 and type(index) is slice and index.start is None and index.step is None:
            count = self.shape[0] if index.stop is None else index.stop
            if 0 <= count <= self.shape[0]:
                return LazyArray(self.address, (count,), self.owner)
        return self.numpy()[index]

    def columns(self, count: int) -> "LazyArray":
        """The first `count` numbers of each row, or of the only one."""
        return LazyArray(self.address, (*self.shape[:-1], count), self.owner, self.stride)

    def numpy(self) -> "npt.NDArray[np.float32]":
        """A numpy array over the same memory."""
        import numpy as np

        rows = 1 if len(self.shape) == 1 else self.shape[0]
        exposed: Any = (ctypes.c_float * (self.stride * (rows - 1) + self.shape[-1])).from_address(self.address)
        exposed.owner = self.owner
        flat = np.frombuffer(exposed, np.float32)
        strides = (4 * self.stride, 4)[-len(self.shape) :]
        return np.lib.stride_tricks.as_strided(flat, self.shape, strides)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> "npt.NDArray[Any]":
        array = self.numpy()
        return array.astype(dtype or array.dtype) if dtype not in (None, array.dtype) or copy else array

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numpy(), name)


def first_columns(array: "npt.NDArray[np.float32] | LazyArray", count: int) -> "npt.NDArray[np.float32] | LazyArray":
    """The first `count` numbers of each row of [rows, size], or of [size] as the only one."""
    if array.shape[-1] == count:
        return array
    if isinstance(array, LazyArray):
        return array.columns(count)
    return array[..., :count]
