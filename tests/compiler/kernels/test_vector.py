"""Elementary functions and conversions of the vector code against numpy, on every vector width."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tvm
from tvm.script import tirx as T

from mlc_llm.compiler.kernels.cpu import vector
from mlc_llm.compiler.kernels.cpu.vector import VectorUnit

Array = np.ndarray[Any, Any]


def _map(emit: Callable[..., Any], read: str, write: str, unit: VectorUnit) -> Any:
    """PrimFunc(x [n], y [n]): apply `emit(unit, x, y, i)` to each vector that starts at i."""

    def at(x: Any, y: Any, i: Any) -> None:
        emit(unit, x, y, i)

    @T.prim_func(s_tir=True)
    def kernel(x_handle: T.handle, y_handle: T.handle):  # type: ignore[no-untyped-def]
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        x = T.match_buffer(x_handle, (n,), read)
        y = T.match_buffer(y_handle, (n,), write)
        with T.sblock("root"):
            for i in T.serial(n // unit.lanes):
                at(x, y, i * unit.lanes)

    return kernel


def _exp2(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    vector.store(unit, y, vector.exp2(vector.load(unit, x, i), unit.lanes), i)


def _log2(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    with T.serial(unit.lanes) as lane:
        T.buffer_store(y, vector.log2(x[i + lane]), [i + lane])


def _sine(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    vector.store(unit, y, vector.sincos(vector.load(unit, x, i), unit.lanes)[0], i)


def _cosine(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    vector.store(unit, y, vector.sincos(vector.load(unit, x, i), unit.lanes)[1], i)


def _convert(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    vector.store(unit, y, vector.load(unit, x, i), i)


def _transpose(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    """Squares of lanes * lanes elements; vectors inside a square do nothing."""
    lanes = unit.lanes
    with T.If(T.floormod(i, lanes * lanes) == 0), T.Then():
        rows = [vector.load(unit, x, i + row * lanes) for row in range(lanes)]
        for row, value in enumerate(vector.transpose(rows, lanes)):
            vector.store(unit, y, value, i + row * lanes)


def _reduce(unit: VectorUnit, x: Any, y: Any, i: Any) -> None:
    total = vector.reduce(vector.load(unit, x, i), unit.lanes, vector.add)
    vector.store(unit, y, vector.splat(total, unit.lanes), i)


def apply(kernel: Any, x: Array, dtype: str = "float32") -> Array:
    y = tvm.runtime.tensor(np.zeros(x.shape, dtype))
    kernel(tvm.runtime.tensor(x), y)
    return y.numpy()


def ulps(found: Array, exact: Array) -> float:
    """The largest error in units of the last place of float32."""
    return float((np.abs(found - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def test_exp2_is_within_two_ulp(compiled: Callable[..., Any]) -> None:
    x = np.linspace(-125, 127, 1 << 16).astype(np.float32)
    assert ulps(apply(compiled(_map, _exp2, "float32", "float32"), x), np.exp2(x.astype(np.float64))) <= 2


def test_exp2_of_very_small_arguments_is_next_to_nothing(compiled: Callable[..., Any]) -> None:
    x = np.array([-126, -1e3, -5e4, -1e30] * 4, np.float32)
    assert (apply(compiled(_map, _exp2, "float32", "float32"), x) <= 2.0**-125).all()


def test_log2_is_within_two_ulp_or_of_one(compiled: Callable[..., Any]) -> None:
    x = np.geomspace(1e-30, 1e30, 1 << 14).astype(np.float32)
    found, exact = apply(compiled(_map, _log2, "float32", "float32"), x), np.log2(x.astype(np.float64))
    assert (np.abs(found - exact) <= 2**-22 * np.maximum(np.abs(exact), 1)).all()


@pytest.mark.parametrize(("emit", "exact"), [(_sine, np.sin), (_cosine, np.cos)], ids=["sine", "cosine"])
def test_sine_and_cosine_hold_for_long_contexts(
    compiled: Callable[..., Any], emit: Callable[..., Any], exact: Callable[..., Array]
) -> None:
    x = np.concatenate([np.linspace(0, 20, 1 << 14), np.geomspace(20, 1e6, 1 << 14)]).astype(np.float32)
    found = apply(compiled(_map, emit, "float32", "float32"), x)
    assert np.abs(found - exact(x.astype(np.float64))).max() <= 2**-23


def test_every_finite_half_becomes_the_same_float(compiled: Callable[..., Any]) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    halves = np.where(np.isfinite(halves), halves, np.float16(0))
    found = apply(compiled(_map, _convert, "float16", "float32"), halves)
    np.testing.assert_array_equal(found, halves.astype(np.float32))


def test_floats_are_rounded_to_the_nearest_even_half(compiled: Callable[..., Any]) -> None:
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    between = (halves[1:] + halves[:-1]) / 2
    x = np.concatenate([halves, between, np.nextafter(between, np.float32(0)), np.nextafter(between, np.float32(1e6))])
    x = np.concatenate([x, [65519.0, 65520.0, 1e6, 1e-9, 0.0]]).astype(np.float32)
    x = np.concatenate([x, -x])
    x = x[: x.size // 16 * 16]
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(
            apply(compiled(_map, _convert, "float32", "float16"), x, "float16"), x.astype(np.float16)
        )


def test_a_square_of_vectors_is_transposed_in_registers(compiled: Callable[..., Any], unit: VectorUnit) -> None:
    lanes = unit.lanes
    x = np.arange(2 * lanes * lanes, dtype=np.float32)
    found = apply(compiled(_map, _transpose, "float32", "float32"), x)
    np.testing.assert_array_equal(found, x.reshape(2, lanes, lanes).transpose(0, 2, 1).ravel())


def test_lanes_are_summed(compiled: Callable[..., Any], unit: VectorUnit) -> None:
    lanes = unit.lanes
    x = np.arange(64, dtype=np.float32)
    found = apply(compiled(_map, _reduce, "float32", "float32"), x)
    np.testing.assert_array_equal(found, np.repeat(x.reshape(-1, lanes).sum(1), lanes))


def test_vectors_that_divide_every_extent_are_found() -> None:
    unit = VectorUnit(lanes=16)
    assert [unit.dividing(n).lanes for n in (64, 80, 72, 100, 6, 7)] == [16, 16, 8, 4, 2, 1]
    assert unit.dividing(64, 40).lanes == 8
