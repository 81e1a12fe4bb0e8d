"""TVM's loader of CUDA modules, which takes source or one image, given the machine code that a library carries.

The stock runtime registers `ffi.Module.load_from_bytes.cuda`. What takes its place here chooses the image that fits
the cards of this process and passes on a module that holds it, in TVM's saved form (little endian, u64 lengths):

    string       format: "cuda" is source, "fatbin" goes to the driver as it is
    u64 n, n x   { string key; string name; vector of 4-byte types; vector of strings; vector of i32 }
    string       code
"""

import ctypes
import struct
from collections.abc import Callable, Sequence
from typing import Any

from ..ffi import check, global_function
from .cuda_code import MAGIC, CudaCode

_NAME = "ffi.Module.load_from_bytes.cuda"
_BYTE_ARRAY, _SMALL_STRING, _SMALL_BYTES = 9, 11, 12  # indices of TVM's types
_TEXT_AT = 24  # of a string or bytes object: address and length of its content
_SOURCE, _READY = b"cuda", b"fatbin"


class _ByteArray(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


class _Any(ctypes.Structure):
    """A TVMFFIAny: an argument or a result of a function."""

    _fields_ = (("type_index", ctypes.c_int32), ("small_length", ctypes.c_uint32), ("content", ctypes.c_uint64))


_SafeCall = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Any), ctypes.c_int32, ctypes.POINTER(_Any))


def install(cards: Callable[[], Sequence[str]]) -> None:
    """Take the stock loader's place; `cards` tells the architectures of the cards of this process.

    The stock runtime has to be loaded, and this to be called once. Raises FFIError.
    """
    stock = global_function(_NAME)
    library = ctypes.CDLL(None)
    library.TVMFFIErrorSetRaisedFromCStr.restype = None

    def load(_: int, arguments: Any, count: int, result: Any) -> int:
        try:
            data = with_image(_bytes_of(arguments[0]), cards()) if count == 1 else None
        except Exception as error:  # an exception that leaves a callback of ctypes is lost
            message = str(error).encode("utf-8", "replace")
            library.TVMFFIErrorSetRaisedFromCStr(b"ValueError", ctypes.c_char_p(message))
            return -1
        if data is None:
            return int(library.TVMFFIFunctionCall(ctypes.c_void_p(stock.handle), arguments, count, result))
        text = _ByteArray(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
        passed = _Any(_BYTE_ARRAY, 0, ctypes.addressof(text))
        return int(library.TVMFFIFunctionCall(ctypes.c_void_p(stock.handle), ctypes.byref(passed), 1, result))

    called = _SafeCall(load)
    handle = ctypes.c_void_p()
    check(library.TVMFFIFunctionCreate(None, called, None, ctypes.byref(handle)))
    name = _ByteArray(ctypes.cast(ctypes.c_char_p(_NAME.encode()), ctypes.c_void_p), len(_NAME))
    check(library.TVMFFIFunctionSetGlobal(ctypes.byref(name), handle, 1))
    library.TVMFFIObjectDecRef(handle)
    _kept.append((called, stock))  # TVM calls them as long as the process lives


_kept: list[Any] = []


def _bytes_of(argument: _Any) -> bytes:
    """The content of an argument that is TVM's bytes or string."""
    if argument.type_index in (_SMALL_STRING, _SMALL_BYTES):
        return struct.pack("<Q", argument.content)[: argument.small_length]
    at = argument.content if argument.type_index == _BYTE_ARRAY else argument.content + _TEXT_AT
    text = _ByteArray.from_address(at)
    return ctypes.string_at(text.data, text.size)


def with_image(saved: bytes, cards: Sequence[str]) -> bytes | None:
    """A saved module with the image for these cards in place of a library's machine code; None if it holds none.

    Raises ValueError, in one line, where the code is damaged or runs on none of the cards.
    """
    table, code = _parts(saved)
    if not code.startswith(MAGIC):
        return None
    found = CudaCode.unpacked(code)
    image = found.image_for(cards)
    if image is None:
        raise ValueError(
            f"it has CUDA code for {found.described()}, the card here is {', '.join(dict.fromkeys(cards)) or 'missing'}"
        )
    return b"".join([struct.pack("<Q", len(_READY)), _READY, table, struct.pack("<Q", len(image)), image])


def _parts(saved: bytes) -> tuple[bytes, bytes]:
    """The table of kernels of a saved module, as it lies there, and its code."""
    position = 0

    def number() -> int:
        nonlocal position
        if position + 8 > len(saved):
            raise ValueError("its CUDA module is cut off")
        position += 8
        return int(struct.unpack_from("<Q", saved, position - 8)[0])

    def skip(size: int) -> int:
        """The start of the next `size` bytes."""
        nonlocal position
        if position + size > len(saved):
            raise ValueError("its CUDA module is cut off")
        position += size
        return position - size

    skip(number())
    start = position
    for _ in range(number()):
        skip(number())  # key
        skip(number())  # name
        skip(4 * number())  # types of its arguments
        for _ in range(number()):  # tags of its launch
            skip(number())
        skip(4 * number())  # tags of its arguments
    table = saved[start:position]
    size = number()
    code = skip(size)
    return table, saved[code : code + size]
