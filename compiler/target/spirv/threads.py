"""Which thread of which workgroup runs: the built-in variables behind blockIdx and threadIdx."""

from .code import Code
from .dtype import UINT32
from .module import Literal
from .spec import BUILT_IN, Decoration, Op, Storage
from .values import Value

_AXES = "xyz"


class Threads:
    """Indices of workgroup and thread, and the size of the workgroup as the code names it."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self._module = code.module
        self.size = [1, 1, 1]
        self.variables: dict[str, int] = {}  # "blockIdx" -> its built-in variable

    def knows(self, tag: str) -> bool:
        """Whether a tag is an axis of workgroups or threads."""
        name, _, axis = tag.partition(".")
        return name in ("blockIdx", "threadIdx") and axis in tuple(_AXES)

    def index(self, tag: str, extent: int | None) -> Value:
        """The index along an axis ("threadIdx.x")."""
        name, _, axis = tag.partition(".")
        if name == "threadIdx" and extent is not None:
            self.size[_AXES.index(axis)] = extent
        vector = self._module.type(UINT32.of(3))
        loaded = self._code.pure(Op.LOAD, vector, self._variable(name, vector))
        scalar = self._module.type(UINT32)
        place = Literal(_AXES.index(axis))
        return Value(UINT32, (self._code.pure(Op.COMPOSITE_EXTRACT, scalar, loaded, place),))

    def subgroup(self) -> Value:
        """The number of the thread's subgroup in its workgroup."""
        scalar = self._module.type(UINT32)
        return Value(UINT32, (self._code.pure(Op.LOAD, scalar, self._variable("subgroup", scalar)),))

    def _variable(self, name: str, kind: int) -> int:
        if name not in self.variables:
            pointer = self._module.pointer(Storage.INPUT, kind)
            variable = self._module.declare(Op.VARIABLE, pointer, Literal(Storage.INPUT), key=(name,))
            self._module.decorate(variable, Decoration.BUILT_IN, BUILT_IN[name])
            self.variables[name] = variable
        return self.variables[name]
