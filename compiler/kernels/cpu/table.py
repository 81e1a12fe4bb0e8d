"""Which kernel does what: from (operation, storage of the weights, instruction set) to a PrimFunc.

weights                      x86, NEON dotprod        other instruction sets, or activation_bits = 32
codes in groups              integer_matmul           float_matmul
plain numbers                float_matmul             float_matmul
"""
# mypy: ignore-errors

from tvm import tirx

from ..operations import Matmul, Operation, RMSNorm, SwiGLU
from ..storage import DenseStorage, Storage
from ..table import KernelTable
from . import float_matmul, integer_matmul, layers
from .dot import IntegerDot, integer_dot


class CpuKernels(KernelTable):
    """The kernels of the processor."""

    def fuses(self, operation: Matmul) -> bool:
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

    def _embedding(self, pieces: tuple[int, ...], columns: int, storage: Storage) -> tirx.PrimFunc:
        (rows,) = pieces
        return layers.embedding(rows, columns, storage)

    def _last_row(self, columns: int) -> tirx.PrimFunc:
        return layers.last_row(columns)
