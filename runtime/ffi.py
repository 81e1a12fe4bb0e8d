"""TVM's C interface by ctypes: packed functions and modules, without the Python package of TVM; `ffi_tensor.py` has
tensors.

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
from typing import Any, NamedTuple

_NONE, _INT, _BOOL, _FLOAT, _DEVICE, _RAW_STRING, _SMALL_STRING = 0, 1, 2, 3, 6, 8, 11
_STRING, _FUNCTION, _ARRAY, _MODULE = 65, 68, 71, 73
_FIRST_OBJECT = 64
HEADER_BYTES, _TYPE_INDEX_AT = 24, 8  # of a TVMFFIObject


class _ByteArray(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


_Result = ctypes.c_int64 * 2  # a TVMFFIAny
Handle = ctypes.c_void_p


DEVICE_TYPES = {"cpu": 1, "cuda": 2, "opencl": 4, "vulkan": 7, "metal": 8, "rocm": 10}  # DLPack's


class Device(NamedTuple):
    """One that tensors lie on, and kernels run on: the processor, or one of a kind by its number."""

    kind: str = "cpu"
    number: int = 0

    @property
    def type_code(self) -> int:
        """DLPack's number of the kind."""
        return DEVICE_TYPES[self.kind]

    @property
    def is_host(self) -> bool:
        """Whether its memory is the process's own."""
        return self.kind == "cpu"

    def __str__(self) -> str:
        return self.kind if self.number == 0 else f"{self.kind}:{self.number}"


HOST = Device()


class FFIError(Exception):
    """An error that TVM raised; its message may have several lines."""


class _Interface:
    """The functions of `libtvm_ffi.so` that are used here; empty until `load`."""

    call: Callable[..., int]
    release: Callable[..., int]
    get_global: Callable[..., int]
    create_view: Callable[..., int]
    from_dlpack: Callable[..., int]
    take_error: Callable[..., None]


lib = _Interface()


def load(ffi_library: str, runtime_library: str) -> None:
    """Load `libtvm_ffi.so` and `libtvm_runtime.so` into the process. Raises OSError when one cannot be loaded."""
    library = ctypes.CDLL(ffi_library, ctypes.RTLD_GLOBAL)
    ctypes.CDLL(runtime_library, ctypes.RTLD_GLOBAL)

    def function(name: str, *types: Any, result: Any = ctypes.c_int) -> Any:
        found = library[name]
        found.argtypes, found.restype = types, result
        return found

    pointer = ctypes.c_void_p
    lib.call = function("TVMFFIFunctionCall", pointer, ctypes.c_char_p, ctypes.c_int32, _Result)
    lib.release = function("TVMFFIObjectDecRef", pointer)
    lib.get_global = function("TVMFFIFunctionGetGlobal", pointer, pointer)
    lib.create_view = function("TVMFFITensorCreateUnsafeView", pointer, pointer, pointer)
    lib.take_error = function("TVMFFIErrorMoveFromRaised", pointer, result=None)
    lib.from_dlpack = function("TVMFFITensorFromDLPack", pointer, ctypes.c_int32, ctypes.c_int32, pointer)


def global_function(name: str) -> "Function":
    """A function that TVM registers, as "runtime.TVMTensorCopyFromTo". Raises FFIError when there is none."""
    text = name.encode()
    handle = Handle()
    address = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p)
    check(lib.get_global(ctypes.byref(_ByteArray(address, len(text))), ctypes.byref(handle)))
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


class Object:
    """Something of TVM's, held by one reference."""

    __slots__ = ("__weakref__", "handle", "type_index")

    def __init__(self, handle: int) -> None:
        """Takes over one reference to the object at address `handle`."""
        self.handle = handle
        self.type_index: int = ctypes.c_int32.from_address(handle + _TYPE_INDEX_AT).value

    def __del__(self, release: Any = lib) -> None:
        release.release(self.handle)


class Function(Object):
    """A packed function: takes and returns None, numbers, texts and objects. Raises FFIError."""

    __slots__ = ()

    def __call__(self, *args: Any) -> Any:
        packed, kept = _packed(args)
        result = _Result()
        if lib.call(self.handle, packed, len(args), result):
            raise _raised()
        del kept
        return _value(result)

    def prepared(self, *args: Any) -> Callable[[], Any]:
        """The call with these arguments, packed once for all: for what many steps of a model call."""
        packed, kept = _packed(args)
        count, handle = len(args), self.handle

        def call(alive: Any = (self, args, kept)) -> Any:
            result = _Result()
            if lib.call(handle, packed, count, result):
                raise _raised()
            return _value(result)

        return call

    def prepared_without_result(self, *args: Any) -> Callable[[], None]:
        """The same of a function whose result, an object, is not wanted."""
        packed, kept = _packed(args)
        count, handle = len(args), self.handle

        def call(alive: Any = (self, args, kept)) -> None:
            result = _Result()
            if lib.call(handle, packed, count, result):
                raise _raised()
            lib.release(result[1])

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


_CLASSES: dict[int, type[Object]] = {_FUNCTION: Function, _MODULE: Module, _ARRAY: Array}


def represent(type_index: int, by: type[Object]) -> None:
    """Have objects of a type that calls return come as a class that is defined elsewhere."""
    _CLASSES[type_index] = by


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
    if isinstance(argument, Device):
        return _DEVICE, 0, argument.number << 32 | argument.type_code
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
        text = _ByteArray.from_address(content + HEADER_BYTES)
        try:
            return ctypes.string_at(text.data, text.size).decode()
        finally:
            lib.release(content)
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
    handle = Handle()
    lib.take_error(ctypes.byref(handle))
    if not handle.value:
        return FFIError("TVM failed and does not say why")
    kind, message = (_ByteArray.from_address(handle.value + HEADER_BYTES + offset) for offset in (0, 16))
    try:
        text = ctypes.string_at(message.data, message.size).decode("utf-8", "replace")
        return FFIError(text or ctypes.string_at(kind.data, kind.size).decode("utf-8", "replace"))
    finally:
        lib.release(handle.value)


def check(code: int) -> None:
    """Raise the error of a call that has returned `code`, if it failed."""
    if code:
        raise _raised()
