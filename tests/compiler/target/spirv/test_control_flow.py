"""Loops, branches and guarded expressions, against the same in Python."""
# mypy: ignore-errors

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import cell, launch

pytestmark = pytest.mark.usefixtures("vulkan_device")

THREADS = 64


def outcome(body, *, dtype: str = "int32", extra: int = 0) -> np.ndarray:
    """What `body(thread, a)` leaves in each thread's number; `a` holds 0, 1, 2, ..."""
    with kernel("flow") as k:
        limit = k.scalar("limit", "int32")
        a, b = k.input("a", (THREADS,), dtype), k.input("b", (THREADS,), dtype)
        with k.body(), launch([1], THREADS) as (_, (thread,)):
            value = cell(0, dtype)
            body(thread, a, value, limit)
            T.buffer_store(b, value[0], [thread])
    a, b = np.arange(THREADS).astype(dtype), np.zeros(THREADS, dtype)
    compiled({"kernel": k.function}).calls["kernel"](extra, a, b)
    return b


def add(cell_, amount) -> None:
    T.buffer_store(cell_, cell_[0] + amount, [0])


def test_nested_loops_of_dynamic_length() -> None:
    def body(thread, a, value, limit):
        with T.serial(0, thread) as i, T.serial(i, limit) as j:
            add(value, i * j)

    expected = [sum(i * j for i in range(t) for j in range(i, i + max(9 - i, 0))) for t in range(THREADS)]
    np.testing.assert_array_equal(outcome(body, extra=9), expected)


def test_while_loops() -> None:
    def body(thread, a, value, limit):
        rest = cell(0, "int32")
        T.buffer_store(rest, thread + 1, [0])
        with T.While(rest[0] != 1):
            odd = T.Select(T.bitwise_and(rest[0], 1) == 1, rest[0] * 3 + 1, T.shift_right(rest[0], T.int32(1)))
            T.buffer_store(rest, odd, [0])
            add(value, 1)

    def steps(n: int) -> int:
        return 0 if n == 1 else 1 + steps(3 * n + 1 if n & 1 else n // 2)

    np.testing.assert_array_equal(outcome(body), [steps(t + 1) for t in range(THREADS)])


def test_branches_with_and_without_else() -> None:
    def body(thread, a, value, limit):
        with T.If(thread < 20):
            with T.Then():
                with T.If(thread < 10), T.Then():
                    add(value, 5)
                add(value, 1)
            with T.Else(), T.If(thread > 40):
                with T.Then():
                    add(value, 7)
                with T.Else():
                    add(value, 9)

    expected = [6 if t < 10 else 1 if t < 20 else 7 if t > 40 else 9 for t in range(THREADS)]
    np.testing.assert_array_equal(outcome(body), expected)


def test_a_guarded_load_does_not_happen() -> None:
    def body(thread, a, value, limit):
        add(value, T.if_then_else(thread < 32, a[thread * 2], T.int32(-1)))
        with T.If(T.And(thread >= 32, a[thread - 32] > 3)), T.Then():
            add(value, 100)
        with T.If(T.Or(thread < 32, a[thread - 32] > 30)), T.Then():
            add(value, 1000)

    expected = [2 * t + 1000 if t < 32 else -1 + 100 * (t - 32 > 3) + 1000 * (t - 32 > 30) for t in range(THREADS)]
    np.testing.assert_array_equal(outcome(body), expected)


def test_loops_are_left_early() -> None:
    def body(thread, a, value, limit):
        with T.serial(0, 100) as i:
            with T.If(i == thread), T.Then():
                T.evaluate(T.break_loop())
            with T.If(T.bitwise_and(i, 1) == 0), T.Then():
                T.evaluate(T.continue_loop())
            add(value, i)

    np.testing.assert_array_equal(outcome(body), [sum(i for i in range(t) if i & 1) for t in range(THREADS)])


def test_threads_return_early() -> None:
    with kernel("returns") as k:
        b = k.input("b", (THREADS,), "int32")
        with k.body(), launch([1], THREADS) as (_, (thread,)):
            with T.If(thread > 9), T.Then():
                T.evaluate(T.thread_return())
            T.buffer_store(b, thread + 1, [thread])
    b = np.zeros(THREADS, "int32")
    compiled({"kernel": k.function}).calls["kernel"](b)
    np.testing.assert_array_equal(b, [t + 1 if t < 10 else 0 for t in range(THREADS)])


def test_grids_and_workgroups_of_three_axes() -> None:
    with kernel("axes") as k:
        n = k.scalar("n", "int64")
        b = k.input("b", (n, 3, 2, 4, 2, 8), "int32")
        with k.body(), launch([2, 3, n], [8, 2, 4]) as ((bx, by, bz), (tx, ty, tz)):
            digits = ((((bz * 10 + by) * 10 + bx) * 10 + tz) * 10 + ty) * 10 + tx
            T.buffer_store(b, digits, [bz, by, bx, tz, ty, tx])
    b = np.zeros((5, 3, 2, 4, 2, 8), "int32")
    compiled({"kernel": k.function}).calls["kernel"](5, b)
    expected = sum(index * 10 ** (5 - axis) for axis, index in enumerate(np.indices(b.shape)))
    np.testing.assert_array_equal(b, expected)


def test_random_expressions_are_numpys() -> None:
    """Trees of operators on int32, all in one kernel."""
    rng = np.random.default_rng(6)
    operators = [
        (lambda a, b: a + b, lambda a, b: a + b),
        (lambda a, b: a - b, lambda a, b: a - b),
        (lambda a, b: a * b, lambda a, b: a * b),
        (T.min, np.minimum),
        (T.max, np.maximum),
        (lambda a, b: a & b, lambda a, b: a & b),
        (lambda a, b: a ^ b, lambda a, b: a ^ b),
        (lambda a, b: T.floordiv(a, b | 4), lambda a, b: a // (b | 4)),
        (lambda a, b: T.truncmod(a, b | 8), lambda a, b: np.fmod(a, b | 8)),
        (lambda a, b: T.Select(a < b, b - a, a), lambda a, b: np.where(a < b, b - a, a)),
        (
            lambda a, b: T.if_then_else(a == b, a, T.shift_right(b, T.int32(3))),
            lambda a, b: np.where(a == b, a, b >> 3),
        ),
    ]

    def tree(depth: int, leaves):
        """A random tree, as (emitted, numpy's)."""
        if depth == 0:
            return leaves[rng.integers(len(leaves))]
        emitted, reference = operators[rng.integers(len(operators))]
        (a, x), (b, y) = tree(depth - 1, leaves), tree(depth - 1, leaves)
        return emitted(a, b), reference(x, y)

    values = rng.integers(-1000, 1000, (2, THREADS), np.int32)
    references = []
    with kernel("trees") as k:
        a, b = k.input("a", (2, THREADS), "int32"), k.input("b", (40, THREADS), "int32")
        with k.body(), launch([1], THREADS) as (_, (thread,)):
            leaves = [(a[0, thread], values[0]), (a[1, thread], values[1]), (thread, np.arange(THREADS, dtype="int32")),
                      (T.int32(7), np.int32(7))]  # fmt: skip
            for row in range(40):
                with np.errstate(over="ignore"):
                    emitted, reference = tree(3, leaves)
                references.append(np.broadcast_to(reference, THREADS))
                T.buffer_store(b, emitted, [row, thread])
    result = np.zeros((40, THREADS), "int32")
    compiled({"kernel": k.function}).calls["kernel"](values, result)
    np.testing.assert_array_equal(result, references)
