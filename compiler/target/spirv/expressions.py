"""TIR expressions -> values."""

from collections.abc import Callable
from typing import Any

from ....runtime.errors import EngineError
from .dtype import BOOL, INT64, UINT32, UINT64, Dtype, dtype_of
from .indexing import Address, Indexing
from .memory import Memory, Region
from .operations import ARITHMETIC, COMPARISONS, MIN_MAX, PURE, ByKind
from .spec import Op
from .values import Value, Values


class Expressions:
    """Evaluates expressions of one kernel. `buffers`: what a buffer variable stands for."""

    def __init__(self, kernel: str, values: Values) -> None:
        self.kernel = kernel
        self.values = values
        self.code = values.code
        self.indexing = Indexing(values, self.evaluate)
        self.variables: dict[Any, Value] = {}
        self.buffers: dict[Any, Region] = {}
        self.memory: Memory
        self.call: Callable[[Any, Dtype], Value]
        self._rules: dict[str, Callable[[Any, Dtype], Value]] = {
            "IntImm": lambda node, dtype: values.constant(dtype, node.value),
            "FloatImm": lambda node, dtype: values.constant(dtype, node.value),
            "Var": self._variable,
            "Cast": self._cast,
            "Select": self._select,
            "Let": self._let,
            "Ramp": self._ramp,
            "Broadcast": lambda node, dtype: values.splat(self.evaluate(node.value), dtype.lanes),
            "Shuffle": self._shuffle,
            "TensorLoad": self._load,
            "Not": lambda node, dtype: values.map(Op.LOGICAL_NOT, dtype, self.evaluate(node.a)),
            "And": self._both,
            "Or": self._either,
            "BitwiseNot": self._complement,
            "Mod": self._remainder,
            "FloorDiv": self._floor_divide,
            "FloorMod": self._floor_remainder,
            "Call": lambda node, dtype: self.call(node, dtype),
            **dict.fromkeys(ARITHMETIC, self._arithmetic),
            **dict.fromkeys(COMPARISONS, self._comparison),
            **dict.fromkeys(MIN_MAX, self._min_max),
        }

    def evaluate(self, node: Any) -> Value:
        """The value of an expression. Raises EngineError for what the emitter does not know, by its name."""
        dtype = dtype_of(node)
        rule = self._rules.get(type(node).__name__)
        if dtype is None:
            raise self.unknown(f"the type {node.ty.dtype}")
        if rule is None:
            raise self.unknown(f"expressions of the kind {type(node).__name__}")
        return rule(node, dtype)

    def before_store(self, node: Any, stored: Dtype) -> Value:
        """The value of an expression that memory is to hold as `stored`, less a cast to that: stores do it."""
        dtype = dtype_of(node)
        if type(node).__name__ == "Cast" and dtype is not None and dtype.of(1) == stored and stored.kind != "bool":
            return self.evaluate(node.value)
        return self.evaluate(node)

    def unknown(self, what: str) -> EngineError:
        """The error that refuses something."""
        return EngineError(f"the Vulkan code generator does not know {what} in kernel {self.kernel}")

    def bind(self, variable: Any, node: Any) -> None:
        """Give a variable its value."""
        self.indexing.bind(variable, node)
        self.variables[variable] = self.evaluate(node)

    def access(self, buffer: Any, indices: Any, lanes: int) -> tuple[Region, list[Address]]:
        """What a load or store of so many numbers touches: the region, and where each run of neighbours begins. The
        runs are of the same length."""
        element = dtype_of(buffer)
        if buffer not in self.buffers or element is None or len(indices) != 1:
            raise self.unknown(f"buffer {buffer.name} of {buffer.ty.dtype} with {len(indices)} indices")
        region, index = self.buffers[buffer], indices[0]
        if lanes == element.lanes:
            return region, [Address(index, element.lanes)]
        if element.lanes > 1:
            raise self.unknown(f"several elements at once of buffer {buffer.name} of {element}")
        if type(index).__name__ == "Ramp":
            stride = index.stride
            if type(stride).__name__ == "IntImm" and int(stride.value) == 1:
                return region, [Address(index.base)]
            return region, [Address(index.base + stride * lane) for lane in range(lanes)]
        places = self.values.cast(self.evaluate(index), UINT32)
        return region, [Address(place) for place in self.values.lanes(places)]

    def _load(self, node: Any, dtype: Dtype) -> Value:
        """The numbers of a load, in the type `dtype`, which may be another one than that of the buffer."""
        stored = dtype_of(node)
        if stored is None:
            raise self.unknown(f"the type {node.ty.dtype}")
        region, runs = self.access(node.source, node.indices, dtype.lanes)
        wanted = dtype.of(dtype.lanes // len(runs))
        loaded = [self.memory.load(region, stored.of(1), wanted, run) for run in runs]
        if len(loaded) == 1:
            return loaded[0]
        return self.values.join(dtype, [lane for value in loaded for lane in self.values.lanes(value)])

    def _cast(self, node: Any, dtype: Dtype) -> Value:
        source = dtype_of(node.value)
        if type(node.value).__name__ == "TensorLoad":
            return self._load(node.value, dtype)  # piece by piece: it may be loaded in several
        if source in (INT64, UINT64) and dtype.is_integer and dtype.bits <= 32:
            return self.values.cast(Value(UINT32, (self.indexing.low(node.value),)), dtype)
        return self.values.cast(self.evaluate(node.value), dtype)

    def _variable(self, node: Any, dtype: Dtype) -> Value:
        if node not in self.variables:
            raise self.unknown(f"variable {node.name}")
        return self.variables[node]

    def _kind(self, table: dict[str, ByKind], node: Any, dtype: Dtype) -> Op:
        op: Op | None = getattr(table[type(node).__name__], dtype.kind)
        if op is None:
            raise self.unknown(f"{type(node).__name__} of {dtype}")
        return op

    def _arithmetic(self, node: Any, dtype: Dtype) -> Value:
        op = self._kind(ARITHMETIC, node, dtype)
        return self.values.map(op, dtype, self.evaluate(node.a), self.evaluate(node.b))

    def _comparison(self, node: Any, dtype: Dtype) -> Value:
        a, b = self.evaluate(node.a), self.evaluate(node.b)
        return self.values.map(self._kind(COMPARISONS, node, a.dtype), dtype, a, b)

    def _min_max(self, node: Any, dtype: Dtype) -> Value:
        function = MIN_MAX[type(node).__name__].get(dtype.kind)
        if function is None:
            raise self.unknown(f"{type(node).__name__} of {dtype}")
        return self.values.glsl(function, dtype, self.evaluate(node.a), self.evaluate(node.b))

    def _select(self, node: Any, dtype: Dtype) -> Value:
        arms = self.evaluate(node.true_value), self.evaluate(node.false_value)
        return self.values.select(self.evaluate(node.condition), *arms)

    def _let(self, node: Any, dtype: Dtype) -> Value:
        self.bind(node.var, node.value)
        return self.evaluate(node.body)

    def _ramp(self, node: Any, dtype: Dtype) -> Value:
        values = self.values
        base, stride = (values.splat(self.evaluate(x), dtype.lanes) for x in (node.base, node.stride))
        lanes = [values.module.constant(dtype.of(1), i) for i in range(dtype.lanes)]
        scaled = values.map(Op.I_MUL, dtype, stride, values.join(dtype, lanes))
        return values.map(Op.I_ADD, dtype, base, scaled)

    def _shuffle(self, node: Any, dtype: Dtype) -> Value:
        lanes = [lane for vector in node.vectors for lane in self.values.lanes(self.evaluate(vector))]
        return self.values.join(dtype, [lanes[int(index.value)] for index in node.indices])

    def _both(self, node: Any, dtype: Dtype) -> Value:
        if dtype.lanes > 1 or not touches_memory(node.b):
            return self.values.map(Op.LOGICAL_AND, dtype, self.evaluate(node.a), self.evaluate(node.b))
        return self.choose(node.a, dtype, lambda: self.evaluate(node.b), lambda: self.values.constant(dtype, False))

    def _either(self, node: Any, dtype: Dtype) -> Value:
        if dtype.lanes > 1 or not touches_memory(node.b):
            return self.values.map(Op.LOGICAL_OR, dtype, self.evaluate(node.a), self.evaluate(node.b))
        return self.choose(node.a, dtype, lambda: self.values.constant(dtype, True), lambda: self.evaluate(node.b))

    def choose(self, condition: Any, dtype: Dtype, then: Callable[[], Value], other: Callable[[], Value]) -> Value:
        """One of two values, of which only that one is computed."""
        test = self.evaluate(condition).parts[0]
        return Value(dtype, tuple(self.code.branch(test, lambda: then().parts, lambda: other().parts)))

    def _complement(self, node: Any, dtype: Dtype) -> Value:
        return self.values.map(Op.LOGICAL_NOT if dtype.kind == "bool" else Op.NOT, dtype, self.evaluate(node.a))

    def _remainder(self, node: Any, dtype: Dtype) -> Value:
        """What truncating division leaves. Vulkan's own signed remainder is undefined for negative numbers."""
        if dtype.kind not in ("int", "uint"):
            raise self.unknown(f"{type(node).__name__} of {dtype}")
        return self._divide(dtype, self.evaluate(node.a), self.evaluate(node.b))[1]

    def _divide(self, dtype: Dtype, a: Value, b: Value) -> tuple[Value, Value]:
        """Quotient towards zero and remainder."""
        values = self.values
        if dtype.kind == "uint":
            return values.map(Op.U_DIV, dtype, a, b), values.map(Op.U_MOD, dtype, a, b)
        quotient = values.map(Op.S_DIV, dtype, a, b)
        return quotient, values.map(Op.I_SUB, dtype, a, values.map(Op.I_MUL, dtype, quotient, b))

    def _floor_divide(self, node: Any, dtype: Dtype) -> Value:
        return self._floor(node, dtype)[0]

    def _floor_remainder(self, node: Any, dtype: Dtype) -> Value:
        return self._floor(node, dtype)[1]

    def _floor(self, node: Any, dtype: Dtype) -> tuple[Value, Value]:
        """Quotient towards minus infinity, and the remainder, which has the divisor's sign."""
        if dtype.kind not in ("int", "uint"):
            raise self.unknown(f"{type(node).__name__} of {dtype}")
        values, b = self.values, self.evaluate(node.b)
        quotient, remainder = self._divide(dtype, self.evaluate(node.a), b)
        if dtype.kind == "uint":
            return quotient, remainder
        truth, zero = BOOL.of(dtype.lanes), values.constant(dtype, 0)
        signs_differ = values.map(Op.S_LESS_THAN, truth, values.map(Op.BITWISE_XOR, dtype, remainder, b), zero)
        inexact = values.map(Op.I_NOT_EQUAL, truth, remainder, zero)
        wrong = values.map(Op.LOGICAL_AND, truth, inexact, signs_differ)
        one_less = values.map(Op.I_SUB, dtype, quotient, values.constant(dtype, 1))
        one_more = values.map(Op.I_ADD, dtype, remainder, b)
        return values.select(wrong, one_less, quotient), values.select(wrong, one_more, remainder)


_OPERANDS = ("a", "b", "value", "condition", "true_value", "false_value", "base", "stride", "body")
_OPERAND_LISTS = ("args", "vectors")
_LEAVES = ("Var", "IntImm", "FloatImm", "StringImm")


def touches_memory(node: Any) -> bool:
    """Whether computing an expression reads memory or does anything else that a condition may guard."""
    kind = type(node).__name__
    if kind in _LEAVES:
        return False
    if kind == "TensorLoad" or (kind == "Call" and str(node.op.name).rpartition(".")[2] not in PURE):
        return True
    operands = [getattr(node, name) for name in _OPERANDS if hasattr(node, name)]
    operands += [x for name in _OPERAND_LISTS for x in getattr(node, name, ())]
    return any(touches_memory(operand) for operand in operands)
