"""TVM's tensors by ctypes: over memory of TVM's, on a device too, and over Python's own."""

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import TYPE_CHECKING, Any

from .ffi import DEVICE_TYPES, HEADER_BYTES, Device, Handle, Object, check, global_function, lib, represent, shape

if TYPE_CHECKING:
    import numpy as np

_TENSOR = 70  # index of TVM's type
_DLTENSOR = 7  # a pointer to one that nobody counts references to
_CPU = 1  # DLPack's kDLCPU

# Names of types <-> DLPack's (code, bits); numpy's name where it has the type, else that of its bits.
_TYPES = {
    "int8": (0, 8, "int8"),
    "int16": (0, 16, "int16"),
    "int32": (0, 32, "int32"),
    "int64": (0, 64, "int64"),
    "uint8": (1, 8, "uint8"),
    "uint16": (1, 16, "uint16"),
    "uint32": (1, 32, "uint32"),
    "uint64": (1, 64, "uint64"),
    "float16": (2, 16, "float16"),
    "float32": (2, 32, "float32"),
    "float64": (2, 64, "float64"),
    "bfloat16": (4, 16, "uint16"),
    "bool": (6, 8, "bool"),
    "float8_e4m3fn": (10, 8, "uint8"),
    "float8_e5m2": (12, 8, "uint8"),
}
_KINDS = {code: kind for kind, code in DEVICE_TYPES.items()}
_NAMES = {(code, bits): name for name, (code, bits, _) in _TYPES.items()}


class _DLTensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _DLManagedTensor(ctypes.Structure):
    _fields_ = (("tensor", _DLTensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p))


_Words = ctypes.c_uint64 * 6  # a _DLTensor
# The owner's own memory, which TVM keeps pointers to.
_owner_shape = (ctypes.c_int64 * 1)(0)
_owner = _DLManagedTensor(tensor=_DLTensor(device_type=_CPU, ndim=1, code=1, bits=8, lanes=1, shape=_owner_shape))


@cache
def _owner_handle() -> int:
    """A tensor that views of Python's memory name as the owner of it, as every view needs one."""
    handle = Handle()
    check(lib.from_dlpack(ctypes.byref(_owner), 0, 0, ctypes.byref(handle)))
    return handle.value or 0


def itemsize(dtype: str) -> int:
    """Bytes of an element of TVM's type `dtype`."""
    return _TYPES[dtype][1] // 8


def numpy_name(dtype: str) -> str:
    """numpy's name of TVM's type `dtype`, or of the unsigned integers that carry its bits."""
    return _TYPES[dtype][2]


def tensor(address: int, dtype: str, sizes: Sequence[int], memory: Any) -> "Tensor":
    """A contiguous tensor over what lies at `address`; `memory` owns that, and the tensor keeps it alive."""
    return _view(_owner_handle(), _form(address, dtype, sizes), memory)


def empty(sizes: Sequence[int], dtype: str, device: Device) -> "Tensor":
    """A new tensor in a device's memory. Raises FFIError when there is not that much."""
    made = global_function("runtime.TVMTensorAllocWithScope")(shape(sizes), dtype, device, None)
    assert isinstance(made, Tensor)
    return made


def copy(source: "Tensor", target: "Tensor") -> None:
    """Copy between tensors of as many bytes, at least one of them a device's: later kernels of the device see what was
    copied to it, and the source may change at once. A copy to the host has come there on return. Raises FFIError."""
    _function("runtime.TVMTensorCopyFromTo")(source, target)
    if target.is_host:
        _function("runtime.Device_StreamSync")(source.device, 0)


def copier(source: "Tensor", target: "Tensor") -> Callable[[], Any]:
    """`copy` from the host to a device, packed once for all."""
    call: Callable[[], Any] = _function("runtime.TVMTensorCopyFromTo").prepared(source, target)
    return call


_function = cache(global_function)


def _view(owner: int, form: _DLTensor, memory: Any) -> "Tensor":
    handle = Handle()
    check(lib.create_view(owner, ctypes.byref(form), ctypes.byref(handle)))
    return Tensor(handle.value or 0, memory)


def _form(
    address: int, dtype: str, sizes: Sequence[int], device_type: int = _CPU, device_id: int = 0, offset: int = 0
) -> _DLTensor:
    """A contiguous tensor at `address`; keeps its own shape and strides alive."""
    code, bits, _ = _TYPES[dtype]
    rank = len(sizes)
    extents = (ctypes.c_int64 * rank)(*sizes)
    strides = (ctypes.c_int64 * rank)(*(prod(sizes[axis + 1 :]) for axis in range(rank)))
    return _DLTensor(address, device_type, device_id, rank, code, bits, 1, extents, strides, offset)


class Tensor(Object):
    """An array in memory. One that TVM made owns its memory; `memory` is what another one keeps alive."""

    __slots__ = ("memory",)

    def __init__(self, handle: int, memory: Any = None) -> None:
        self.handle, self.type_index, self.memory = handle, _TENSOR, memory

    @property
    def shape(self) -> tuple[int, ...]:
        form = self._form
        return tuple(form.shape[: form.ndim])

    @property
    def dtype(self) -> str:
        form = self._form
        return _NAMES[form.code, form.bits]

    @property
    def address(self) -> int:
        """Where its first element is."""
        words = _Words.from_address(self.handle + HEADER_BYTES)
        return int(words[0] + words[5])  # of a _DLTensor: data and byte_offset

    @property
    def nbytes(self) -> int:
        """Bytes of its elements."""
        return prod(self.shape) * itemsize(self.dtype)

    def bytes(self) -> memoryview:
        """Its memory, writable; keeps the tensor alive."""
        exposed: Any = (ctypes.c_char * self.nbytes).from_address(self.address)
        exposed.owner = self
        return memoryview(exposed).cast("B")

    def view(self, sizes: Sequence[int]) -> "Tensor":
        """The same memory in another shape, or the beginning of it."""
        own = self._form
        form = _form(own.data, self.dtype, sizes, own.device_type, own.device_id, own.byte_offset)
        return _view(self.handle, form, self.memory)

    @property
    def device(self) -> Device:
        """Where its memory is."""
        form = self._form
        return Device(_KINDS[form.device_type], form.device_id)

    @property
    def is_host(self) -> bool:
        """Whether its memory is the process's own."""
        return bool(self._form.device_type == _CPU)

    def to_host(self) -> "Tensor":
        """The tensor itself, or a copy in memory of Python's where it lies on a device. Raises FFIError."""
        if self.is_host:
            return self
        memory = bytearray(self.nbytes)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) if memory else 0
        copied = tensor(address, self.dtype, self.shape, memory)
        copy(self, copied)
        return copied

    def numpy(self) -> "np.ndarray[Any, Any]":
        """A numpy array over the same memory; types that numpy lacks come as their bits."""
        import numpy as np

        form = self._form
        sizes = form.shape[: form.ndim]
        nbytes = prod(sizes) * form.bits // 8
        exposed: Any = (ctypes.c_char * nbytes).from_address((form.data or 0) + form.byte_offset)
        exposed.owner = self
        dtype = _TYPES[_NAMES[form.code, form.bits]][2]
        array: np.ndarray[Any, Any] = np.frombuffer(exposed, dtype).reshape(sizes)
        return array

    def __dlpack__(self, **options: Any) -> Any:
        return self.numpy().__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (_CPU, 0)

    @property
    def _form(self) -> _DLTensor:
        return _DLTensor.from_address(self.handle + HEADER_BYTES)


class Lent(Object):
    """Python's memory for the time of a call, made once and lent again and again: a tenth of the time that a `Tensor`
    takes. Kernels take it like one; TVM keeps nothing of it."""

    __slots__ = ("_extents", "form")

    def __init__(self, dtype: str, rank: int = 1) -> None:
        code, bits, _ = _TYPES[dtype]
        self._extents = (ctypes.c_int64 * rank)()
        self.form = _DLTensor(0, _CPU, 0, rank, code, bits, 1, self._extents, None)  # no strides: contiguous
        self.handle, self.type_index = ctypes.addressof(self.form), _DLTENSOR

    def __del__(self, release: Any = None) -> None:
        """There is no reference to give back."""

    def point(self, address: int, *sizes: int) -> None:
        """Stand for the elements at `address`, which the caller keeps alive."""
        self.form.data = address
        self._extents[:] = [*sizes]


represent(_TENSOR, Tensor)
