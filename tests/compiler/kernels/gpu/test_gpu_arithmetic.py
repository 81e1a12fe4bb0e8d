"""Elementary functions of device kernels against numpy in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from device_kernels import compile_kernels, device_kind
from tvm.script.ir_builder import tirx as T

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.arithmetic import exact, exp2, load4, pick, rounded, sincos
from mlc_llm.compiler.kernels.gpu.launch import launch

__all__ = ["device_kind"]
Array = np.ndarray[Any, Any]
COUNT = 4096
TABLE = [float(x) for x in np.random.default_rng(0).standard_normal(37).astype(np.float32)]
CONSTANTS = [1.0, 12582912.0, 1 / 3, 683565275.5764316, 2.0**-126, 16777215.0]


def _map(name: str, outputs: int, function: Callable[[Any], Any], dtype: str = "float32") -> Any:
    """A kernel that applies a function to each number."""
    with kernel(name) as k:
        x = k.input("x", (COUNT,), dtype)
        y = k.input("y", (outputs, COUNT), "float32")
        with k.body(), launch((COUNT // 64,), 64) as ((block,), (thread,)):
            i = T.bind(block * 64 + thread)
            for row, value in enumerate(function(T.bind(x[i]))):
                T.buffer_store(y, T.cast(value, "float32"), [row, i])
    return k.function


def _vectors() -> Any:
    """A kernel that takes vectors of four apart."""
    with kernel("fours") as k:
        x, y = k.input("x", (COUNT,), "int8"), k.input("y", (1, COUNT), "float32")
        with k.body(), launch((COUNT // 256,), 64) as ((block,), (thread,)):
            i = T.bind((block * 64 + thread) * 4)
            for lane, value in enumerate(load4(x, i)):
                T.buffer_store(y, value, [0, i + lane])
    return k.function


@cache
def _kernels(kind: str) -> dict[str, Any]:
    return compile_kernels(
        {
            "exp2": _map("exp2", 1, lambda x: [exp2(x)]),
            "sincos": _map("sincos", 2, sincos),
            "rounded": _map("rounded", 1, lambda x: [rounded(x)]),
            "pick": _map("pick", 1, lambda i: [pick(TABLE, i)], "int32"),
            "exact": _map("exact", len(CONSTANTS), lambda _: [exact(value) for value in CONSTANTS]),
            "fours": _vectors(),
        },
        kind,
    )


def apply(kind: str, name: str, x: Array, outputs: int = 1) -> Array:
    y = np.full((outputs, COUNT), np.nan, np.float32)
    _kernels(kind)[name](x, y)
    return y


def test_exp2(kind: str) -> None:
    x = np.concatenate([np.linspace(-125, 20, COUNT - 3), [0, -1, -0.5]]).astype(np.float32)
    np.testing.assert_allclose(apply(kind, "exp2", x)[0], np.exp2(x.astype(np.float64)), rtol=3e-7)
    assert (apply(kind, "exp2", np.linspace(-1e30, -126, COUNT, dtype=np.float32)) < 1e-37).all()


def test_sine_and_cosine_of_angles_of_any_size(kind: str) -> None:
    random = np.random.default_rng(1)
    for largest in (1e-3, 1, 100, 1e4, 1 << 17, 1 << 21):
        x = (random.random(COUNT) * largest).astype(np.float32)
        x[:9] = [0, 1, largest, *np.arange(1, 7) * np.pi / 4]
        wide = x.astype(np.float64)
        np.testing.assert_allclose(apply(kind, "sincos", x, 2), [np.sin(wide), np.cos(wide)], rtol=0, atol=2e-7)


def test_rounding(kind: str) -> None:
    x = np.concatenate([np.arange(-512, 512) / 2, np.linspace(-4e6, 4e6, COUNT - 1024)]).astype(np.float32)
    np.testing.assert_array_equal(apply(kind, "rounded", x)[0], np.rint(x))


def test_constants_are_exact(kind: str) -> None:
    index = (np.arange(COUNT) % len(TABLE)).astype(np.int32)
    np.testing.assert_array_equal(apply(kind, "pick", index)[0], np.array(TABLE, np.float32)[index])
    found = apply(kind, "exact", np.zeros(COUNT, np.float32), len(CONSTANTS))
    np.testing.assert_array_equal(found, np.repeat(np.array(CONSTANTS, np.float32)[:, None], COUNT, 1))


def test_vectors_of_bytes(kind: str) -> None:
    x = np.random.default_rng(2).integers(-128, 128, COUNT, np.int8)
    np.testing.assert_array_equal(apply(kind, "fours", x)[0], x)
