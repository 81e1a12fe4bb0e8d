"""Cooperative matrices (SPV_KHR_cooperative_matrix): TVM's fragments of 16 x 16, each a variable of such a type."""

from collections.abc import Callable
from typing import Any

from .dtype import UINT32, Dtype
from .expressions import Expressions
from .module import Literal
from .spec import NON_PRIVATE, Op, Scope

_USES = {"wmma.matrix_a": 0, "wmma.matrix_b": 1, "wmma.accumulator": 2}  # scopes of memory -> Cooperative Matrix Use
_SIDE = 16
_ROW_MAJOR = 0


class Matrices:
    """Fragments of one kernel and what is done with them."""

    def __init__(self, expressions: Expressions) -> None:
        self._expressions = expressions
        self._code = expressions.code
        self._values = expressions.values
        self._fragments: dict[Any, list[tuple[int, int]]] = {}  # by buffer: (variable, type of the matrix)
        self.effects: dict[str, Callable[[Any], None]] = {
            "tvm_fill_fragment": self._fill,
            "tvm_load_matrix_sync": self._load,
            "tvm_mma_sync": self._multiply,
            "tvm_store_matrix_sync": self._store,
        }

    def allocate(self, buffer: Any, scope: str, dtype: Dtype, count: int) -> bool:
        """Declare the fragments of a buffer, if its scope is one of them."""
        if scope not in _USES:
            return False
        module, side = self._values.module, self._constant(_SIDE)
        kind = module.declare(
            Op.TYPE_COOPERATIVE_MATRIX, None, module.type(dtype), self._constant(Scope.SUBGROUP), side, side,
            self._constant(_USES[scope]),
        )  # fmt: skip
        self._fragments[buffer] = [(self._code.variable(kind), kind) for _ in range(count // (_SIDE * _SIDE))]
        return True

    def _fill(self, call: Any) -> None:
        variable, kind = self._fragment(call.args[0], call.args[4])
        value = self._expressions.evaluate(call.args[5]).parts[0]
        self._code.do(Op.STORE, variable, self._code.pure(Op.COMPOSITE_CONSTRUCT, kind, value))

    def _load(self, call: Any) -> None:
        variable, kind = self._fragment(call.args[0], call.args[4])
        pointer, layout, stride = self._place(call)
        loaded = self._code.value(Op.COOPERATIVE_MATRIX_LOAD, kind, pointer, layout, stride, Literal(NON_PRIVATE))
        self._code.do(Op.STORE, variable, loaded)

    def _multiply(self, call: Any) -> None:
        (to, kind), left, right, sums = (self._fragment(*call.args[i : i + 2]) for i in range(0, 8, 2))
        factors = [self._code.value(Op.LOAD, of, variable) for variable, of in (left, right, sums)]
        self._code.do(Op.STORE, to, self._code.value(Op.COOPERATIVE_MATRIX_MUL_ADD, kind, *factors))

    def _store(self, call: Any) -> None:
        variable, kind = self._fragment(call.args[0], call.args[4])
        pointer, layout, stride = self._place(call)
        value = self._code.value(Op.LOAD, kind, variable)
        self._code.do(Op.COOPERATIVE_MATRIX_STORE, pointer, value, layout, stride, Literal(NON_PRIVATE))

    def _fragment(self, data: Any, index: Any) -> tuple[int, int]:
        return self._fragments[data.args[0]][int(index.value)]

    def _place(self, call: Any) -> tuple[int, int, int]:
        """Pointer, layout and stride of a matrix in shared memory: (..., address_of(buffer[index]), stride, layout)."""
        address, stride, layout = call.args[5:8]
        load = address.args[0]
        region, runs = self._expressions.access(load.source, load.indices, 1)
        place = self._expressions.memory.matrix(region, runs[0], int(stride.value))
        if place is None or str(layout.value) != "row_major":
            raise self._expressions.unknown(f"{call.op.name} at {address} with rows {stride} apart, {layout.value}")
        return place[0], self._constant(_ROW_MAJOR), self._constant(place[1])

    def _constant(self, value: int) -> int:
        return self._values.module.constant(UINT32, value)
