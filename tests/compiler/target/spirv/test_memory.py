"""Buffers, shared memory and arrays of a thread: what is read and written, and how wide."""
# mypy: ignore-errors

import re

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, disassembled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import barrier, launch, private, shared

pytestmark = pytest.mark.usefixtures("vulkan_device")

INT64, STORAGE16, STORAGE8 = 1 << 2, 1 << 1, 1 << 3


def ramp(first, lanes: int = 4):
    return T.ramp(first, 1, lanes)


def run(function, *arguments) -> None:
    compiled({"kernel": function}).calls["kernel"](*arguments)


def loads(text: str) -> list[str]:
    """What each load of a storage buffer yields: "float32", "float32x4", ..."""
    types, names, pointers = {}, {}, {}
    for result, op, rest in re.findall(r"(%\d+) = (Op\w+) ?(.*)", text):
        operands = rest.split()
        if op in ("OpTypeInt", "OpTypeFloat"):
            names[result] = ("int" if op == "OpTypeInt" else "float") + operands[0]
        elif op == "OpTypeVector":
            names[result] = f"{names[operands[0]]}x{operands[1]}"
        elif op == "OpTypePointer":
            types[result] = operands[0]
        elif op in ("OpAccessChain", "OpVariable"):
            pointers[result] = types[operands[0]]
    found = re.findall(r"= OpLoad (%\d+) (%\d+)", text)
    return [names[kind] for kind, pointer in found if pointers[pointer] == "StorageBuffer"]


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (lambda n, block, thread: ramp(thread * 4), ["float32x4"]),
        (lambda n, block, thread: ramp((block * 32 + thread) * 4), ["float32x4"]),
        (lambda n, block, thread: ramp(block * n * 4 + thread * 4 + 8), ["float32x4"]),
        (lambda n, block, thread: ramp((thread & 12) + block * 16), ["float32x4"]),
        (lambda n, block, thread: ramp((thread << 2) + 4), ["float32x4"]),
        (lambda n, block, thread: ramp(thread * 2), ["float32x2"] * 2),
        (lambda n, block, thread: ramp(thread * 4 + 2), ["float32x2"] * 2),
        (lambda n, block, thread: ramp(thread * 8, 8), ["float32x4"] * 2),
        (lambda n, block, thread: ramp(thread * n), ["float32"] * 4),
        (lambda n, block, thread: ramp(thread * 4 + 1), ["float32"] * 4),
        (lambda n, block, thread: ramp(thread * 3, 3), ["float32"] * 3),
        (lambda n, block, thread: T.ramp(thread * 4, 2, 4), ["float32"] * 4),
    ],
)
def test_neighbours_are_one_load_where_they_certainly_lie_aligned(index, expected: list[str]) -> None:
    with kernel("wide") as k:
        n = k.scalar("n", "int32")
        a, b = k.input("a", (4096,), "float32"), k.input("b", (4096,), "float32")
        with k.body(), launch([4], 32) as ((block,), (thread,)):
            value = a[index(n, block, thread)]
            lanes = int(str(value.ty.dtype).partition("x")[2])
            T.buffer_store(b, value, [ramp((block * 32 + thread) * lanes, lanes)])
    text, _ = disassembled(k.function)
    assert loads(text) == expected
    assert "NonWritable" in text
    a, b = np.arange(4096, dtype="float32"), np.zeros(4096, "float32")
    run(k.function, 5, a, b)
    for block in range(4):
        for thread in range(32):
            place = index(5, block, thread)
            first, stride, count = (int(x) for x in (place.base, place.stride, place.lanes))
            at = (block * 32 + thread) * count
            np.testing.assert_array_equal(b[at : at + count], a[first : first + stride * count : stride])


def test_one_buffer_is_read_wide_and_narrow() -> None:
    with kernel("views") as k:
        a, b = k.input("a", (68,), "float32"), k.input("b", (16, 4), "float32")
        with k.body(), launch([1], 16) as (_, (thread,)):
            T.buffer_store(b, a[ramp(thread * 4)] + T.broadcast(a[thread + 1], 4), [thread, ramp(0)])
    assert sorted(loads(disassembled(k.function)[0])) == ["float32", "float32x4"]
    a, b = np.random.default_rng(0).standard_normal(68).astype("float32"), np.zeros((16, 4), "float32")
    run(k.function, a, b)
    np.testing.assert_array_equal(b, a[:64].reshape(16, 4) + a[1:17, None])


def test_float16_in_memory_needs_no_float16_arithmetic_and_dynamic_shapes_no_int64() -> None:
    with kernel("halves") as k:
        n = k.scalar("n", "int64")
        a, b = k.input("a", (n, 8), "float16"), k.input("b", (n, 8), "float16")
        with k.body(), launch([n], 2) as ((block,), (thread,)):
            value = T.cast(a[block, ramp(thread * 4)], "float32x4") * T.broadcast(T.float32(3), 4)
            T.buffer_store(b, T.cast(value, "float16x4"), [block, ramp(thread * 4)])
    text, launched = disassembled(k.function)
    assert launched.features == STORAGE16
    assert loads(text) == ["float16x4"]
    a, b = np.random.default_rng(0).standard_normal((7, 8)).astype("float16"), np.zeros((7, 8), "float16")
    run(k.function, 7, a, b)
    np.testing.assert_array_equal(b, (a.astype("float32") * 3).astype("float16"))


@pytest.mark.parametrize(("dtype", "features"), [("float16", STORAGE16), ("int8", STORAGE8), ("uint8", STORAGE8)])
def test_small_numbers_pass_through_a_threads_own_arrays_without_arithmetic_on_them(dtype: str, features: int) -> None:
    with kernel("registers") as k:
        a, b = k.input("a", (32, 8), dtype), k.input("b", (32, 8), "float32")
        c = k.input("c", (32, 8), dtype)
        with k.body(), launch([1], 32) as (_, (thread,)):
            held = private(8, dtype)
            T.buffer_store(held, a[thread, ramp(0, 8)], [ramp(0, 8)])
            with T.serial(0, 8) as i:
                T.buffer_store(b, T.cast(held[7 - i], "float32"), [thread, i])
            shifted = T.cast(a[thread, ramp(1)], "float32x4") + T.broadcast(T.float32(0.0625), 4)
            T.buffer_store(held, T.cast(shifted, f"{dtype}x4"), [ramp(0)])
            T.buffer_store(c, held[ramp(0, 8)], [thread, ramp(0, 8)])
    assert disassembled(k.function)[1].features == features
    a = np.random.default_rng(0).integers(0, 120, (32, 8)).astype(dtype)
    b, c = np.zeros((32, 8), "float32"), np.zeros((32, 8), dtype)
    run(k.function, a, b, c)
    np.testing.assert_array_equal(b, a[:, ::-1].astype("float32"))
    expected = a.copy()
    expected[:, :4] = (a[:, 1:5].astype("float32") + 0.0625).astype(dtype)
    np.testing.assert_array_equal(c, expected)


def test_indices_of_64_bits_are_shifted_and_divided_as_they_should() -> None:
    rows = {
        "in 32 bits": lambda n, x: (
            (T.cast(x, "int64") >> T.int64(2)) + T.truncdiv(T.cast(x - 8, "int64"), T.int64(-3)) + 9
        ),
        "in 64 bits": lambda n, x: (n * T.cast(x, "int64")) >> T.int64(35),
    }
    with kernel("places") as k:
        n, b = k.scalar("n", "int64"), k.input("b", (2, 32), "int32")
        with k.body(), launch([1], 16) as (_, (thread,)):
            for row, place in enumerate(rows.values()):
                T.buffer_store(b, thread + 1, [row, place(n, thread)])
    b, expected = np.zeros((2, 32), "int32"), np.zeros((2, 32), "int32")
    run(k.function, 1 << 36, b)
    for x in range(16):
        expected[0, (x >> 2) + int((x - 8) / -3) + 9] = x + 1
        expected[1, 2 * x] = x + 1
    # where several wrote to one place, any of them may have come last
    np.testing.assert_array_equal(b > 0, expected > 0)
    np.testing.assert_array_equal(b[1], expected[1])


def test_64_bit_conditions_are_calculated_in_64_bits() -> None:
    with kernel("long") as k:
        n, limit = k.scalar("n", "int64"), k.scalar("limit", "int64")
        a = k.input("a", (n,), "int32")
        with k.body(), launch([n], 1) as ((block,), _):
            T.buffer_store(a, T.Select(T.cast(block, "int64") * T.int64(1 << 33) < limit, 1, 0), [block])
    launched = disassembled(k.function)[1]
    assert launched.features == INT64
    a = np.zeros(8, "int32")
    run(k.function, 8, 3 << 33, a)
    np.testing.assert_array_equal(a, [1, 1, 1, 0, 0, 0, 0, 0])


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "uint32"])
def test_shared_memory_carries_vectors_between_threads(dtype: str) -> None:
    """Written as vectors, read as single numbers and as vectors that lie across two elements."""
    with kernel("shared") as k:
        a = k.input("a", (3, 128), dtype)
        reversed_, moved = k.input("reversed", (3, 128), dtype), k.input("moved", (3, 124), dtype)
        with k.body(), launch([3], 32) as ((block,), (thread,)):
            staged = shared([128], dtype)
            T.buffer_store(staged, a[block, ramp(thread * 4)], [ramp(thread * 4)])
            barrier()
            with T.serial(0, 4) as i:
                T.buffer_store(reversed_, staged[127 - (thread * 4 + i)], [block, thread * 4 + i])
            with T.If(thread < 31), T.Then():
                T.buffer_store(moved, staged[ramp(thread * 4 + 1)], [block, ramp(thread * 4)])
    a = np.random.default_rng(1).integers(0, 100, (3, 128)).astype(dtype)
    backwards, moved = np.zeros_like(a), np.zeros((3, 124), dtype)
    run(k.function, a, backwards, moved)
    np.testing.assert_array_equal(backwards, a[:, ::-1])
    np.testing.assert_array_equal(moved, a[:, 1:125])


def test_arrays_of_a_thread_hold_numbers_vectors_and_truths() -> None:
    with kernel("arrays") as k:
        a, b = k.input("a", (8, 16), "float32"), k.input("b", (8, 16), "float32")
        with k.body(), launch([1], 8) as (_, (thread,)):
            numbers, vectors = private(16), T.alloc_buffer((2,), "float32x8")
            signs = T.alloc_buffer((16,), "bool", scope="local")
            with T.serial(0, 16) as i:
                T.buffer_store(numbers, a[thread, i], [i])
                T.buffer_store(signs, a[thread, i] < T.float32(0), [i])
            with T.serial(0, 2) as i:
                T.buffer_store(vectors, numbers[T.ramp(i * 8, 1, 8)] * T.broadcast(T.float32(2), 8), [1 - i])
            with T.serial(0, 2) as i:
                T.buffer_store(b, vectors[i], [thread, T.ramp(i * 8, 1, 8)])
            with T.serial(0, 16) as i, T.If(signs[15 - i]), T.Then():
                T.buffer_store(b, T.float32(-1), [thread, i])
    a, b = np.random.default_rng(2).standard_normal((8, 16)).astype("float32"), np.zeros((8, 16), "float32")
    run(k.function, a, b)
    expected = np.concatenate([a[:, 8:], a[:, :8]], axis=1) * 2
    expected[a[:, ::-1] < 0] = -1
    np.testing.assert_array_equal(b, expected)


def test_truths_are_bytes_in_buffers() -> None:
    with kernel("truths") as k:
        a, b = k.input("a", (16,), "bool"), k.input("b", (16,), "bool")
        with k.body(), launch([1], 16) as (_, (thread,)):
            T.buffer_store(b, T.Not(a[thread]), [thread])
    a, b = np.random.default_rng(3).random(16) < 0.5, np.zeros(16, "bool")
    run(k.function, a, b)
    np.testing.assert_array_equal(b, ~a)


def test_atomic_additions_of_many_threads_all_count() -> None:
    with kernel("atomic") as k:
        total, groups = k.input("total", (1,), "int32"), k.input("groups", (8,), "int32")
        with k.body(), launch([8], 64) as ((block,), (thread,)):
            count = shared([1], "int32")
            with T.If(thread == 0), T.Then():
                T.buffer_store(count, T.int32(0), [0])
            barrier()
            T.evaluate(T.call_intrin("int32", "tirx.atomic_add", T.address_of(count[0]), thread))
            T.evaluate(T.call_intrin("int32", "tirx.atomic_add", T.address_of(total[0]), thread))
            barrier()
            with T.If(thread == 0), T.Then():
                T.buffer_store(groups, count[0], [block])
    total, groups = np.zeros(1, "int32"), np.zeros(8, "int32")
    run(k.function, total, groups)
    assert total[0] == 8 * 2016
    np.testing.assert_array_equal(groups, np.full(8, 2016))


def test_scalars_of_every_size_arrive() -> None:
    kinds = {"a": "int32", "b": "int64", "c": "float32", "d": "uint32", "e": "int64"}
    with kernel("scalars") as k:
        scalars = {name: k.scalar(name, dtype) for name, dtype in kinds.items()}
        integers, numbers = k.input("integers", (4,), "int64"), k.input("numbers", (1,), "float32")
        with k.body(), launch([1], 1):
            for i, name in enumerate("abde"):
                T.buffer_store(integers, T.cast(scalars[name], "int64"), [i])
            T.buffer_store(numbers, scalars["c"], [0])
    integers, numbers = np.zeros(4, "int64"), np.zeros(1, "float32")
    run(k.function, -5, -(1 << 40), 2.5, 4_000_000_000, 1 << 50, integers, numbers)
    np.testing.assert_array_equal(integers, [-5, -(1 << 40), 4_000_000_000, 1 << 50])
    assert numbers[0] == 2.5
