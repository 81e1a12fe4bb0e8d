"""Which kernel does what: from (operation, storage of the weights, instruction set) to a PrimFunc.

weights                      x86, NEON dotprod        other instruction sets, or activation_bits = 32
codes in groups              integer_matmul           float_matmul
plain numbers                float_matmul             float_matmul
"""
# mypy: ignore-errors

from dataclasses import dataclass, field

from tvm import tirx

from ...target import CompileTarget
from . import float_matmul, integer_matmul, layers
from .dot import IntegerDot, integer_dot
from .matmul import Matmul
from .storage import DenseStorage

_SPECIFICATION = "mlc.specification"  # attribute of a PrimFunc: which entry of the table it is


@dataclass(frozen=True)
class RMSNorm:
    """x [batch, seq, features] -> x / sqrt(mean(x^2) + eps) * weight."""

    features: int
    eps: float


@dataclass(frozen=True)
class SwiGLU:
    """[batch, seq, 2 x features] (gate | up) -> silu(gate) * up."""

    features: int


Operation = Matmul | RMSNorm | SwiGLU


@dataclass(frozen=True)
class Specification:
    """What a kernel computes. `single`: for exactly one row of x, where others take any number."""

    operation: Operation
    single: bool


@dataclass
class KernelTable:
    """Makes the kernels of one library, each once, and knows what each of them computes."""

    target: CompileTarget
    activation_bits: int = 16  # 32: float32 arithmetic
    _specifications: list[Specification] = field(default_factory=list)
    _functions: dict[Specification, tirx.PrimFunc] = field(default_factory=dict)

    def function(self, operation: Operation, *, single: bool) -> tirx.PrimFunc:
        """The kernel of an operation."""
        specification = Specification(operation, single)
        if specification not in self._functions:
            function = self._make(operation, single).with_attr(_SPECIFICATION, len(self._specifications))
            self._specifications.append(specification)
            self._functions[specification] = function
        return self._functions[specification]

    def specification(self, function: tirx.PrimFunc) -> Specification | None:
        """What a PrimFunc computes, if it came from this table."""
        number = function.attrs.get(_SPECIFICATION) if function.attrs else None
        return None if number is None else self._specifications[int(number)]

    def name(self, operation: Operation, *, single: bool) -> str:
        """The name of a kernel in dumps and profiles."""
        rows = "gemv" if single else "gemm"
        if isinstance(operation, Matmul):
            parts = ["norm"] * (operation.norm_eps is not None) + [
                f"matmul_{operation.out_features}x{operation.in_features}"
            ]
            parts += ["swiglu"] * operation.swiglu + ["add"] * operation.residual
            return "_".join([*parts, rows])
        return f"{type(operation).__name__.lower()}_{operation.features}"

    def fuses(self, operation: Matmul) -> bool:
        """Whether the kernel of a multiplication can norm its input and activate its output."""
        return self._dot(operation, 16, single=True) is not None

    def _dot(self, operation: Matmul, activation_bits: int, *, single: bool) -> IntegerDot | None:
        if self.activation_bits > 16 or isinstance(operation.storage, DenseStorage):
            return None
        return integer_dot(self.target, operation.storage.bits, activation_bits, single=single)

    def _make(self, operation: Operation, single: bool) -> tirx.PrimFunc:
        if isinstance(operation, RMSNorm):
            return layers.rms_norm(operation.features, operation.eps, single=single)
        if isinstance(operation, SwiGLU):
            return layers.silu_mul(operation.features, single=single)
        activation_bits = 16 if single else self.activation_bits  # memory is the limit of one row: 16 bits cost nothing
        dot = self._dot(operation, activation_bits, single=single)
        if dot is None:
            return (
                float_matmul.gemv(operation)
                if single
                else float_matmul.gemm(
                    operation, **float_matmul.tiling(self.target.lanes, self.target.vector_registers)
                )
            )
        return (integer_matmul.gemv if single else integer_matmul.gemm)(operation, dot, activation_bits)
