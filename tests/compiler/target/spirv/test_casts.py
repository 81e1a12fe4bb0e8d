"""Casts between all types, reinterpreted bits and the taking apart of vectors, against numpy."""
# mypy: ignore-errors

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import launch

pytestmark = pytest.mark.usefixtures("vulkan_device")

COUNT = 96
TYPES = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "bool")
LANES = (1, 4, 8)


def vector(dtype: str, lanes: int) -> str:
    return dtype if lanes == 1 else f"{dtype}x{lanes}"


def numbers(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(2)
    if dtype == "bool":
        return rng.random(COUNT) < 0.5
    if dtype.startswith("float"):
        return rng.permutation(np.append(rng.uniform(-100, 100, COUNT - 4), [0.0, -0.0, 2.5, -1.0])).astype(dtype)
    limits = np.iinfo(dtype)
    edges = np.array([limits.min, limits.max, 0, 1], dtype)
    return np.append(edges, rng.integers(limits.min, limits.max, COUNT - 4, dtype, endpoint=True))


def casts(source: str):
    """A kernel that casts to every type, with every number of lanes."""
    with kernel("casts") as k:
        a = k.input("a", (COUNT,), source)
        outputs = [k.input(f"to_{dtype}", (len(LANES), COUNT), dtype) for dtype in TYPES]
        with k.body():
            for row, lanes in enumerate(LANES):
                with launch([1], COUNT // lanes) as (_, (thread,)):
                    place = thread if lanes == 1 else T.ramp(thread * lanes, 1, lanes)
                    for output, dtype in zip(outputs, TYPES, strict=True):
                        T.buffer_store(output, T.cast(a[place], vector(dtype, lanes)), [row, place])
    return k.function


@pytest.fixture(scope="module")
def cast_results() -> dict:
    kernels = compiled({source: casts(source) for source in TYPES})
    results = {}
    for source in TYPES:
        outputs = [np.zeros((len(LANES), COUNT), dtype) for dtype in TYPES]
        kernels.calls[source](numbers(source), *outputs)
        results[source] = dict(zip(TYPES, outputs, strict=True))
    return results


@pytest.mark.parametrize("target", TYPES)
@pytest.mark.parametrize("source", TYPES)
def test_casts_are_numpys(cast_results: dict, source: str, target: str) -> None:
    values = numbers(source)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = values.astype(target)
    defined = values >= 0 if target.startswith("uint") and source.startswith("float") else np.full(COUNT, True)
    if source.startswith("float") and target == "int8":
        defined = np.abs(values) < 128
    for row in cast_results[source][target]:
        np.testing.assert_array_equal(row[defined], expected[defined])


def test_float16_is_stored_to_the_nearest_half_to_even() -> None:
    with kernel("halves") as k:
        a, b = k.input("a", (COUNT,), "float32"), k.input("b", (COUNT,), "float16")
        with k.body(), launch([1], COUNT) as (_, (thread,)):
            T.buffer_store(b, T.cast(a[thread], "float16"), [thread])
    step = 2.0**-10  # of float16 between 1 and 2
    values = (1 + step * (np.arange(COUNT) / 4)).astype("float32")
    stored = np.zeros(COUNT, "float16")
    compiled({"kernel": k.function}).calls["kernel"](values, stored)
    np.testing.assert_array_equal(stored, values.astype("float16"))


BIT_TYPES = [
    ("float32", 1, "uint32", 1),
    ("uint32", 4, "float32", 4),
    ("float16", 1, "uint16", 1),
    ("float16", 4, "int16", 4),
    ("uint32", 1, "uint8", 4),
    ("uint32", 2, "int8", 8),
    ("uint32", 4, "uint8", 16),
    ("uint32", 4, "float16", 8),
    ("float16", 2, "uint32", 1),
    ("int8", 8, "uint32", 2),
    ("int8", 4, "float32", 1),
    ("uint64", 1, "float32", 2),
    ("uint16", 4, "uint64", 1),
    ("uint8", 2, "float16", 1),
]


def test_reinterpreted_bits_are_a_numpy_view() -> None:
    count = 64  # bytes
    with kernel("bits") as k:
        pairs = [
            (k.input(f"a{i}", (count // np.dtype(source).itemsize,), source),
             k.input(f"b{i}", (count // np.dtype(target).itemsize,), target))
            for i, (source, _, target, _) in enumerate(BIT_TYPES)
        ]  # fmt: skip
        with k.body():
            for (a, b), (source, lanes, target, made) in zip(pairs, BIT_TYPES, strict=True):
                threads = count // (np.dtype(source).itemsize * lanes)
                with launch([1], threads) as (_, (thread,)):
                    read = thread if lanes == 1 else T.ramp(thread * lanes, 1, lanes)
                    written = thread if made == 1 else T.ramp(thread * made, 1, made)
                    T.buffer_store(b, T.reinterpret(vector(target, made), a[read]), [written])
    rng = np.random.default_rng(3)
    inputs = [rng.integers(0, 120, count, np.uint8).view(source) for source, *_ in BIT_TYPES]
    outputs = [np.zeros(count, np.uint8).view(target) for *_, target, _ in BIT_TYPES]
    arguments = [array for pair in zip(inputs, outputs, strict=True) for array in pair]
    compiled({"kernel": k.function}).calls["kernel"](*arguments)
    for value, output, case in zip(inputs, outputs, BIT_TYPES, strict=True):
        np.testing.assert_array_equal(output.view(np.uint8), value.view(np.uint8), err_msg=str(case))


def test_vectors_are_taken_apart_and_put_together() -> None:
    with kernel("shuffles") as k:
        a, b = k.input("a", (16,), "float32"), k.input("b", (8, 4), "float32")
        with k.body(), launch([1], 1) as (_, (_thread,)):
            first, second = a[T.ramp(0, 1, 4)], a[T.ramp(4, 1, 4)]
            sixteen = a[T.ramp(0, 1, 16)]
            rows = [
                T.Shuffle([first, second], [7, 0, 5, 2]),
                T.Shuffle([sixteen], [15, 9, 4, 0]),
                T.broadcast(T.Shuffle([sixteen], [6]), 4),
                T.cast(T.ramp(3, -2, 4), "float32x4"),
                T.vectorlow("float32x4", T.Shuffle([first, second], list(range(8)))),
                T.vectorhigh("float32x4", T.Shuffle([first, second], list(range(8)))),
                a[T.ramp(0, 5, 4)],
                T.Select(first > T.broadcast(T.float32(2), 4), first, second),
            ]
            for row, value in enumerate(rows):
                T.buffer_store(b, value, [row, T.ramp(0, 1, 4)])
    a, b = np.arange(16, dtype="float32"), np.zeros((8, 4), "float32")
    compiled({"kernel": k.function}).calls["kernel"](a, b)
    expected = [[7, 0, 5, 2], [15, 9, 4, 0], [6] * 4, [3, 1, -1, -3], [0, 1, 2, 3], [4, 5, 6, 7], [0, 5, 10, 15],
                [4, 5, 6, 3]]  # fmt: skip
    np.testing.assert_array_equal(b, expected)
