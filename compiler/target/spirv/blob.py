"""The bytes of a Vulkan module inside a library, as the runtime's plug-in reads them. Little endian:

    "MLCSPV1\\n", u64 number of kernels, then for each kernel
    string name                     a string is its u64 length and its bytes
    u64 n, n x (u8 code, u8 bits, u16 lanes)      arguments, as DLDataType; a handle is a storage buffer
    u64 n, n x string               launch tags: "blockIdx.x", "threadIdx.x", ...
    3 x u32                         threads of a workgroup
    u32                             required features, bits: 0 float16 arithmetic, 1 16-bit storage, 2 int64,
                                    3 8-bit storage, 4 int8, 5 subgroup shuffle, 6 int16, 7 float64,
                                    8 cooperative matrices of subgroups of 32 threads
    u32                             bytes of push constants
    string SPIR-V                   one entry point of the kernel's name

Storage buffers are descriptor set 0, binding i for the i-th handle. Scalars are push constants in their order, each
aligned to its size.
"""

import struct
from collections.abc import Sequence

from .dtype import Dtype
from .kernel import Kernel

MAGIC = b"MLCSPV1\n"
_CODES = {"int": 0, "uint": 1, "float": 2, "bool": 6}  # DLDataTypeCode
_HANDLE = struct.pack("<BBH", 3, 64, 1)


def module_bytes(kernels: Sequence[Kernel]) -> bytes:
    """All kernels of a library."""
    return MAGIC + struct.pack("<Q", len(kernels)) + b"".join(map(_kernel, kernels))


def _kernel(kernel: Kernel) -> bytes:
    parts = [
        _string(kernel.name.encode()),
        struct.pack("<Q", len(kernel.arguments)),
        *map(_argument, kernel.arguments),
        struct.pack("<Q", len(kernel.launch_tags)),
        *(_string(tag.encode()) for tag in kernel.launch_tags),
        struct.pack("<5I", *kernel.workgroup, kernel.features, kernel.push_bytes),
        _string(kernel.spirv),
    ]
    return b"".join(parts)


def _argument(dtype: Dtype | None) -> bytes:
    return _HANDLE if dtype is None else struct.pack("<BBH", _CODES[dtype.kind], dtype.bits, dtype.lanes)


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data
