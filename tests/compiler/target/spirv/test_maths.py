"""Functions of floats against numpy, with infinities and NaNs."""
# mypy: ignore-errors

import math

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import launch

pytestmark = pytest.mark.usefixtures("vulkan_device")

COUNT = 192
erf = np.vectorize(math.erf)

# name -> (emitted, numpy's, relative error, absolute error) in float32
FUNCTIONS = {
    "exp": (T.exp, np.exp, 2e-6, 0),
    "exp2": (T.exp2, np.exp2, 2e-6, 0),
    "exp10": (T.exp10, lambda x: 10.0**x, 2e-5, 0),
    "log": (T.log, np.log, 1e-6, 1e-6),
    "log2": (T.log2, np.log2, 1e-6, 1e-6),
    "log10": (T.log10, np.log10, 1e-6, 1e-6),
    "sqrt": (T.sqrt, np.sqrt, 1e-6, 0),
    "rsqrt": (T.rsqrt, lambda x: 1 / np.sqrt(x), 1e-6, 0),
    "sin": (T.sin, np.sin, 0, 2e-7),
    "cos": (T.cos, np.cos, 0, 2e-7),
    "tanh": (T.tanh, np.tanh, 1e-6, 2e-7),
    "sigmoid": (T.sigmoid, lambda x: 1 / (1 + np.exp(-x)), 2e-6, 1e-7),
    "erf": (T.erf, erf, 0, 5e-7),
    "fabs": (T.fabs, np.abs, 0, 0),
    "floor": (T.floor, np.floor, 0, 0),
    "ceil": (T.ceil, np.ceil, 0, 0),
    "trunc": (T.trunc, np.trunc, 0, 0),
    "round": (T.round, np.rint, 0, 0),
    "nearbyint": (T.nearbyint, np.rint, 0, 0),
    "isnan": (T.isnan, np.isnan, 0, 0),
    "isinf": (T.isinf, np.isinf, 0, 0),
    "isfinite": (T.isfinite, np.isfinite, 0, 0),
    "fma": (lambda x: T.fma(x, x, x), lambda x: x * x + x, 1e-6, 1e-6),
    "fmod": (lambda x: T.fmod(x, x * 0 + 1.5), lambda x: np.fmod(x, 1.5), 0, 1e-6),
    "power": (lambda x: T.pow(T.fabs(x), x * 0 + 1.5), lambda x: np.abs(x) ** 1.5, 1e-5, 0),
}
SCALAR = {"isnan", "isinf", "isfinite"}  # TVM has these of scalars only
FINITE = {"sin", "cos", "erf", "power", "fma", "fmod", "exp10"}  # asked of finite numbers only


def numbers(dtype: str) -> np.ndarray:
    rng = np.random.default_rng(4)
    edges = [0.0, -0.0, 0.5, 1.5, 2.5, -0.5, -1.5, 1.0, -1.0, np.inf, -np.inf, np.nan]
    spread = np.concatenate([rng.standard_normal(84), rng.uniform(-20, 20, 84)])
    return np.concatenate([edges, spread, [11.0, -11.0, 9.9, 20.0] * 3]).astype(dtype)


def functions(dtype: str, lanes: int):
    with kernel("functions") as k:
        a = k.input("a", (COUNT,), dtype)
        output = k.input("output", (len(FUNCTIONS), COUNT), dtype)
        with k.body(), launch([1], COUNT // lanes) as (_, (thread,)):
            place = thread if lanes == 1 else T.ramp(thread * lanes, 1, lanes)
            for row, (name, (emitted, *_)) in enumerate(FUNCTIONS.items()):
                if lanes > 1 and name in SCALAR:
                    continue
                value = T.cast(emitted(a[place]), dtype if lanes == 1 else f"{dtype}x{lanes}")
                T.buffer_store(output, value, [row, place])
    return k.function


CASES = [("float32", 1), ("float32", 4), ("float16", 1), ("float32", 8)]


@pytest.fixture(scope="module")
def results() -> dict:
    kernels = compiled({f"{dtype}_{lanes}": functions(dtype, lanes) for dtype, lanes in CASES})
    outputs = {}
    for dtype, lanes in CASES:
        outputs[dtype, lanes] = np.zeros((len(FUNCTIONS), COUNT), dtype)
        kernels.calls[f"{dtype}_{lanes}"](numbers(dtype), outputs[dtype, lanes])
    return outputs


@pytest.mark.parametrize(
    ("dtype", "lanes", "name"),
    [(*case, name) for case in CASES for name in FUNCTIONS if case[1] == 1 or name not in SCALAR],
)
def test_functions_are_numpys(results: dict, dtype: str, lanes: int, name: str) -> None:
    _, expected, relative, absolute = FUNCTIONS[name]
    values = numbers(dtype)
    asked = np.isfinite(values) if name in FINITE else np.full(COUNT, True)
    with np.errstate(all="ignore"):
        wanted = expected(values.astype("float64")).astype(dtype)
    if dtype == "float16":
        relative, absolute = relative and 2e-3, 2e-3 if absolute else 0
    row = results[dtype, lanes][list(FUNCTIONS).index(name)]
    np.testing.assert_allclose(row[asked], wanted[asked], rtol=relative, atol=absolute)


def test_sin_and_cos_are_precise_for_the_angles_of_long_contexts() -> None:
    with kernel("angles") as k:
        a, b = k.input("a", (COUNT,), "float32"), k.input("b", (2, COUNT), "float32")
        with k.body(), launch([1], COUNT) as (_, (thread,)):
            T.buffer_store(b, T.sin(a[thread]), [0, thread])
            T.buffer_store(b, T.cos(a[thread]), [1, thread])
    angles = np.random.default_rng(5).uniform(-131072, 131072, COUNT).astype("float32")
    result = np.zeros((2, COUNT), "float32")
    compiled({"kernel": k.function}).calls["kernel"](angles, result)
    wide = angles.astype("float64")
    np.testing.assert_allclose(result, [np.sin(wide), np.cos(wide)], rtol=0, atol=2e-7)


def test_bits_are_counted() -> None:
    with kernel("bits") as k:
        a, b = k.input("a", (COUNT,), "int32"), k.input("b", (3, COUNT), "int32")
        c = k.input("c", (COUNT,), "int16")
        with k.body(), launch([1], COUNT) as (_, (thread,)):
            T.buffer_store(b, T.popcount(a[thread]), [0, thread])
            T.buffer_store(b, T.clz(a[thread]), [1, thread])
            T.buffer_store(b, T.cast(T.popcount(c[thread]), "int32"), [2, thread])
    rng = np.random.default_rng(7)
    a = np.append(rng.integers(-(1 << 31), 1 << 31, COUNT - 4), [0, 1, -1, -(1 << 31)]).astype("int32")
    a >>= rng.integers(0, 31, COUNT).astype("int32")
    c, b = a.astype("int16"), np.zeros((3, COUNT), "int32")
    compiled({"kernel": k.function}).calls["kernel"](a, b, c)
    words = [int(x) & 0xFFFFFFFF for x in a]
    np.testing.assert_array_equal(b[0], [bin(word).count("1") for word in words])
    np.testing.assert_array_equal(b[1], [32 - word.bit_length() for word in words])
    np.testing.assert_array_equal(b[2], [bin(int(x) & 0xFFFF).count("1") for x in c])
