"""Multiplications on devices against numpy in float64: every storage, odd shapes, one row to many, everything that can
be fused. A device that runs on the processor has no threads in lockstep, so repeated runs find races."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from device_kernels import Kernel, compile_kernels
from numpy.typing import NDArray
from packed_weights import random_weights

from mlc_llm.compiler.kernels.gpu.table import matmul, matmul_single
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import DenseStorage, GroupStorage, Storage
from mlc_llm.compiler.target.target import GpuTraits

Array = NDArray[Any]

STORAGES: dict[str, Storage] = {
    "q4": GroupStorage(4, 32, "float32", 7),
    "q4 group 40": GroupStorage(4, 40, "uint16", 3),
    "q4 with minimum": GroupStorage(4, 32, "float32", 0, minimum=True),
    "q8": GroupStorage(8, 32, "uint16", 128),
    "q8 of two levels": GroupStorage(8, 16, "int8", 32, super_size=256, super_dtype="float32"),
    "q4 of two levels": GroupStorage(4, 32, "int8", 0, minimum=True, super_size=256, super_dtype="float32"),
    "float32": DenseStorage("float32"),
    "bfloat16": DenseStorage("uint16"),
}
ROWS = [1, 2, 7, 16, 70]


def kernels_of(op: Matmul, kind: str) -> dict[str, Kernel]:
    traits = GpuTraits()
    return compile_kernels({"single": matmul_single(op, traits), "many": matmul(op, traits)}, kind)


def check(op: Matmul, kernels: dict[str, Kernel], rows: list[int] = ROWS) -> None:
    """The kernels of an operation give numpy's results, the same ones each time."""
    packed, matrix = random_weights(op.storage, op.out_features, op.in_features)
    rng = np.random.default_rng(1)
    for count in rows:
        x = rng.standard_normal((1, count, op.in_features)).astype(np.float32)
        norm, bias = (rng.standard_normal(n).astype(np.float32) for n in (op.in_features, op.out_features))
        residual = rng.standard_normal((1, count, op.out_features)).astype(np.float32)
        expected = x.astype(np.float64)
        if op.norm_eps is not None:
            expected = expected / np.sqrt(np.mean(expected**2, axis=-1, keepdims=True) + op.norm_eps) * norm
        size = np.linalg.norm(expected, axis=-1, keepdims=True) * np.abs(matrix).max()
        expected = expected @ matrix.T + (bias if op.bias else 0)
        if op.swiglu:
            gate, up = np.split(expected, 2, axis=-1)
            expected = gate / (1 + np.exp(-gate)) * up
            size = size * size
        expected += residual if op.residual else 0
        arguments = [x] + [norm] * (op.norm_eps is not None) + packed + [bias] * op.bias + [residual] * op.residual
        results = []
        for kernel in ["many", "many"] + ["single"] * (count == 1):
            y = np.full((1, count, op.result_features), np.nan, np.float32)
            kernels[kernel](*arguments, y)
            results.append(y)
            assert (np.abs(y - expected) / size).max() < 2e-6, (kernel, count)
        np.testing.assert_array_equal(results[0], results[1])


ALMOST_ALL_STORAGES = ["q4", *(pytest.param(name, marks=pytest.mark.slow) for name in list(STORAGES)[1:])]


@pytest.mark.parametrize(("n", "k"), [(41, 73), pytest.param(144, 96, marks=pytest.mark.slow)])
@pytest.mark.parametrize("storage", ALMOST_ALL_STORAGES)
def test_products_equal_numpy(storage: str, n: int, k: int, kind: str) -> None:
    op = Matmul(n, k, STORAGES[storage])
    check(op, kernels_of(op, kind))


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["q4", "float32"])
def test_bias_norm_and_residual_are_part_of_the_kernel(storage: str, kind: str) -> None:
    op = Matmul(41, 100, STORAGES[storage], bias=True, residual=True, norm_eps=1e-5)
    check(op, kernels_of(op, kind))


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"bias": True, "norm_eps": 1e-6}])
def test_swiglu_is_part_of_the_kernel(options: dict[str, Any], kind: str) -> None:
    op = Matmul(2 * 80, 96, STORAGES["q4"], swiglu=True, **options)
    check(op, kernels_of(op, kind))


@pytest.mark.slow
def test_a_workgroup_may_take_two_tiles_and_many_units(kind: str) -> None:
    op = Matmul(8208, 2080, replace(STORAGES["q4"]))
    check(op, kernels_of(op, kind), [1, 3])
