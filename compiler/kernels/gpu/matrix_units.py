"""Matrix units of devices: products of 16 x 16 matrices that lie spread over the lanes of a warp.

A fragment is such a matrix: of the left factor (rows, k), of the right one (k, columns), or of float32 sums (rows,
columns). All lanes of a warp come to each operation together. Which lane has which element only the units know.
"""
# mypy: ignore-errors

from abc import ABC, abstractmethod

from tvm.tirx.script.builder import ir as T

FRAGMENT = 16  # rows and columns
_ELEMENTS = FRAGMENT * FRAGMENT


class MatrixUnits(ABC):
    """Operations on fragments, each of which is a number in an array of them."""

    lanes = 32  # of a warp
    vector = 8  # float16 that a thread reads at once
    step = 64  # columns of x and weights that lie in shared memory at a time
    own_memory = False  # sums need shared memory of their own: it is of one type
    turned = False  # right factors lie in shared memory column after column

    def warp(self, thread):
        """The number of the warp that computes here, int32."""
        return T.floordiv(thread, self.lanes)

    @abstractmethod
    def sums(self, count: int):
        """An array of fragments of sums, all zero."""

    @abstractmethod
    def left(self, count: int):
        """An array of fragments of left factors, float16."""

    @abstractmethod
    def right(self, count: int):
        """An array of fragments of right factors, float16."""

    @abstractmethod
    def load_left(self, fragments, i: int, source, start, stride: int) -> None:
        """Read fragment i from float16 in shared memory: rows follow one another at a distance of `stride`."""

    @abstractmethod
    def load_right(self, fragments, i: int, source, start, stride: int) -> None:
        """The same for a right factor; if `turned`, its columns follow one another at a distance of `stride`."""

    @abstractmethod
    def multiply(self, sums, n: int, left, i: int, right, j: int) -> None:
        """Add the product of fragments i and j to the sums n."""

    def store(self, sums, n: int, target, start) -> None:
        """Write the sums n to shared memory, float32, row after row. For units that have no `places`."""
        raise NotImplementedError

    def places(self, n: int):
        """[(index in the array, row, column)] of those of the sums n that this lane has; none where nobody knows."""
        return []


class Wmma(MatrixUnits):
    """CUDA's tensor cores."""

    def sums(self, count: int):
        sums = _fragments("wmma.accumulator", count, "float32")
        for n in range(count):
            T.evaluate(T.tvm_fill_fragment(sums.data, *_SHAPE, n, T.float32(0)))
        return sums

    def left(self, count: int):
        return _fragments("wmma.matrix_a", count, "float16")

    def right(self, count: int):
        return _fragments("wmma.matrix_b", count, "float16")

    def load_left(self, fragments, i: int, source, start, stride: int) -> None:
        place = source.access_ptr("r", offset=start, extent=FRAGMENT * stride)
        T.evaluate(T.tvm_load_matrix_sync(fragments.data, *_SHAPE, i, place, stride, "row_major"))

    load_right = load_left

    def multiply(self, sums, n: int, left, i: int, right, j: int) -> None:
        sums = sums.data, n
        T.evaluate(T.tvm_mma_sync(*sums, left.data, i, right.data, j, *sums))

    def store(self, sums, n: int, target, start) -> None:
        place = T.address_of(target[start])
        T.evaluate(T.tvm_store_matrix_sync(sums.data, *_SHAPE, n, place, FRAGMENT, "row_major"))


class Cooperative(Wmma):
    """Vulkan's cooperative matrices, which our emitter makes of the same fragments. Which threads are a subgroup is the
    device's choice, and shared memory has one type."""

    step, own_memory = 32, True

    def warp(self, thread):
        return T.call_pure_extern("int32", "subgroup_id")


class Simdgroup(MatrixUnits):
    """Metal's SIMD-group matrices, of 8 x 8: a fragment is four of them, row after row."""

    vector = 4  # the widest that Metal has

    def sums(self, count: int):
        sums = _fragments("metal.simdgroup", count, "float32")
        for i in range(_SQUARES * count):
            T.evaluate(T.metal.make_filled_simdgroup_matrix(sums.data, i, T.float32(0)))
        return sums

    def left(self, count: int):
        return _fragments("metal.simdgroup", count, "float16")

    right = left

    def load_left(self, fragments, i: int, source, start, stride: int) -> None:
        for square, row, column in _squares(i):
            place = source.access_ptr("r", offset=start + (row * stride + column))
            T.evaluate(T.metal.simdgroup_load(fragments.data, square, place, stride))

    load_right = load_left

    def multiply(self, sums, n: int, left, i: int, right, j: int) -> None:
        for k in range(2):
            for row in range(2):
                for column in range(2):
                    to = sums.data, _SQUARES * n + 2 * row + column
                    factors = left.data, _SQUARES * i + 2 * row + k, right.data, _SQUARES * j + 2 * k + column
                    T.evaluate(T.metal.simdgroup_multiply_accumulate(*to, *factors, *to))

    def store(self, sums, n: int, target, start) -> None:
        for square, row, column in _squares(n):
            place = T.address_of(target[start + (row * FRAGMENT + column)])
            T.evaluate(T.metal.simdgroup_store(sums.data, square, place, FRAGMENT))


_SHAPE = (FRAGMENT, FRAGMENT, FRAGMENT)
_SQUARES = 4


def _fragments(scope: str, count: int, dtype: str):
    """Operands of the matrix units, spread over the lanes of a warp."""
    return T.alloc_buffer((count * _ELEMENTS,), dtype, scope=scope)


def _squares(i: int) -> list[tuple[int, int, int]]:
    """(number, row, column) of the squares of a fragment."""
    return [(_SQUARES * i + s, s // 2 * 8, s % 2 * 8) for s in range(_SQUARES)]
