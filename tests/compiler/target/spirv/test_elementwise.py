"""Every operator on every type, as scalars and as vectors, against numpy."""
# mypy: ignore-errors

import numpy as np
import pytest
from tvm import tirx
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import launch

pytestmark = pytest.mark.usefixtures("vulkan_device")

COUNT = 192  # numbers an operator is tried on: threads of 1, 2, 3, 4, 8 or 16 lanes
INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
FLOATS = ("float16", "float32")
WIDTHS = dict.fromkeys((*INTEGERS, *FLOATS), (1, 4))  # lanes that an operator is tried with
WIDTHS |= dict.fromkeys(("int32", "float32", "float16", "uint8"), (1, 2, 3, 4, 8, 16))
CASES = [(dtype, lanes) for dtype, widths in WIDTHS.items() for lanes in widths]


def elementwise(dtype: str, operators: dict):
    """A kernel with a launch for each number of lanes, whose outputs [lanes, operators, COUNT] have a row for each
    arithmetic operator and one for each comparison."""
    widths = WIDTHS[dtype]
    with kernel("elementwise") as k:
        a, b = k.input("a", (COUNT,), dtype), k.input("b", (COUNT,), dtype)
        results = k.input("results", (len(widths), len(operators), COUNT), dtype)
        truths = k.input("truths", (len(widths), len(COMPARISONS), COUNT), "int32")
        with k.body():
            for at, lanes in enumerate(widths):
                with launch([1], COUNT // lanes) as (_, (thread,)):
                    place = thread if lanes == 1 else T.ramp(thread * lanes, 1, lanes)
                    for row, (operator, _) in enumerate(operators.values()):
                        T.buffer_store(results, operator(a[place], b[place]), [at, row, place])
                    for row, (compare, _) in enumerate(COMPARISONS.values()):
                        truth = T.cast(compare(a[place], b[place]), "int32" if lanes == 1 else f"int32x{lanes}")
                        T.buffer_store(truths, truth, [at, row, place])
    return k.function


def numbers(dtype: str, seed: int) -> np.ndarray:
    """Random numbers after the edges of a type's range."""
    rng = np.random.default_rng(seed)
    if dtype.startswith("float"):
        edges = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, np.inf, -np.inf, np.nan, np.finfo(dtype).max]
        values = np.concatenate([edges, rng.standard_normal(COUNT - len(edges)) * 10])
        return rng.permutation(values).astype(dtype)
    limits = np.iinfo(dtype)
    edges = [limits.min, limits.max, 0, 1, 2, limits.max - 1]
    values = np.concatenate([
        np.array(edges, dtype),
        rng.integers(limits.min, limits.max, (COUNT - len(edges)) // 2, dtype, endpoint=True),
        rng.integers(max(-9, limits.min), 9, COUNT - len(edges) - (COUNT - len(edges)) // 2).astype(dtype),
    ])  # fmt: skip
    return rng.permutation(values)


def divisors(dtype: str) -> np.ndarray:
    """Numbers that may be divided by: not 0, and not -1, of which the smallest number's quotient overflows."""
    values = numbers(dtype, 1)
    values[values == 0] = 7
    if dtype.startswith("int"):
        values[values == -1] = -5
    return values


ARITHMETIC = {
    "add": (lambda a, b: a + b, np.add),
    "subtract": (lambda a, b: a - b, np.subtract),
    "multiply": (lambda a, b: a * b, np.multiply),
    "min": (tirx.min, np.fmin),  # of a number and a NaN, the number
    "max": (tirx.max, np.fmax),
}
OF_INTEGERS = {
    **ARITHMETIC,
    "and": (lambda a, b: a & b, np.bitwise_and),
    "or": (lambda a, b: a | b, np.bitwise_or),
    "xor": (lambda a, b: a ^ b, np.bitwise_xor),
    "not": (lambda a, b: ~a, lambda a, b: ~a),
    "truncdiv": (tirx.truncdiv, lambda a, b: (a // b + ((a % b != 0) & ((a < 0) != (b < 0)))).astype(a.dtype)),
    "truncmod": (tirx.truncmod, np.fmod),
    "floordiv": (tirx.floordiv, np.floor_divide),
    "floormod": (tirx.floormod, np.mod),
}
OF_FLOATS = {**ARITHMETIC, "divide": (lambda a, b: a / b, np.divide)}
COMPARISONS = {
    "equal": (lambda a, b: a == b, np.equal),
    "not equal": (lambda a, b: a != b, np.not_equal),
    "less": (lambda a, b: a < b, np.less),
    "less or equal": (lambda a, b: a <= b, np.less_equal),
    "greater": (lambda a, b: a > b, np.greater),
    "greater or equal": (lambda a, b: a >= b, np.greater_equal),
}


def arithmetic_of(dtype: str) -> dict:
    return OF_FLOATS if dtype in FLOATS else OF_INTEGERS


@pytest.fixture(scope="module")
def results() -> dict:
    """Of every type: the operands, the results and the truths of comparisons."""
    kernels = compiled({dtype: elementwise(dtype, arithmetic_of(dtype)) for dtype in WIDTHS})
    tables = {}
    for dtype, widths in WIDTHS.items():
        a, b = numbers(dtype, 0), numbers(dtype, 1) if dtype in FLOATS else divisors(dtype)
        values = np.zeros((len(widths), len(arithmetic_of(dtype)), COUNT), dtype)
        truths = np.zeros((len(widths), len(COMPARISONS), COUNT), "int32")
        kernels.calls[dtype](a, b, values, truths)
        tables[dtype] = a, b, values, truths
    return tables


@pytest.mark.parametrize(("dtype", "lanes"), CASES)
def test_arithmetic_is_numpys(results: dict, dtype: str, lanes: int) -> None:
    a, b, values, _ = results[dtype]
    tolerance = 2 * np.finfo(dtype).eps if dtype in FLOATS else 0
    for (name, (_, expected)), row in zip(
        arithmetic_of(dtype).items(), values[WIDTHS[dtype].index(lanes)], strict=True
    ):
        with np.errstate(all="ignore"):
            wanted = expected(a, b)
        np.testing.assert_allclose(row, wanted, rtol=tolerance, err_msg=name)


@pytest.mark.parametrize(("dtype", "lanes"), CASES)
def test_comparisons_are_numpys(results: dict, dtype: str, lanes: int) -> None:
    a, b, _, truths = results[dtype]
    for (name, (_, expected)), row in zip(COMPARISONS.items(), truths[WIDTHS[dtype].index(lanes)], strict=True):
        np.testing.assert_array_equal(row, expected(a, b), err_msg=name)
