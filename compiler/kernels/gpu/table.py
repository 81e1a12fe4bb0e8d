"""Which kernel does what on devices: the number of rows of x decides, weights of all storages are read alike.

rows of x     kernel
1             matmul_rows, scales meet sums
2 to 16       matmul_rows, 4 or 8 rows at a time share each weight that is read
more          matmul_units where there are matrix units, else matmul_tiles
"""
# mypy: ignore-errors

from collections.abc import Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ...target.target import GpuTraits
from ..builder import kernel
from ..operations import Arguments, Matmul, Operation, RMSNorm, SwiGLU
from ..storage import Storage
from ..table import KernelTable
from . import layers
from .matmul_rows import multiply_rows
from .matmul_tiles import multiply_tiles
from .matmul_units import HalfRows, multiply_units, unit_rows
from .matrix_units import Cooperative, MatrixUnits, Simdgroup, Wmma
from .matrix_units_amd import Mfma, WmmaRdna

_FEW_ROWS = {1: 1, 4: 4, 16: 8}  # up to so many rows of x: matmul_rows, with so many for each workgroup

_MATRIX_UNITS = {"wmma": Wmma, "cooperative": Cooperative, "simdgroup": Simdgroup, "mfma": Mfma, "wmma_rdna": WmmaRdna}
_MANY_ROWS = 1024  # up to here small workgroups, of which there are more


class GpuKernels(KernelTable):
    """The kernels of devices that run workgroups of threads."""

    @property
    def traits(self) -> GpuTraits:
        """What the kernels may ask of the device."""
        return self.target.gpu

    def fuses(self, operation: Matmul) -> bool:
        return True

    def _make(self, operation: Operation, single: bool) -> tirx.PrimFunc:
        if isinstance(operation, RMSNorm):
            return layers.rms_norm(operation.features, operation.eps, self.traits, single=single)
        if isinstance(operation, SwiGLU):
            return layers.silu_mul(operation.features, single=single)
        if single:
            return matmul_single(operation, self.traits)
        return matmul(operation, self.traits, units=self.activation_bits <= 16)

    def _embedding(self, pieces: tuple[int, ...], columns: int, storage: Storage) -> tirx.PrimFunc:
        return layers.embedding(pieces, columns, storage)

    def _last_row(self, columns: int) -> tirx.PrimFunc:
        return layers.last_row(columns)


def matrix_units(traits: GpuTraits) -> MatrixUnits | None:
    """Those of a device; None where it has none."""
    return _MATRIX_UNITS[traits.matrix]() if traits.matrix else None


def matmul_single(op: Matmul, traits: GpuTraits) -> tirx.PrimFunc:
    """x [1, 1, in_features] -> y."""
    with kernel("gemv") as k:
        arguments = op.declare(k, 1, 1)
        with k.body():
            for piece, its_arguments in op.split(arguments):
                multiply_rows(piece, its_arguments, 1, 1, traits)
    return k.function


def matmul(op: Matmul, traits: GpuTraits, *, units: bool) -> tirx.PrimFunc:
    """x [batch, seq, in_features] -> y: the host chooses the launch by the number of rows. `units`: many rows are
    multiplied by matrix units, which round inputs to float16, where the device has some."""
    matrix = matrix_units(traits) if units else None
    with kernel("gemm") as k:
        batch, seq = T.int64(), T.int64()
        arguments = op.declare(k, batch, seq)
        count = T.cast(batch * seq, "int32")
        pieces = list(op.split(arguments))
        with k.body():
            T.reads([])  # TVM cannot find out by itself what matrix units access
            T.writes([])
            least = 0
            for most, rows in _FEW_ROWS.items():
                with T.If(T.And(count > least, count <= most)), T.Then():
                    for piece, its_arguments in pieces:
                        multiply_rows(piece, its_arguments, count, rows, traits)
                least = most
            if matrix is None:
                with T.If(count > least), T.Then():
                    for piece, its_arguments in pieces:
                        multiply_tiles(piece, its_arguments, count, 4)
            else:
                sizes = unit_rows(traits, matrix)
                half_rows = HalfRows(op, batch * seq, max(sizes))
                with T.If(count > least), T.Then():
                    half_rows.write(op, arguments, count, traits)
                    for piece, its_arguments in pieces:
                        _multiply_units(piece, its_arguments, half_rows, count, sizes, matrix)
    return k.function


def _multiply_units(op: Matmul, a: Arguments, x: HalfRows, count, sizes: Sequence[int], matrix: MatrixUnits) -> None:
    """`multiply_units` by small workgroups where there are few of them, if there are two sizes."""
    if len(sizes) == 1:
        multiply_units(op, a, x, count, *sizes, matrix)
        return
    with T.If(count <= _MANY_ROWS):
        with T.Then():
            multiply_units(op, a, x, count, min(sizes), matrix)
        with T.Else():
            multiply_units(op, a, x, count, max(sizes), matrix)
