"""Indices of memory: 32-bit address arithmetic, and what an index is known to be a multiple of.

A storage buffer holds less than 2^32 elements, so the low half of a 64-bit index is the whole index, and sums, products
and masks of it can be calculated in 32 bits: many small GPUs have nothing wider.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .dtype import INT32, INT64, UINT32, dtype_of
from .module import Number
from .spec import Op
from .values import Value, Values

_RING = {  # of these, the low half of the result depends on the low halves of the operands only
    "Add": Op.I_ADD,
    "Sub": Op.I_SUB,
    "Mul": Op.I_MUL,
    "BitwiseAnd": Op.BITWISE_AND,
    "BitwiseOr": Op.BITWISE_OR,
    "BitwiseXor": Op.BITWISE_XOR,
}
# Of these it depends on all of the operands; `Mod`, for which there is no such instruction, stays in 64 bits.
_DIVISIONS = {"RShift": Op.SHIFT_RIGHT_ARITHMETIC, "Div": Op.S_DIV}


@dataclass(frozen=True)
class Address:
    """The place of a scalar in a buffer: `scale` times the value of a TIR expression, or of an id of 32 bits."""

    expression: Any
    scale: int = 1


class Indexing:
    """Evaluates indices. `evaluate` is the emitter of any expression."""

    def __init__(self, values: Values, evaluate: Callable[[Any], Value]) -> None:
        self._values = values
        self._evaluate = evaluate
        self._multiples: dict[Any, int] = {}  # of variables; 0 stands for a variable that is 0
        self._low: dict[Any, int] = {}  # of 64-bit variables: their low halves
        self._small: set[Any] = set()  # 64-bit variables that are what their low halves are as signed numbers

    def bind(self, variable: Any, value: Any) -> None:
        """Note what a variable was set to."""
        dtype = dtype_of(variable)
        if dtype is None or not dtype.is_integer or dtype.lanes > 1:
            return
        self._multiples[variable] = self.multiple(value)
        if dtype.bits == 64:
            self._low[variable] = self.low(value)
            if self._fits(value):
                self._small.add(variable)

    def bind_low(self, variable: Any, low: int, *, fits: bool) -> None:
        """Note the low half of a 64-bit variable, and whether it says all, as a signed number."""
        self._low[variable] = low
        if fits:
            self._small.add(variable)

    def bind_counter(self, variable: Any, first: Any, step: Any) -> None:
        """Note where the counter of a loop starts and how it goes on."""
        self._multiples[variable] = math.gcd(self.multiple(first), 1 if step is None else self.multiple(step))

    def multiple(self, expression: Any) -> int:
        """A number that the expression is certainly a multiple of; 0 if it is certainly 0."""
        if isinstance(expression, int):
            return 1
        kind = type(expression).__name__
        if kind == "IntImm":
            return abs(int(expression.value))
        if kind == "Var":
            return self._multiples.get(expression, 1)
        if kind in ("Add", "Sub"):
            return math.gcd(self.multiple(expression.a), self.multiple(expression.b))
        if kind == "Mul":
            return self.multiple(expression.a) * self.multiple(expression.b)
        if kind == "LShift" and type(expression.b).__name__ == "IntImm":
            return self.multiple(expression.a) << int(expression.b.value)
        if kind == "BitwiseAnd":
            # a power of two that divides one side divides what both have in common
            return max(_power_of_two(self.multiple(expression.a)), _power_of_two(self.multiple(expression.b)))
        if kind == "Cast":
            source, dtype = dtype_of(expression.value), dtype_of(expression)
            widens = source is not None and dtype is not None and source.is_integer and source.bits <= dtype.bits
            return self.multiple(expression.value) if widens else 1
        if kind == "Select":
            return math.gcd(self.multiple(expression.true_value), self.multiple(expression.false_value))
        return 1

    def _fits(self, expression: Any) -> bool:
        """Whether a 64-bit integer is certainly what its low 32 bits are as a signed number."""
        kind = type(expression).__name__
        if kind == "IntImm":
            return -(1 << 31) <= int(expression.value) < 1 << 31
        if kind == "Var":
            return expression in self._small
        if kind == "BitwiseAnd":
            return any(
                type(x).__name__ == "IntImm" and 0 <= int(x.value) < 1 << 31 for x in (expression.a, expression.b)
            )
        if kind in _DIVISIONS:
            places = expression.b
            shift_is_small = kind == "Div" or (type(places).__name__ == "IntImm" and int(places.value) < 32)
            signed = dtype_of(expression) == INT64
            return signed and shift_is_small and self._fits(expression.a) and self._fits(expression.b)
        source = dtype_of(expression.value) if kind == "Cast" else None
        return source is not None and (source.bits < 32 or source == INT32) and not source.is_float

    def low(self, expression: Any) -> int:
        """The id of the low 32 bits of an integer."""
        if isinstance(expression, int):
            return expression
        kind = type(expression).__name__
        dtype = dtype_of(expression)
        if dtype is None or dtype.bits < 64:
            return self._values.cast(self._evaluate(expression), UINT32).parts[0]
        if kind == "IntImm":
            return self.constant(int(expression.value))
        if kind == "Var" and expression in self._low:
            return self._low[expression]
        if kind in _RING:
            return self._pure(_RING[kind], self.low(expression.a), self.low(expression.b))
        if kind in _DIVISIONS and self._fits(expression):
            return self._pure(_DIVISIONS[kind], self.low(expression.a), self.low(expression.b))
        if kind == "Cast":
            source = dtype_of(expression.value)
            if source is not None and source.is_integer:
                return self.low(expression.value)
        return self._values.cast(self._evaluate(expression), UINT32).parts[0]

    def quotient(self, address: Address, divisor: int) -> int:
        """The id of an address divided by a power of two that it is a multiple of."""
        if address.scale % divisor == 0:
            return self._times(self.low(address.expression), address.scale // divisor)
        return self._quotient(address.expression, divisor // math.gcd(address.scale, divisor))

    def _quotient(self, expression: Any, divisor: int) -> int:
        kind = type(expression).__name__
        if divisor == 1:
            return self.low(expression)
        if kind == "IntImm":
            return self.constant(int(expression.value) // divisor)
        if kind in ("Add", "Sub") and all(self.multiple(x) % divisor == 0 for x in (expression.a, expression.b)):
            return self._pure(_RING[kind], *(self._quotient(x, divisor) for x in (expression.a, expression.b)))
        if kind == "Mul":
            for one, other in ((expression.a, expression.b), (expression.b, expression.a)):
                if self.multiple(one) % divisor == 0:
                    return self._pure(Op.I_MUL, self._quotient(one, divisor), self.low(other))
        if kind == "Cast":
            source, dtype = dtype_of(expression.value), dtype_of(expression)
            if source and dtype and source.is_integer and source.bits <= 32 <= dtype.bits:
                return self._quotient(expression.value, divisor)
        value = self._evaluate(expression)
        shift = Op.SHIFT_RIGHT_ARITHMETIC if value.dtype.kind == "int" else Op.SHIFT_RIGHT_LOGICAL
        places = self._values.constant(value.dtype, divisor.bit_length() - 1)
        return self._values.cast(self._values.map(shift, value.dtype, value, places), UINT32).parts[0]

    def scalar(self, address: Address) -> int:
        """The id of an address."""
        return self._times(self.low(address.expression), address.scale)

    def address_multiple(self, address: Address) -> int:
        """What an address is a multiple of."""
        return self.multiple(address.expression) * address.scale

    def plus(self, index: int, offset: int) -> int:
        """The id of an index so many further on."""
        return self._pure(Op.I_ADD, index, self.constant(offset)) if offset else index

    def split(self, index: int, width: int) -> tuple[int, int]:
        """The ids of the element of `width` numbers, a power of two, that an index falls into, and its place there."""
        places, mask = self.constant(width.bit_length() - 1), self.constant(width - 1)
        return self._pure(Op.SHIFT_RIGHT_LOGICAL, index, places), self._pure(Op.BITWISE_AND, index, mask)

    def constant(self, number: Number) -> int:
        """A constant index."""
        return self._values.module.constant(UINT32, number)

    def _times(self, index: int, factor: int) -> int:
        return index if factor == 1 else self._pure(Op.I_MUL, index, self.constant(factor))

    def _pure(self, op: Op, *operands: int) -> int:
        return self._values.code.pure(op, self._values.module.type(UINT32), *operands)


def _power_of_two(number: int) -> int:
    """The largest power of two that divides a number; of 0, which all divide, a large one."""
    return number & -number if number else 1 << 30
