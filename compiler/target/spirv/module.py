"""A SPIR-V module under construction: types, constants and variables declared once each, written as words."""

import struct
from collections.abc import Iterable
from dataclasses import dataclass

from .dtype import UINT32, Dtype
from .spec import Decoration, Op, Storage

Number = int | float | bool


class Literal(int):
    """An operand that is a number by itself; a plain int is the id of a value."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: its result's type and id come before the operands, where it has them."""

    op: Op
    type: int | None
    result: int | None
    operands: tuple[int, ...]

    def words(self) -> list[int]:
        """The instruction as the 32-bit words of the binary."""
        words = [word for word in (self.type, self.result) if word is not None] + [int(x) for x in self.operands]
        return [(len(words) + 1) << 16 | self.op, *words]

    def ids(self) -> list[int]:
        """Every id that it needs."""
        needed = [x for x in self.operands if not isinstance(x, Literal)]
        return needed if self.type is None else [self.type, *needed]


def text_literals(text: str) -> tuple[Literal, ...]:
    """A string as operands: UTF-8, ended by a zero, in whole words."""
    data = text.encode() + b"\0"
    return number_literals(data + b"\0" * (-len(data) % 4))


def number_literals(data: bytes) -> tuple[Literal, ...]:
    """Bytes as operands; a number of less than 4 bytes fills a word."""
    data += b"\0" * (-len(data) % 4)
    return tuple(Literal(word) for (word,) in struct.iter_unpack("<I", data))


class Module:
    """Declarations, each made when it is first asked for, in an order that defines before it uses."""

    def __init__(self) -> None:
        self.declarations: list[Instruction] = []
        self.decorations: list[Instruction] = []
        self.type_of: dict[int, int] = {}  # of every value: the id of its type
        self.storage_of: dict[int, Storage] = {}  # of every pointer type
        self.small_types: dict[int, str] = {}  # ids of the types with 8 or 16 bits a lane: "float16", "int8", ...
        self._known: dict[tuple[object, ...], int] = {}
        self._types: dict[Dtype, int] = {}
        self._constants: dict[tuple[Dtype, str], int] = {}
        self._last = 0
        self.glsl = self.new_id()  # the set of extended instructions GLSL.std.450

    def new_id(self) -> int:
        """A fresh id."""
        self._last += 1
        return self._last

    @property
    def bound(self) -> int:
        """More than any id."""
        return self._last + 1

    def declare(self, op: Op, type_id: int | None, *operands: int, key: tuple[object, ...] = ()) -> int:
        """The id of a declaration, the same for the same instruction. `key` tells apart what would look alike."""
        known = (op, type_id, *((type(x), x) for x in operands), *key)
        if known not in self._known:
            result = self._known[known] = self.new_id()
            self.declarations.append(Instruction(op, type_id, result, operands))
            if type_id is not None:
                self.type_of[result] = type_id
        return self._known[known]

    def declare_new(self, op: Op, *operands: int) -> tuple[int, bool]:
        """The id of a type, and whether it has just been declared and wants its decorations."""
        before = len(self.declarations)
        return self.declare(op, None, *operands), len(self.declarations) > before

    def decorate(self, target: int, decoration: Decoration, *values: int) -> None:
        """Annotate a type or variable."""
        operands = (target, Literal(decoration), *map(Literal, values))
        self.decorations.append(Instruction(Op.DECORATE, None, None, operands))

    def decorate_member(self, target: int, member: int, offset: int) -> None:
        """Say where the member of a structure lies, in bytes."""
        operands = (target, Literal(member), Literal(Decoration.OFFSET), Literal(offset))
        self.decorations.append(Instruction(Op.MEMBER_DECORATE, None, None, operands))

    def type(self, dtype: Dtype) -> int:
        """The type of a value of at most four lanes."""
        if dtype not in self._types:
            type_id = self._types[dtype] = self._declare_type(dtype)
            if dtype.bits < 32 and dtype.kind != "bool":
                self.small_types[type_id] = f"{'float' if dtype.is_float else 'int'}{dtype.bits}"
        return self._types[dtype]

    def _declare_type(self, dtype: Dtype) -> int:
        if dtype.lanes > 1:
            return self.declare(Op.TYPE_VECTOR, None, self.type(dtype.of(1)), Literal(dtype.lanes))
        if dtype.kind == "bool":
            return self.declare(Op.TYPE_BOOL, None)
        if dtype.is_float:
            return self.declare(Op.TYPE_FLOAT, None, Literal(dtype.bits))
        return self.declare(Op.TYPE_INT, None, Literal(dtype.bits), Literal(0))

    def pointer(self, storage: Storage, pointee: int) -> int:
        """The type of pointers to `pointee`."""
        pointer = self.declare(Op.TYPE_POINTER, None, Literal(storage), pointee)
        self.storage_of[pointer] = storage
        return pointer

    def array(self, element: int, length: int) -> int:
        """The type of arrays in shared or local memory."""
        return self.declare(Op.TYPE_ARRAY, None, element, self.constant(UINT32, length))

    def constant(self, dtype: Dtype, value: Number) -> int:
        """A number, in every lane of a type of at most four."""
        key = (dtype, repr(value))  # which tells 0.0 from -0.0
        if key not in self._constants:
            self._constants[key] = self._declare_constant(dtype, value)
        return self._constants[key]

    def _declare_constant(self, dtype: Dtype, value: Number) -> int:
        type_id = self.type(dtype)
        if dtype.lanes > 1:
            return self.declare(Op.CONSTANT_COMPOSITE, type_id, *[self.constant(dtype.of(1), value)] * dtype.lanes)
        if dtype.kind == "bool":
            return self.declare(Op.CONSTANT_TRUE if value else Op.CONSTANT_FALSE, type_id)
        if dtype.is_float:
            data = struct.pack({16: "<e", 32: "<f", 64: "<d"}[dtype.bits], _in_range(value, dtype.bits))
        else:
            mask = (1 << dtype.bits) - 1
            data = struct.pack("<Q", int(value) & mask)[: max(dtype.size, 4)]
        return self.declare(Op.CONSTANT, type_id, *number_literals(data))


_LARGEST = {16: 65519.99, 32: 3.4028235677973366e38, 64: float("inf")}  # what still rounds to a finite number


def _in_range(value: Number, bits: int) -> float:
    """A float that `struct` packs: what is too large for the type becomes an infinity, as in arithmetic."""
    number = float(value)
    if abs(number) >= _LARGEST[bits]:
        return float("inf") if number > 0 else float("-inf")
    return number


def binary(header: tuple[int, ...], instructions: Iterable[Instruction]) -> bytes:
    """The header's words and those of the instructions as bytes."""
    words = list(header)
    for instruction in instructions:
        words += instruction.words()
    return struct.pack(f"<{len(words)}I", *words)
