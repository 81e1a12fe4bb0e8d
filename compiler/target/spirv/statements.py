"""TIR statements -> code."""

from collections.abc import Callable
from typing import Any

from .dtype import INT32, UINT32, Dtype, dtype_of
from .expressions import Expressions
from .matrices import Matrices
from .memory import Array
from .spec import WORKGROUP_ACQUIRE_RELEASE, Op, Scope, Storage
from .threads import Threads
from .values import Value

_ARRAYS = {"shared": Storage.WORKGROUP, "local": Storage.FUNCTION, "global": Storage.FUNCTION, "": Storage.FUNCTION}
# Scopes of memory -> the instruction's operands: execution scope, memory scope, semantics
_BARRIERS = {
    "shared": (Scope.WORKGROUP, Scope.WORKGROUP, WORKGROUP_ACQUIRE_RELEASE),
    "warp": (Scope.SUBGROUP, Scope.SUBGROUP, WORKGROUP_ACQUIRE_RELEASE),
}
_UNROLLED = 3  # ForKind of a loop that is to be unrolled


class Statements:
    """Emits statements of one kernel."""

    def __init__(self, expressions: Expressions, threads: Threads, parameters: dict[Any, Any]) -> None:
        self._expressions = expressions
        self._values = expressions.values
        self._code = expressions.code
        self._threads = threads
        self._parameters = parameters  # handles -> bindings
        self._matrices = Matrices(expressions)
        self._rules: dict[str, Callable[[Any], None]] = {
            "SeqStmt": self._sequence,
            "AttrStmt": self._attribute,
            "DeclBuffer": self._declare,
            "AllocBuffer": self._allocate,
            "Bind": lambda node: expressions.bind(node.var, node.value),
            "BufferStore": self._store,
            "IfThenElse": self._if,
            "For": self._for,
            "While": self._while,
            "Evaluate": self._evaluate,
            "Break": lambda node: self._code.leave_loop(),
            "Continue": lambda node: self._code.next_pass(),
            "AssertStmt": lambda node: None,  # a device has nowhere to tell it
        }
        self._effects: dict[str, Callable[[Any], None]] = {
            "tvm_storage_sync": self._barrier,
            "thread_return": lambda call: self._code.leave(),
            "break_loop": lambda call: self._code.leave_loop(),
            "continue_loop": lambda call: self._code.next_pass(),
            "assume": lambda call: None,
            **self._matrices.effects,
        }

    def emit(self, node: Any) -> None:
        """Emit a statement. Raises EngineError for what the emitter does not know, by its name."""
        if self._code.terminated:
            return
        rule = self._rules.get(type(node).__name__)
        if rule is None:
            raise self._expressions.unknown(f"statements of the kind {type(node).__name__}")
        rule(node)

    def _sequence(self, node: Any) -> None:
        for statement in node.seq:
            self.emit(statement)

    def _attribute(self, node: Any) -> None:
        if node.attr_key == "thread_extent":
            tag = str(node.node.thread_tag)
            extent = int(node.value.value) if type(node.value).__name__ == "IntImm" else None
            if not self._threads.knows(tag) or (extent is None and tag.startswith("threadIdx")):
                raise self._expressions.unknown(f"{tag} with extent {node.value}")
            variable = node.node.var
            index = self._threads.index(tag, extent)
            self._expressions.indexing.bind_low(variable, index.parts[0], fits=True)
            self._expressions.variables[variable] = self._values.cast(index, dtype_of(variable) or INT32)
        self.emit(node.body)

    def _declare(self, node: Any) -> None:
        """A buffer over an argument or over an array that exists."""
        data, buffer = node.data, node.buffer
        buffers = self._expressions.buffers
        if data in self._parameters:
            buffers[buffer] = self._parameters[data]
            return
        owner = data.args[0] if type(data).__name__ == "Call" and str(data.op.name).endswith("buffer_data") else None
        region = buffers.get(owner) if owner is not None else None
        dtype = dtype_of(buffer)
        if region is None or dtype is None or (isinstance(region, Array) and region.dtype != dtype.of(1)):
            raise self._expressions.unknown(f"buffer {buffer.name} of {buffer.ty.dtype} over {data}")
        buffers[buffer] = region

    def _allocate(self, node: Any) -> None:
        buffer = node.buffer
        scope, dtype = str(buffer.ty.storage_scope), dtype_of(buffer)
        count = 1
        for extent in buffer.ty.shape:
            if type(extent).__name__ != "IntImm":
                raise self._expressions.unknown(f"buffer {buffer.name} of a size that is not constant")
            count *= int(extent.value)
        if dtype is not None and self._matrices.allocate(buffer, scope, dtype, count):
            return
        if scope not in _ARRAYS or dtype is None:
            raise self._expressions.unknown(f"buffer {buffer.name} of {buffer.ty.dtype} in {scope}")
        self._expressions.buffers[buffer] = self._expressions.memory.add_array(_ARRAYS[scope], dtype, count)

    def _store(self, node: Any) -> None:
        element = dtype_of(node.buffer)
        if element is None:
            raise self._expressions.unknown(f"a store of {node.value.ty.dtype}")
        stored = element.of(1)
        value = self._expressions.before_store(node.value, stored)
        region, runs = self._expressions.access(node.buffer, node.indices, value.dtype.lanes)
        if len(runs) == 1:
            self._expressions.memory.store(region, stored, value, runs[0])
            return
        for lane, run in zip(self._values.lanes(value), runs, strict=True):
            self._expressions.memory.store(region, stored, Value(value.dtype.of(1), (lane,)), run)

    def _if(self, node: Any) -> None:
        condition = self._expressions.evaluate(node.condition).parts[0]
        otherwise = None if node.else_case is None else lambda: self._arm(node.else_case)
        self._code.branch(condition, lambda: self._arm(node.then_case), otherwise)

    def _arm(self, node: Any) -> list[int]:
        self.emit(node)
        return []

    def _for(self, node: Any) -> None:
        """A counted loop; a counter of 64 bits counts in 32 where the bounds are constants."""
        expressions, values, variable = self._expressions, self._values, node.loop_var
        declared = dtype_of(variable) or INT32
        bounds = (node.min, node.extent)
        dtype = INT32 if all(_fits(bound) for bound in bounds) else declared
        first = values.cast(expressions.evaluate(node.min), dtype)
        extent = values.cast(expressions.evaluate(node.extent), dtype)
        end = values.map(Op.I_ADD, dtype, first, extent)
        step = values.constant(dtype, 1) if node.step is None else values.cast(expressions.evaluate(node.step), dtype)
        less = Op.U_LESS_THAN if dtype.kind == "uint" else Op.S_LESS_THAN
        truth = values.module.type(Dtype("bool", 8))

        def body(counter: int) -> None:
            value = Value(dtype, (counter,))
            expressions.indexing.bind_counter(variable, node.min, node.step)
            if declared.bits == 64:
                expressions.indexing.bind_low(variable, values.cast(value, UINT32).parts[0], fits=dtype.bits == 32)
            expressions.variables[variable] = values.cast(value, declared)
            self.emit(node.body)

        self._code.loop(
            lambda counter: self._code.pure(less, truth, counter, end.parts[0]),
            body,
            first=first.parts[0],
            step=step.parts[0],
            unroll=int(node.kind) == _UNROLLED,
        )

    def _while(self, node: Any) -> None:
        self._code.loop(lambda _: self._expressions.evaluate(node.condition).parts[0], lambda _: self.emit(node.body))

    def _evaluate(self, node: Any) -> None:
        call = node.value
        if type(call).__name__ != "Call":
            return
        name = str(call.op.name).rpartition(".")[2]
        if name in self._effects:
            self._effects[name](call)
        else:
            self._expressions.evaluate(call)

    def _barrier(self, call: Any) -> None:
        scope = str(call.args[0].value)
        if scope not in _BARRIERS:
            raise self._expressions.unknown(f"a barrier for {scope} memory")
        self._code.do(Op.CONTROL_BARRIER, *(self._values.module.constant(UINT32, x) for x in _BARRIERS[scope]))


def _fits(bound: Any) -> bool:
    return type(bound).__name__ == "IntImm" and abs(int(bound.value)) < 1 << 30
