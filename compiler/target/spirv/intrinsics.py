"""Calls of TIR's intrinsic functions -> values."""

import math
from collections.abc import Callable
from typing import Any

from .dtype import BOOL, FLOAT32, UINT32, Dtype, dtype_of
from .expressions import Expressions, touches_memory
from .operations import MATHS, SHUFFLES
from .spec import RELAXED, Glsl, Op, Scope
from .threads import Threads
from .trigonometry import cosine, error_function, sine, tanh, times
from .values import Value, Values

_FROM_FLOAT32: dict[str, Callable[[Values, Value], Value]] = {
    "sin": sine,
    "cos": cosine,
    "tanh": tanh,
    "erf": error_function,
    "exp10": lambda values, x: values.glsl(Glsl.EXP, x.dtype, times(values, x, math.log(10.0))),
    "log10": lambda values, x: times(values, values.glsl(Glsl.LOG, x.dtype, x), math.log10(math.e)),
}


class Intrinsics:
    """Evaluates calls of one kernel."""

    def __init__(self, expressions: Expressions, threads: Threads) -> None:
        self._expressions = expressions
        self._threads = threads
        self._values = expressions.values
        self._rules: dict[str, Callable[[Any, Dtype], Value]] = {
            "if_then_else": self._if_then_else,
            "likely": self._first,
            "tvm_thread_invariant": self._first,
            "call_pure_extern": self._extern,
            "call_extern": self._extern,
            "reinterpret": self._reinterpret,
            "isnan": self._isnan,
            "popcount": self._popcount,
            "clz": self._leading_zeros,
            "fmod": self._fmod,
            "atomic_add": self._atomic_add,
            "tvm_warp_activemask": lambda node, dtype: self._values.constant(dtype, 0xFFFFFFFF),
            "vectorlow": lambda node, dtype: self._half(node, dtype, 0),
            "vectorhigh": lambda node, dtype: self._half(node, dtype, dtype.lanes),
            "vectorcombine": self._combine,
            **dict.fromkeys(SHUFFLES, self._shuffle),
        }

    def evaluate(self, node: Any, dtype: Dtype) -> Value:
        """The value of a call."""
        name = str(node.op.name).rpartition(".")[2]
        if name in self._rules:
            return self._rules[name](node, dtype)
        if name in MATHS or name in _FROM_FLOAT32:
            return self._maths(name, list(node.args), dtype)
        raise self._expressions.unknown(str(node.op.name))

    def _evaluate(self, node: Any) -> Value:
        return self._expressions.evaluate(node)

    def _first(self, node: Any, dtype: Dtype) -> Value:
        return self._evaluate(node.args[0])

    def _extern(self, node: Any, dtype: Dtype) -> Value:
        """A function by its name in C: TVM writes "expf" for exp of float32; or the number of the thread's subgroup."""
        name = str(node.args[0].value)
        if name == "subgroup_id":
            return self._values.cast(self._threads.subgroup(), dtype)
        base = name.removesuffix("f")
        if not dtype.is_float or (base not in MATHS and base not in _FROM_FLOAT32):
            raise self._expressions.unknown(f"function {name}")
        return self._maths(base, list(node.args[1:]), dtype)

    def _maths(self, name: str, args: list[Any], dtype: Dtype) -> Value:
        """A function of floats; float16 goes through float32, which every device calculates with."""
        if dtype.bits == 64 and name not in ("sqrt", "fabs", "floor", "ceil", "trunc", "fma"):
            raise self._expressions.unknown(f"{name} of {dtype}")
        wide = dtype if dtype.bits > 32 else FLOAT32.of(dtype.lanes)
        operands = [self._values.cast(self._evaluate(arg), wide) for arg in args]
        if name in MATHS:
            result = self._values.glsl(MATHS[name], wide, *operands)
        else:
            result = _FROM_FLOAT32[name](self._values, operands[0])
        return self._values.cast(result, dtype)

    def _if_then_else(self, node: Any, dtype: Dtype) -> Value:
        condition, then, otherwise = node.args
        test = dtype_of(condition)
        if (test is not None and test.lanes > 1) or not (touches_memory(then) or touches_memory(otherwise)):
            arms = self._evaluate(then), self._evaluate(otherwise)
            return self._values.select(self._evaluate(condition), *arms)
        return self._expressions.choose(
            condition, dtype, lambda: self._evaluate(then), lambda: self._evaluate(otherwise)
        )

    def _reinterpret(self, node: Any, dtype: Dtype) -> Value:
        value = self._evaluate(node.args[0])
        bits = value.dtype.bits * value.dtype.lanes
        words = all(d.lanes * d.bits % 32 == 0 for d in (value.dtype, dtype))
        whole = value.dtype.bits == dtype.bits or bits < 32 or words
        if "bool" in (value.dtype.kind, dtype.kind) or bits != dtype.bits * dtype.lanes or not whole:
            raise self._expressions.unknown(f"reinterpret of {value.dtype} as {dtype}")
        return self._values.reinterpret(value, dtype)

    def _isnan(self, node: Any, dtype: Dtype) -> Value:
        """By the bits: drivers that assume that there are no NaNs fold comparisons away."""
        values, value = self._values, self._evaluate(node.args[0])
        if value.dtype.bits > 32:
            raise self._expressions.unknown(f"isnan of {value.dtype}")
        words = UINT32.of(dtype.lanes)
        bits = values.reinterpret(values.cast(value, FLOAT32), words)
        magnitude = values.map(Op.BITWISE_AND, words, bits, values.constant(words, 0x7FFFFFFF))
        return values.map(Op.U_GREATER_THAN, BOOL.of(dtype.lanes), magnitude, values.constant(words, 0x7F800000))

    def _popcount(self, node: Any, dtype: Dtype) -> Value:
        value = self._evaluate(node.args[0])
        if value.dtype.bits > 32:
            raise self._expressions.unknown(f"popcount of {value.dtype}")
        unsigned = Dtype("uint", value.dtype.bits, value.dtype.lanes)  # not to widen with copies of the sign
        words = self._values.cast(Value(unsigned, value.parts), UINT32)
        return self._values.cast(self._values.map(Op.BIT_COUNT, words.dtype, words), dtype)

    def _leading_zeros(self, node: Any, dtype: Dtype) -> Value:
        """31 less the place of the highest one; GLSL's place of 0 is -1."""
        value = self._evaluate(node.args[0])
        if value.dtype.bits != 32:
            raise self._expressions.unknown(f"clz of {value.dtype}")
        words = Dtype("int", 32, dtype.lanes)
        place = self._values.glsl(Glsl.FIND_U_MSB, words, Value(words, value.parts))
        return self._values.cast(self._values.map(Op.I_SUB, words, self._values.constant(words, 31), place), dtype)

    def _fmod(self, node: Any, dtype: Dtype) -> Value:
        wide = dtype if dtype.bits > 32 else FLOAT32.of(dtype.lanes)
        operands = [self._values.cast(self._evaluate(arg), wide) for arg in node.args]
        return self._values.cast(self._values.map(Op.F_REM, wide, *operands), dtype)

    def _atomic_add(self, node: Any, dtype: Dtype) -> Value:
        """Add to a number in memory that other threads add to; returns what was there before."""
        address, amount = node.args[0], self._evaluate(node.args[1])
        if type(address).__name__ != "Call" or not str(address.op.name).endswith("address_of"):
            raise self._expressions.unknown("atomic_add to anything but address_of(buffer[index])")
        if dtype.bits != 32 or not dtype.is_integer:
            raise self._expressions.unknown(f"atomic_add of {dtype}")
        load = address.args[0]
        region, runs = self._expressions.access(load.source, load.indices, 1)
        pointer, scope = self._expressions.memory.atomic(region, dtype, runs[0])
        type_id = self._values.module.type(dtype)
        scope_id, relaxed = (self._values.module.constant(UINT32, x) for x in (scope, RELAXED))
        code = self._values.code
        return Value(dtype, (code.value(Op.ATOMIC_I_ADD, type_id, pointer, scope_id, relaxed, amount.parts[0]),))

    def _half(self, node: Any, dtype: Dtype, first: int) -> Value:
        lanes = self._values.lanes(self._evaluate(node.args[0]))
        return self._values.join(dtype, lanes[first : first + dtype.lanes])

    def _combine(self, node: Any, dtype: Dtype) -> Value:
        return self._values.join(dtype, [x for arg in node.args for x in self._values.lanes(self._evaluate(arg))])

    def _shuffle(self, node: Any, dtype: Dtype) -> Value:
        """A value of another thread of the subgroup: (mask, value, lane or distance, width, subgroup size)."""
        name = str(node.op.name).rpartition(".")[2]
        _, value, lane, width, size = node.args
        if name != "tvm_warp_shuffle_xor" and int(width.value) != int(size.value):
            raise self._expressions.unknown(f"{name} among {int(width.value)} of {int(size.value)} threads")
        module, code = self._values.module, self._values.code
        scope = module.constant(UINT32, Scope.SUBGROUP)
        target = self._values.cast(self._evaluate(lane), UINT32).parts[0]
        source = self._evaluate(value)
        types = [module.type(dtype.of(lanes)) for lanes in dtype.part_lanes]
        parts = zip(types, source.parts, strict=True)
        return Value(dtype, tuple(code.value(SHUFFLES[name], t, scope, part, target) for t, part in parts))
