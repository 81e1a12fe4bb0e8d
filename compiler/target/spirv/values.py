"""Numbers and vectors of any length, and what is done to them lane by lane."""

from collections.abc import Sequence
from typing import NamedTuple

from .code import Code
from .dtype import UINT32, Dtype
from .module import Literal, Number
from .spec import Glsl, Op


class Value(NamedTuple):
    """A computed value: one id for each part of at most four lanes."""

    dtype: Dtype
    parts: tuple[int, ...]


class Values:
    """Lane-wise arithmetic, casts and the taking apart of vectors."""

    def __init__(self, code: Code) -> None:
        self.code = code
        self.module = code.module

    def map(self, op: Op, dtype: Dtype, *values: Value) -> Value:
        """An instruction applied to each part; the operands have as many lanes as the result."""
        types = [self.module.type(dtype.of(lanes)) for lanes in dtype.part_lanes]
        columns = zip(types, *(value.parts for value in values), strict=True)
        return Value(dtype, tuple(self.code.pure(op, *column) for column in columns))

    def glsl(self, function: Glsl, dtype: Dtype, *values: Value) -> Value:
        """A function of GLSL.std.450 applied to each part."""
        types = [self.module.type(dtype.of(lanes)) for lanes in dtype.part_lanes]
        return Value(
            dtype,
            tuple(
                self.code.pure(Op.EXT_INST, type_id, self.module.glsl, Literal(function), *operands)
                for type_id, *operands in zip(types, *(value.parts for value in values), strict=True)
            ),
        )

    def constant(self, dtype: Dtype, number: Number) -> Value:
        """A number in every lane."""
        return Value(dtype, tuple(self.module.constant(dtype.of(lanes), number) for lanes in dtype.part_lanes))

    def splat(self, value: Value, lanes: int) -> Value:
        """A scalar in every lane."""
        return self.join(value.dtype, [value.parts[0]] * lanes)

    def lanes(self, value: Value) -> list[int]:
        """The lanes as scalars."""
        scalar = self.module.type(value.dtype.of(1))
        ids: list[int] = []
        for part, count in zip(value.parts, value.dtype.part_lanes, strict=True):
            if count == 1:
                ids.append(part)
            else:
                ids += [self.code.pure(Op.COMPOSITE_EXTRACT, scalar, part, Literal(i)) for i in range(count)]
        return ids

    def join(self, dtype: Dtype, lanes: Sequence[int]) -> Value:
        """Scalars as the lanes of a vector; `dtype` names the kind of a lane."""
        dtype = dtype.of(len(lanes))
        parts: list[int] = []
        first = 0
        for count in dtype.part_lanes:
            ids = lanes[first : first + count]
            first += count
            if count == 1:
                parts.append(ids[0])
            else:
                parts.append(self.code.pure(Op.COMPOSITE_CONSTRUCT, self.module.type(dtype.of(count)), *ids))
        return Value(dtype, tuple(parts))

    def select(self, condition: Value, then: Value, otherwise: Value) -> Value:
        """`then` where the condition holds; the condition is one bool or one a lane."""
        if condition.dtype.lanes != then.dtype.lanes:
            condition = self.splat(condition, then.dtype.lanes)
        return self.map(Op.SELECT, then.dtype, condition, then, otherwise)

    def cast(self, value: Value, dtype: Dtype) -> Value:
        """Convert each lane as C does. Floats beyond an integer type's range give any value, as in C.

        Types of less than 32 bits are only ever widened and narrowed here, which devices do that cannot calculate
        with them.
        """
        source, lanes = value.dtype, value.dtype.lanes
        dtype = dtype.of(lanes)
        if source == dtype:
            return value
        if source.kind == "bool":
            wide = Dtype(dtype.kind, max(dtype.bits, 32), lanes)
            return self.cast(self.select(value, self.constant(wide, 1), self.constant(wide, 0)), dtype)
        if (
            source.bits < 32
            and not (source.is_float and dtype.is_float)
            and not (source.is_integer and dtype.is_integer)
        ):
            return self.cast(self.cast(value, Dtype(source.kind, 32, lanes)), dtype)
        if dtype.kind == "bool":
            op = Op.F_UNORD_NOT_EQUAL if source.is_float else Op.I_NOT_EQUAL
            return self.map(op, dtype, value, self.constant(source, 0))
        if source.is_integer and dtype.is_integer:
            if source.bits == dtype.bits:
                return Value(dtype, value.parts)
            widens = source.kind == "int" and dtype.bits > source.bits
            return self.map(Op.S_CONVERT if widens else Op.U_CONVERT, dtype, value)
        if source.is_float and dtype.is_float:
            return self.map(Op.F_CONVERT, dtype, value)
        if dtype.bits < 32:
            return self.cast(self.cast(value, Dtype(dtype.kind, 32, lanes)), dtype)
        if dtype.is_float:
            return self.map(Op.CONVERT_S_TO_F if source.kind == "int" else Op.CONVERT_U_TO_F, dtype, value)
        return self.map(Op.CONVERT_F_TO_S if dtype.kind == "int" else Op.CONVERT_F_TO_U, dtype, value)

    def reinterpret(self, value: Value, dtype: Dtype) -> Value:
        """The same bits as another type; the lanes' bits lie in memory's order, the first lane lowest."""
        source = value.dtype
        if source.bits == dtype.bits:
            same_type = source.is_integer and dtype.is_integer
            return Value(dtype, value.parts) if same_type else self.map(Op.BITCAST, dtype, value)
        if source.lanes * source.bits < 32:
            return self.map(Op.BITCAST, dtype, value)
        return self._from_words(self._words(value), dtype)

    def _words(self, value: Value) -> list[int]:
        """The bits as 32-bit words."""
        dtype = value.dtype
        lanes = self.lanes(value)
        if dtype.bits == 32:
            return self.lanes(self.reinterpret(value, UINT32.of(dtype.lanes)))
        if dtype.bits == 64:
            pairs = [self.code.pure(Op.BITCAST, self.module.type(UINT32.of(2)), lane) for lane in lanes]
            return [word for pair in pairs for word in self.lanes(Value(UINT32.of(2), (pair,)))]
        each = 32 // dtype.bits
        groups = [self.join(dtype, lanes[i : i + each]).parts[0] for i in range(0, len(lanes), each)]
        return [self.code.pure(Op.BITCAST, self.module.type(UINT32), group) for group in groups]

    def _from_words(self, words: list[int], dtype: Dtype) -> Value:
        if dtype.bits == 32:
            return self.reinterpret(self.join(UINT32, words), dtype)
        if dtype.bits == 64:
            pairs = [self.join(UINT32, words[i : i + 2]).parts[0] for i in range(0, len(words), 2)]
            return self.join(dtype, [self.code.pure(Op.BITCAST, self.module.type(dtype.of(1)), pair) for pair in pairs])
        group = dtype.of(32 // dtype.bits)
        lanes: list[int] = []
        for word in words:
            lanes += self.lanes(Value(group, (self.code.pure(Op.BITCAST, self.module.type(group), word),)))
        return self.join(dtype, lanes)
