"""One lowered PrimFunc -> one SPIR-V module and what a runtime must know to launch it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ....runtime.errors import EngineError
from .assembly import assemble
from .code import Code
from .dtype import UINT32, UINT64, Dtype, parse_dtype
from .expressions import Expressions
from .intrinsics import Intrinsics
from .memory import Memory
from .module import Literal, Module
from .spec import Decoration, Op, Storage
from .statements import Statements
from .threads import Threads
from .values import Value, Values

_PUSH_BYTES = 128  # of push constants: what every Vulkan device has


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel."""

    name: str
    arguments: tuple[Dtype | None, ...]  # None: a storage buffer
    launch_tags: tuple[str, ...]
    workgroup: tuple[int, int, int]
    features: int  # bits, as in blob.py
    push_bytes: int
    spirv: bytes


def emit_kernel(function: Any, *, max_threads: int, max_shared_bytes: int) -> Kernel:
    """Compile a device function as TVM's lowering leaves it. Raises EngineError for what Vulkan cannot do."""
    emission = _Emission(function, [])
    widths = emission.memory.wanted_widths()
    if any(width > 1 for width in widths):
        emission = _Emission(function, widths)  # arrays are vectors where vectors of them are used
    threads = emission.threads.size
    for what, value, limit in (
        ("threads in a workgroup", threads[0] * threads[1] * threads[2], max_threads),
        ("bytes of shared memory", emission.memory.shared_bytes, max_shared_bytes),
        ("bytes of scalar arguments", emission.push_bytes, _PUSH_BYTES),
    ):
        if value > limit:
            raise EngineError(f"kernel {emission.name} takes {value} {what}: the Vulkan target has {limit}")
    spirv, features = emission.assemble()
    return Kernel(
        name=emission.name,
        arguments=tuple(emission.arguments),
        launch_tags=tuple(str(tag) for tag in function.attrs["tirx.kernel_launch_params"]),
        workgroup=(threads[0], threads[1], threads[2]),
        features=features,
        push_bytes=emission.push_bytes,
        spirv=spirv,
    )


class _Emission:
    """One pass over a function. `widths`: see Memory."""

    def __init__(self, function: Any, widths: Sequence[int]) -> None:
        self.name = str(function.attrs["global_symbol"])
        self.module = Module()
        self.code = Code(self.module)
        self.values = Values(self.code)
        self.expressions = Expressions(self.name, self.values)
        self.memory = Memory(self.code, self.values, self.expressions.indexing, list(widths))
        self.expressions.memory = self.memory
        self.threads = Threads(self.code)
        self.expressions.call = Intrinsics(self.expressions, self.threads).evaluate
        self.arguments: list[Dtype | None] = []
        self.push_bytes = 0
        parameters: dict[Any, Any] = {}
        scalars: list[tuple[Any, Dtype]] = []
        for parameter in function.params:
            scalar = self._scalar_type(parameter)
            self.arguments.append(scalar)
            if scalar is None:
                parameters[parameter] = self.memory.add_binding()
            else:
                scalars.append((parameter, scalar))
        if scalars:
            self._declare_scalars(scalars)
        Statements(self.expressions, self.threads, parameters).emit(function.body)
        self.code.leave()

    def _scalar_type(self, parameter: Any) -> Dtype | None:
        name = str(getattr(parameter.ty, "dtype", "handle"))
        if type(parameter.ty).__name__ != "PrimType" or name.startswith("handle"):
            return None
        dtype = parse_dtype(name)
        if dtype is None or dtype.bits < 32 or dtype.lanes > 1:
            raise self.expressions.unknown(f"arguments of type {name} (only those of 32 and 64 bits)")
        return dtype

    def _declare_scalars(self, scalars: list[tuple[Any, Dtype]]) -> None:
        """One block of push constants. A 64-bit integer is read as two words, for which no 64-bit unit is needed."""
        module, code, values = self.module, self.code, self.values
        stored = [UINT32.of(2) if d.is_integer and d.bits == 64 else d for _, d in scalars]
        block = module.declare(Op.TYPE_STRUCT, None, *(module.type(d) for d in stored), key=("push",))
        module.decorate(block, Decoration.BLOCK)
        for member, (_, dtype) in enumerate(scalars):
            offset = -(-self.push_bytes // dtype.size) * dtype.size
            module.decorate_member(block, member, offset)
            self.push_bytes = offset + dtype.size
        pointer = module.pointer(Storage.PUSH_CONSTANT, block)
        variable = module.declare(Op.VARIABLE, pointer, Literal(Storage.PUSH_CONSTANT))
        for member, ((parameter, dtype), kind) in enumerate(zip(scalars, stored, strict=True)):
            place = module.pointer(Storage.PUSH_CONSTANT, module.type(kind))
            member_id = module.constant(UINT32, member)
            loaded = code.value(Op.LOAD, module.type(kind), code.pure(Op.ACCESS_CHAIN, place, variable, member_id))
            if kind.lanes == 2:
                words = values.lanes(Value(kind, (loaded,)))
                self.expressions.indexing.bind_low(parameter, words[0], fits=False)
                loaded = code.pure(Op.BITCAST, module.type(UINT64), loaded)
            self.expressions.variables[parameter] = Value(dtype, (loaded,))

    def assemble(self) -> tuple[bytes, int]:
        """The module's bytes and the features that it needs."""
        self.memory.annotate()
        return assemble(self.name, self.module, self.code, self.threads)
