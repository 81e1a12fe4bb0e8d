"""Buffers: the arguments of a kernel (storage buffers), shared memory and arrays of a thread's own.

A storage buffer is declared once for each width it is read in, all at the same binding, so that four neighbours that
lie on a multiple of four are one load of 16 bytes. Shared memory cannot be declared twice: an array of it consists of
vectors where a kernel reads or writes vectors, and single numbers are components of these.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from .code import Code
from .dtype import Dtype
from .indexing import Address, Indexing
from .module import Literal
from .spec import Decoration, Op, Scope, Storage
from .values import Value, Values

_WIDEST = 16  # bytes of a load


@dataclass
class Binding:
    """An argument of the kernel that is a storage buffer."""

    index: int
    views: dict[Dtype, int] = field(default_factory=dict)  # element type -> variable
    written: bool = False


@dataclass
class Array:
    """Shared memory, or an array of a thread's own."""

    storage: Storage
    dtype: Dtype  # of one number
    held: Dtype  # the type that it is kept in, which may be wider
    width: int  # numbers of one element: 1, 2 or 4
    variable: int
    widest_access: int = 1  # the widest vector that was read or written
    scalar_access: bool = False  # whether single numbers were


Region = Binding | Array


class Memory:
    """Loads and stores. `widths`: of the arrays in the order of their declaration, the numbers of one element."""

    def __init__(self, code: Code, values: Values, indexing: Indexing, widths: list[int]) -> None:
        self._code = code
        self._module = code.module
        self._values = values
        self._indexing = indexing
        self._widths = widths
        self.bindings: list[Binding] = []
        self.arrays: list[Array] = []
        self.shared_bytes = 0

    def add_binding(self) -> Binding:
        """The next argument of the kernel."""
        self.bindings.append(Binding(len(self.bindings)))
        return self.bindings[-1]

    def add_array(self, storage: Storage, dtype: Dtype, count: int) -> Array:
        """An array of `count` numbers or vectors. A thread's own array of small numbers holds them in 32 bits, as its
        registers are: not every device calculates with less."""
        number = dtype.of(1)
        if storage == Storage.FUNCTION:
            number = _calculable(number)
        width = self._widths[len(self.arrays)] if len(self.arrays) < len(self._widths) else 1
        elements = -(-count * dtype.lanes // width)
        element = self._module.type(number.of(width))
        array_type = self._module.array(element, elements)
        if storage == Storage.WORKGROUP:
            self.shared_bytes += elements * width * number.size
            pointer = self._module.pointer(storage, array_type)
            variable = self._module.declare(Op.VARIABLE, pointer, Literal(storage), key=(len(self.arrays),))
        else:
            variable = self._code.variable(array_type)
        self.arrays.append(Array(storage, dtype.of(1), number, width, variable))
        return self.arrays[-1]

    def load(self, region: Region, stored: Dtype, wanted: Dtype, address: Address) -> Value:
        """Neighbouring numbers of the type `stored` from `address` on, cast to `wanted`: as many as it has lanes."""
        number = _in_memory(region, stored)
        parts: list[int] = []
        first = 0
        for lanes in wanted.part_lanes:
            pieces: list[Value] = []
            for pointer, _, width in self._pieces(region, number, address, first, lanes):
                loaded = self._code.value(Op.LOAD, self._module.type(number.of(width)), pointer)
                piece = Value(number.of(width), (loaded,))
                pieces.append(self._values.cast(piece, stored) if stored.kind == "bool" else piece)
            first += lanes
            if len(pieces) > 1:
                wide = [self._values.cast(piece, _calculable(wanted)) for piece in pieces]
                scalars = [lane for piece in wide for lane in self._values.lanes(piece)]
                pieces = [self._values.join(_calculable(wanted), scalars)]
            parts += self._values.cast(pieces[0], wanted).parts
        return Value(wanted, tuple(parts))

    def store(self, region: Region, stored: Dtype, value: Value, address: Address) -> None:
        """Write the lanes of `value`, cast to `stored`, to neighbouring places from `address` on."""
        number = _in_memory(region, stored)
        if isinstance(region, Binding):
            region.written = True
        if value.dtype.bits < number.bits:
            value, stored = self._values.cast(self._values.cast(value, stored), number), number
        first = 0
        for part, lanes in zip(value.parts, value.dtype.part_lanes, strict=True):
            whole = Value(value.dtype.of(lanes), (part,))
            places = list(self._pieces(region, number, address, first, lanes))
            if len(places) > 1:
                whole = self._values.cast(whole, _calculable(whole.dtype))
            scalars = self._values.lanes(whole)
            for pointer, at, width in places:
                piece = whole if width == lanes else self._values.join(whole.dtype, scalars[at : at + width])
                piece = self._values.cast(self._values.cast(piece, stored), number)
                self._code.do(Op.STORE, pointer, *piece.parts)
            first += lanes

    def pointer(self, region: Region, dtype: Dtype, address: Address, offset: int = 0) -> int:
        """The pointer to one number."""
        if isinstance(region, Binding):
            index = self._indexing.plus(self._indexing.scalar(address), offset)
            return self._chain(region, dtype.of(1), index)
        if region.width == 1:
            return self._chain(region, dtype.of(1), self._indexing.plus(self._indexing.scalar(address), offset))
        width = region.width
        if self._indexing.address_multiple(address) % width == 0:
            element = self._indexing.plus(self._indexing.quotient(address, width), offset // width)
            return self._chain(region, dtype.of(1), element, self._indexing.constant(offset % width))
        index = self._indexing.plus(self._indexing.scalar(address), offset)
        return self._chain(region, dtype.of(1), *self._indexing.split(index, width))

    def matrix(self, region: Region, address: Address, stride: int) -> tuple[int, int] | None:
        """The pointer to the first element of a matrix in shared memory whose rows lie `stride` numbers apart, and how
        many elements apart that is; None where rows do not begin with an element."""
        if not isinstance(region, Array) or region.storage != Storage.WORKGROUP:
            return None
        width = region.width
        if self._indexing.address_multiple(address) % width or stride % width:
            return None
        scalar = width == 1
        element = self._indexing.scalar(address) if scalar else self._indexing.quotient(address, width)
        return self._chain(region, region.held.of(width), element), stride // width

    def atomic(self, region: Region, dtype: Dtype, address: Address) -> tuple[int, Scope]:
        """The pointer to a number that is changed in place, and who sees the change."""
        if isinstance(region, Binding):
            region.written = True
            return self.pointer(region, dtype, address), Scope.DEVICE
        region.scalar_access = True
        return self.pointer(region, dtype, address), Scope.WORKGROUP

    def _pieces(
        self, region: Region, number: Dtype, address: Address, first: int, lanes: int
    ) -> Iterator[tuple[int, int, int]]:
        """How neighbours are read or written: (pointer, first lane, lanes) of each access."""
        multiple = self._indexing.address_multiple(address)
        at = 0
        while at < lanes:
            offset = first + at
            width = next(w for w in (4, 2, 1) if at + w <= lanes and w * number.size <= _WIDEST
                         and math.gcd(multiple, offset) % w == 0)  # fmt: skip
            if isinstance(region, Array):
                region.widest_access = max(region.widest_access, width)
                region.scalar_access |= width == 1
                width = width if width == region.width else 1
            if width == 1:
                yield self.pointer(region, number, address, offset), at, 1
            else:
                element = self._indexing.plus(self._indexing.quotient(address, width), offset // width)
                yield self._chain(region, number.of(width), element), at, width
            at += width

    def _chain(self, region: Region, pointee: Dtype, *indices: int) -> int:
        storage = Storage.STORAGE_BUFFER if isinstance(region, Binding) else region.storage
        pointer = self._module.pointer(storage, self._module.type(pointee))
        if isinstance(region, Array):
            return self._code.pure(Op.ACCESS_CHAIN, pointer, region.variable, *indices)
        return self._code.pure(
            Op.ACCESS_CHAIN, pointer, self._view(region, pointee), self._indexing.constant(0), *indices
        )

    def _view(self, binding: Binding, element: Dtype) -> int:
        """The variable that shows a storage buffer as an array of `element`."""
        key = Dtype("int" if element.is_integer else element.kind, element.bits, element.lanes)
        if key not in binding.views:
            module = self._module
            array, is_new = module.declare_new(Op.TYPE_RUNTIME_ARRAY, module.type(element))
            if is_new:
                module.decorate(array, Decoration.ARRAY_STRIDE, element.size * element.lanes)
            block, is_new = module.declare_new(Op.TYPE_STRUCT, array)
            if is_new:
                module.decorate(block, Decoration.BLOCK)
                module.decorate_member(block, 0, 0)
            variable = module.declare(
                Op.VARIABLE,
                module.pointer(Storage.STORAGE_BUFFER, block),
                Literal(Storage.STORAGE_BUFFER),
                key=(binding.index,),
            )
            module.decorate(variable, Decoration.DESCRIPTOR_SET, 0)
            module.decorate(variable, Decoration.BINDING, binding.index)
            binding.views[key] = variable
        return binding.views[key]

    def annotate(self) -> None:
        """Say of every storage buffer whether it is written and whether it has several views, once all are known."""
        for binding in self.bindings:
            for variable in binding.views.values():
                if not binding.written:
                    self._module.decorate(variable, Decoration.NON_WRITABLE)
                if len(binding.views) > 1:
                    self._module.decorate(variable, Decoration.ALIASED)

    def wanted_widths(self) -> list[int]:
        """What `widths` should have been: an array of a thread's own that is used as single numbers too stays an array
        of these, which drivers keep in registers."""
        return [
            1 if array.storage == Storage.FUNCTION and array.scalar_access else array.widest_access
            for array in self.arrays
        ]


def _in_memory(region: Region, dtype: Dtype) -> Dtype:
    """The type of one number as it lies in memory: a bool of a storage buffer is a byte."""
    if isinstance(region, Array):
        return region.held
    return Dtype("uint", 8) if dtype.kind == "bool" else dtype.of(1)


def _calculable(dtype: Dtype) -> Dtype:
    """The type in which vectors are taken apart and put together: some devices only load, store and cast less than 32
    bits."""
    return dtype if dtype.kind == "bool" or dtype.bits >= 32 else Dtype(dtype.kind, 32, dtype.lanes)
