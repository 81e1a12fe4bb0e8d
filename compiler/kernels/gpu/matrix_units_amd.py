"""AMD's matrix units: instructions whose operands lie in the registers of a wavefront, a few numbers in each lane.

    left [row, k], right [k, column]    a lane has 4 (MFMA) or 16 (WMMA) k of the row or column lane % 16
    sums [row, column]                  a lane has 4 (MFMA) or 8 (WMMA) rows of the column lane % 16

Layouts: AMD, "Matrix Instruction Calculator"; "AMD Instinct MI300 Instruction Set Architecture", 7.1.4; "RDNA3
Instruction Set Architecture", 7.9.
"""
# mypy: ignore-errors

from abc import abstractmethod

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .launch import private
from .matrix_units import FRAGMENT, MatrixUnits


class AmdUnits(MatrixUnits):
    """What both kinds share. Indices are numbers or expressions."""

    turned = True  # the k of a column are read together
    factors: int  # float16 of a lane in a fragment
    results: int  # float32 of a lane in a fragment

    @staticmethod
    @abstractmethod
    def first_k(lane):
        """The k of a lane's first factor; the others follow. Its row or column is lane % 16."""

    @staticmethod
    @abstractmethod
    def row(lane, n: int):
        """The row of a lane's sum n. Its column is lane % 16."""

    @abstractmethod
    def product(self, left, right, sums):
        """The instruction."""

    def __init__(self) -> None:
        self.lane = None  # of this thread

    def warp(self, thread):
        self.lane = T.floormod(thread, self.lanes)
        return super().warp(thread)

    def sums(self, count: int):
        sums = private(count * self.results)
        for n in range(count):
            T.buffer_store(sums, T.broadcast(T.float32(0), self.results), [self._sums(n)])
        return sums

    def left(self, count: int):
        return private(count * self.factors, "float16")

    right = left

    def load_left(self, fragments, i: int, source, start, stride: int) -> None:
        place = start + (T.floormod(self.lane, FRAGMENT) * stride + self.first_k(self.lane))
        wide = min(self.factors, self.vector)
        for part in range(0, self.factors, wide):
            value = source[T.ramp(place + part, 1, wide)]
            T.buffer_store(fragments, value, [T.ramp(i * self.factors + part, 1, wide)])

    load_right = load_left

    def multiply(self, sums, n: int, left, i: int, right, j: int) -> None:
        product = self.product(left[self._factors(i)], right[self._factors(j)], sums[self._sums(n)])
        T.buffer_store(sums, product, [self._sums(n)])

    def places(self, n: int):
        column = T.floormod(self.lane, FRAGMENT)
        return [(n * self.results + r, self.row(self.lane, r), column) for r in range(self.results)]

    def _factors(self, i: int):
        return T.ramp(i * self.factors, 1, self.factors)

    def _sums(self, n: int):
        return T.ramp(n * self.results, 1, self.results)


class Mfma(AmdUnits):
    """CDNA's: wavefronts of 64 lanes."""

    lanes, factors, results = 64, 4, 4

    @staticmethod
    def first_k(lane):
        return lane // FRAGMENT * 4

    @staticmethod
    def row(lane, n: int):
        return lane // FRAGMENT * 4 + n

    def product(self, left, right, sums):
        none = [tirx.const(0, "int32")] * 3  # of the instruction's rearrangements
        name = "llvm.amdgcn.mfma.f32.16x16x16f16"
        return T.call_llvm_pure_intrin(name, left, right, sums, *none, dtype="float32x4")


class WmmaRdna(AmdUnits):
    """RDNA3's: wavefronts of 32 lanes, whose second half has the same factors as the first."""

    lanes, factors, results = 32, 16, 8

    @staticmethod
    def first_k(lane):
        return 0

    @staticmethod
    def row(lane, n: int):
        return 2 * n + lane // FRAGMENT

    def product(self, left, right, sums):
        return T.call_llvm_pure_intrin("llvm.amdgcn.wmma.f32.16x16x16.f16", left, right, sums, dtype="float32x8")
