"""TVM's C interface by ctypes: packed functions, modules and tensors, without the Python package of TVM.

The package `tvm_ffi` does the same and more, but importing it takes as long as all else that a chat needs before its
first token, and 25 MB; its shared library loads in 3 ms. The interface is `tvm/ffi/c_api.h` of apache-tvm-ffi, whose
version is pinned: a call passes an array of `TVMFFIAny`, 16 bytes each, and objects are reference counted. Where the
compiler loads TVM's own package into the same process, both speak to one library and do not meet.

    TVMFFIAny     type_index int32, zero or the length of a small string uint32, integer, double, pointer or text
    TVMFFIObject  reference counts uint64, type_index int32, padding, deleter pointer, then what the type adds
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

_NONE, _INT, _BOOL, _FLOAT, _RAW_STRING, _SMALL_STRING = 0, 1, 2, 3, 8, 11
_STRING, _FUNCTION, _TENSOR, _ARRAY, _MODULE = 65, 68, 70, 71, 73
_DLTENSOR = 7  # a pointer to one that nobody counts references to
_FIRST_OBJECT = 64
_HEADER_BYTES, _TYPE_INDEX_AT = 24, 8  # of a TVMFFIObject
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
_NAMES = {(code, bits): name for name, (code, bits, _) in _TYPES.items()}


class _ByteArray(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


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


_Result = ctypes.c_int64 * 2  # a TVMFFIAny
_Words = ctypes.c_uint64 * 6  # a _DLTensor
_Handle = ctypes.c_void_p


class FFIError(Exception):
    """An error that TVM raised; its message may have several lines."""


class _Interface:
    """The functions of `libtvm_ffi.so` that are used here; empty until `load`."""

    call: Callable[..., int]
    release: Callable[..., int]
    get_global: Callable[..., int]
    create_view: Callable[..., int]
    take_error: Callable[..., None]
    owner: int  # a tensor that views of Python's memory name as the owner of it, as every view needs one


_lib = _Interface()
# The owner's own memory, which TVM keeps pointers to.
_owner_shape = (ctypes.c_int64 * 1)(0)
_owner = _DLManagedTensor(tensor=_DLTensor(device_type=_CPU, ndim=1, code=1, bits=8, lanes=1, shape=_owner_shape))


def load(ffi_library: str, runtime_library: str) -> None:
    """Load `libtvm_ffi.so` and `libtvm_runtime.so` into the process. Raises OSError when one cannot be loaded."""
    library = ctypes.CDLL(ffi_library, ctypes.RTLD_GLOBAL)
    ctypes.CDLL(runtime_library, ctypes.RTLD_GLOBAL)

    def function(name: str, *types: Any, result: Any = ctypes.c_int) -> Any:
        found = library[name]
        found.argtypes, found.restype = types, result
        return found

    pointer = ctypes.c_void_p
    _lib.call = function("TVMFFIFunctionCall", pointer, ctypes.c_char_p, ctypes.c_int32, _Result)
    _lib.release = function("TVMFFIObjectDecRef", pointer)
    _lib.get_global = function("TVMFFIFunctionGetGlobal", pointer, pointer)
    _lib.create_view = function("TVMFFITensorCreateUnsafeView", pointer, pointer, pointer)
    _lib.take_error = function("TVMFFIErrorMoveFromRaised", pointer, result=None)
    from_dlpack = function("TVMFFITensorFromDLPack", pointer, ctypes.c_int32, ctypes.c_int32, pointer)
    handle = _Handle()
    _check(from_dlpack(ctypes.byref(_owner), 0, 0, ctypes.byref(handle)))
    _lib.owner = handle.value or 0


def global_function(name: str) -> "Function":
    """A function that TVM registers, as "runtime.TVMTensorCopyFromTo". Raises FFIError when there is none."""
    text = name.encode()
    handle = _Handle()
    address = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p)
    _check(_lib.get_global(ctypes.byref(_ByteArray(address, len(text))), ctypes.byref(handle)))
    if not handle.value:
        raise FFIError(f"TVM has no function {name!r}")
    return Function(handle.value)


def load_module(path: str) -> "Module":
    """Load a shared library that TVM has exported. Raises FFIError."""
    module = global_function("ffi.ModuleLoadFromFile")(path)
    assert isinstance(module, Module)
    return module


def shape(sizes: Sequence[int]) -> "Object":
    """TVM's tuple of integers."""
    made = global_function("ffi.Shape")(*sizes)
    assert isinstance(made, Object)
    return made


def array(items: Sequence["Object"]) -> "Array":
    """TVM's array of objects; the memory of its tensors lives as long as it does."""
    made = global_function("ffi.Array")(*items)
    assert isinstance(made, Array)
    made.items = tuple(items)
    return made


def tensor(address: int, dtype: str, sizes: Sequence[int], memory: Any) -> "Tensor":
    """A contiguous tensor over what lies at `address`; `memory` owns that, and the tensor keeps it alive."""
    return _view(_lib.owner, address, dtype, sizes, memory)


def _view(owner: int, address: int, dtype: str, sizes: Sequence[int], memory: Any) -> "Tensor":
    form = _form(address, dtype, sizes)
    handle = _Handle()
    _check(_lib.create_view(owner, ctypes.byref(form), ctypes.byref(handle)))
    return Tensor(handle.value or 0, memory)


def _form(address: int, dtype: str, sizes: Sequence[int]) -> _DLTensor:
    """A contiguous tensor at `address`; keeps its own shape and strides alive."""
    code, bits, _ = _TYPES[dtype]
    rank = len(sizes)
    extents = (ctypes.c_int64 * rank)(*sizes)
    strides = (ctypes.c_int64 * rank)(*(prod(sizes[axis + 1 :]) for axis in range(rank)))
    return _DLTensor(address, _CPU, 0, rank, code, bits, 1, extents, strides)


class Object:
    """Something of TVM's, held by one reference."""

    __slots__ = ("__weakref__", "handle", "type_index")

    def __init__(self, handle: int) -> None:
        """Takes over one reference to the object at address `handle`."""
        self.handle = handle
        self.type_index: int = ctypes.c_int32.from_address(handle + _TYPE_INDEX_AT).value

    def __del__(self, release: Any = _lib) -> None:
        release.release(self.handle)


class Function(Object):
    """A packed function: takes and returns None, numbers, texts and objects. Raises FFIError."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        packed, kept = _packed(args)
        result = _Result()
        if _lib.call(self.handle, packed, len(args), result):
            raise _raised()
        del kept
        return _value(result)

    def prepared(self, *args: Any) -> Callable[[], Any]:
        """The call with these arguments, packed once for all: for what many steps of a model call."""
        packed, kept = _packed(args)
        count, handle = len(args), self.handle

        def call(alive: Any = (self, args, kept)) -> Any:
            result = _Result()
            if _lib.call(handle, packed, count, result):
                raise _raised()
            return _value(result)

        return call

    def prepared_without_result(self, *args: Any) -> Callable[[], None]:
        """The same of a function whose result, an object, is not wanted."""
        packed, kept = _packed(args)
        count, handle = len(args), self.handle

        def call(alive: Any = (self, args, kept)) -> None:
            result = _Result()
            if _lib.call(handle, packed, count, result):
                raise _raised()
            _lib.release(result[1])

        return call


class Module(Object):
    """A module of functions: a library, or a virtual machine."""

    __slots__ = ()

    def implements_function(self, name: str, query_imports: bool = False) -> bool:
        """Whether there is a function of that name, in an imported module too if `query_imports`."""
        return bool(global_function("ffi.ModuleImplementsFunction")(self, name, query_imports))

    def get_function(self, name: str, query_imports: bool = False) -> Function:
        """A function of the module. Raises AttributeError when there is none of that name."""
        found = global_function("ffi.ModuleGetFunction")(self, name, query_imports)
        if not isinstance(found, Function):
            raise AttributeError(f"the module has no function {name!r}")
        return found

    def __getitem__(self, name: str) -> Function:
        return self.get_function(name)


class Array(Object):
    """TVM's array."""

    __slots__ = ("items",)

    def __init__(self, handle: int) -> None:
        super().__init__(handle)
        self.items: tuple[Object, ...] = ()  # what keeps the memory of tensors alive that Python owns

    def __len__(self) -> int:
        return int(global_function("ffi.ArraySize")(self))

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} of an array of {len(self)}")
        return global_function("ffi.ArrayGetItem")(self, index)


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
        words = _Words.from_address(self.handle + _HEADER_BYTES)
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
        """The same memory in another shape."""
        return _view(self.handle, self.address, self.dtype, sizes, self.memory)

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
        return _DLTensor.from_address(self.handle + _HEADER_BYTES)


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


_CLASSES: dict[int, type[Object]] = {_FUNCTION: Function, _MODULE: Module, _ARRAY: Array, _TENSOR: Tensor}


def itemsize(dtype: str) -> int:
    """Bytes of an element of TVM's type `dtype`."""
    return _TYPES[dtype][1] // 8


def numpy_name(dtype: str) -> str:
    """numpy's name of TVM's type `dtype`, or of the unsigned integers that carry its bits."""
    return _TYPES[dtype][2]


def _packed(args: Sequence[Any]) -> tuple[bytes, list[bytes]]:
    """Arguments as TVM takes them; the second has to live until the call has ended."""
    fields: list[int] = []
    kept: list[bytes] = []
    for argument in args:
        if isinstance(argument, Object):
            fields += (argument.type_index, 0, argument.handle)
        elif isinstance(argument, bool):
            fields += (_BOOL, 0, argument)
        elif isinstance(argument, int):
            fields += (_INT, 0, argument)
        else:
            fields += _other_argument(argument, kept)
    return struct.pack("iIq" * len(args), *fields), kept


def _other_argument(argument: object, kept: list[bytes]) -> tuple[int, int, int]:
    """The fields of an argument that is neither object nor integer; `kept` has to live until the call has ended."""
    if argument is None:
        return _NONE, 0, 0
    if isinstance(argument, float):
        return _FLOAT, 0, struct.unpack("q", struct.pack("d", argument))[0]
    if isinstance(argument, str):
        kept.append(argument.encode())
        return _RAW_STRING, 0, ctypes.cast(ctypes.c_char_p(kept[-1]), ctypes.c_void_p).value or 0
    raise TypeError(f"an argument of type {type(argument).__name__} cannot be passed to TVM")


def _value(result: Any) -> Any:
    """What a call has returned; a reference to an object is taken over."""
    kind, content = result[0] & 0xFFFFFFFF, result[1]
    if kind >= _FIRST_OBJECT:
        if kind != _STRING:
            return _CLASSES.get(kind, Object)(content)
        text = _ByteArray.from_address(content + _HEADER_BYTES)
        try:
            return ctypes.string_at(text.data, text.size).decode()
        finally:
            _lib.release(content)
    if kind == _NONE:
        return None
    if kind == _INT:
        return content
    if kind == _BOOL:
        return bool(content)
    if kind == _FLOAT:
        return struct.unpack("d", struct.pack("q", content))[0]
    if kind == _SMALL_STRING:
        return struct.pack("q", content)[: result[0] >> 32].decode()
    raise FFIError(f"TVM returned a value of unknown type {kind}")


def _raised() -> FFIError:
    """The error that the last call of this thread has left."""
    handle = _Handle()
    _lib.take_error(ctypes.byref(handle))
    if not handle.value:
        return FFIError("TVM failed and does not say why")
    kind, message = (_ByteArray.from_address(handle.value + _HEADER_BYTES + offset) for offset in (0, 16))
    try:
        text = ctypes.string_at(message.data, message.size).decode("utf-8", "replace")
        return FFIError(text or ctypes.string_at(kind.data, kind.size).decode("utf-8", "replace"))
    finally:
        _lib.release(handle.value)


def _check(code: int) -> None:
    if code:
        raise _raised()
