"""Small SPIR-V kernels, written out instruction by instruction, in modules as the Vulkan plug-in loads them."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

HANDLE, INT32, FLOAT32 = (3, 64), (0, 32), (2, 32)  # arguments: DLPack's code and bits
TAGS = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")
Words = Sequence[int | str]


@dataclass(frozen=True)
class Kernel:
    """What a module says of a kernel."""

    name: str
    arguments: tuple[tuple[int, int], ...]
    code: bytes
    workgroup: tuple[int, int, int] = (64, 1, 1)
    features: int = 0
    push_constants: int = 0
    tags: tuple[str, ...] = ("blockIdx.x", "threadIdx.x")


def module(*kernels: Kernel) -> bytes:
    """The bytes of a module."""
    return b"MLCSPV1\n" + struct.pack("<Q", len(kernels)) + b"".join(map(_kernel, kernels))


def _kernel(kernel: Kernel) -> bytes:
    arguments = b"".join(struct.pack("<BBH", code, bits, 1) for code, bits in kernel.arguments)
    tags = b"".join(_string(tag.encode()) for tag in kernel.tags)
    return (
        _string(kernel.name.encode())
        + struct.pack("<Q", len(kernel.arguments)) + arguments
        + struct.pack("<Q", len(kernel.tags)) + tags
        + struct.pack("<5I", *kernel.workgroup, kernel.features, kernel.push_constants)
        + _string(kernel.code)
    )  # fmt: skip


def _string(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + data


@dataclass
class _Assembler:
    """Instructions in the sections of a module, which SPIR-V wants in this order."""

    name: str
    workgroup: tuple[int, int, int]
    ids: "count[int]" = field(default_factory=lambda: count(1))
    decorations: list[int] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    body: list[int] = field(default_factory=list)

    def decorate(self, target: int, *what: int) -> None:
        self.decorations += _instruction(71, target, *what)

    def declare(self, op: int, *operands: int) -> int:
        """A type."""
        self.types += _instruction(op, made := next(self.ids), *operands)
        return made

    def constant(self, type_id: int, value: int) -> int:
        self.types += _instruction(43, type_id, made := next(self.ids), value)
        return made

    def variable(self, type_id: int, storage: int) -> int:
        self.types += _instruction(59, type_id, made := next(self.ids), storage)
        return made

    def block(self, *members: int) -> int:
        """A structure of members of 4 bytes each, or of one array."""
        made = self.declare(30, *members)
        self.decorate(made, 2)
        for index in range(len(members)):
            self.decorations += _instruction(72, made, index, 35, 4 * index)
        return made

    def value(self, op: int, type_id: int, *operands: int) -> int:
        self.body += _instruction(op, type_id, made := next(self.ids), *operands)
        return made

    def do(self, op: int, *operands: int) -> None:
        self.body += _instruction(op, *operands)

    def finish(self, main: int, interface: int) -> bytes:
        words = _instruction(17, 1) + _instruction(14, 0, 1)  # capability Shader; logical addresses, GLSL450
        words += _instruction(15, 5, main, self.name, interface) + _instruction(16, main, 17, *self.workgroup)
        words += self.decorations + self.types + self.body
        return struct.pack(f"<{len(words) + 5}I", 0x07230203, 0x00010300, 0, next(self.ids), 0, *words)


def _instruction(op: int, *operands: int | str) -> list[int]:
    words: list[int] = []
    for operand in operands:
        if isinstance(operand, str):
            data = operand.encode() + b"\0"
            words += (word for (word,) in struct.iter_unpack("<I", data + b"\0" * (-len(data) % 4)))
        else:
            words.append(operand)
    return [(len(words) + 1) << 16 | op, *words]


def axpby(name: str = "axpby", *, threads: int = 64, features: int = 0, shared_floats: int = 0) -> Kernel:
    """y[i] = a * x[i] + b * y[i] for i < n; arguments x, y, n, a, b. x is declared read only."""
    code = _axpby_code(name, (threads, 1, 1), shared_floats)
    return Kernel(name, (HANDLE, HANDLE, INT32, FLOAT32, FLOAT32), code, (threads, 1, 1), features, 12)


def _axpby_code(name: str, workgroup: tuple[int, int, int], shared_floats: int) -> bytes:
    a = _Assembler(name, workgroup)
    void, boolean = a.declare(19), a.declare(20)
    integer, number = a.declare(21, 32, 0), a.declare(22, 32)
    function = a.declare(33, void)
    zero, one, two = (a.constant(integer, value) for value in (0, 1, 2))
    vector = a.declare(23, integer, 3)
    thread = a.variable(a.declare(32, 1, vector), 1)
    a.decorate(thread, 11, 28)  # GlobalInvocationId
    array = a.declare(29, number)
    a.decorate(array, 6, 4)
    buffer = a.declare(32, 12, a.block(array))
    x, y = a.variable(buffer, 12), a.variable(buffer, 12)
    for binding, variable in enumerate((x, y)):
        a.decorate(variable, 34, 0)
        a.decorate(variable, 33, binding)
    a.decorate(x, 24)  # NonWritable
    scalars = a.variable(a.declare(32, 9, a.block(integer, number, number)), 9)
    to_number, to_pushed, to_integer = a.declare(32, 12, number), a.declare(32, 9, number), a.declare(32, 9, integer)
    if shared_floats:
        a.variable(a.declare(32, 4, a.declare(28, number, a.constant(integer, shared_floats))), 4)

    main, entry, inside, done = (next(a.ids) for _ in range(4))
    a.do(54, void, main, 0, function)
    a.do(248, entry)
    i = a.value(81, integer, a.value(61, vector, thread), 0)
    n = a.value(61, integer, a.value(65, to_integer, scalars, zero))
    within = a.value(176, boolean, i, n)
    a.do(247, done, 0)
    a.do(250, within, inside, done)
    a.do(248, inside)
    place = a.value(65, to_number, y, zero, i)
    factors = [a.value(61, number, a.value(65, to_pushed, scalars, index)) for index in (one, two)]
    read = a.value(61, number, a.value(65, to_number, x, zero, i))
    terms = [a.value(133, number, factors[0], read), a.value(133, number, factors[1], a.value(61, number, place))]
    a.do(62, place, a.value(129, number, *terms))
    a.do(249, done)
    a.do(248, done)
    a.do(253)
    a.do(56)
    return a.finish(main, thread)


def idle(name: str, buffers: int = 1, scalars: int = 0, workgroup: tuple[int, int, int] = (1, 1, 1)) -> Kernel:
    """A kernel that does nothing, of any number of buffers, scalars (int32) and threads."""
    a = _Assembler(name, workgroup)
    void = a.declare(19)
    function = a.declare(33, void)
    vector = a.declare(23, a.declare(21, 32, 0), 3)
    thread = a.variable(a.declare(32, 1, vector), 1)
    a.decorate(thread, 11, 28)
    main = next(a.ids)
    a.do(54, void, main, 0, function)
    a.do(248, next(a.ids))
    a.do(253)
    a.do(56)
    arguments = (HANDLE,) * buffers + (INT32,) * scalars
    return Kernel(name, arguments, a.finish(main, thread), workgroup, 0, 4 * scalars, TAGS)
