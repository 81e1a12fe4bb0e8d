"""Multiplications on devices against numpy: every storage, odd shapes, one row to many, everything that can be fused. A
device that runs on the processor has no threads in lockstep, so repeated runs find races."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from device_kernels import compile_kernels, device_target
from matmul_checks import STORAGES, check, kernels_of, stored
from packed_weights import packed_rows, pieces, random_weights

from mlc_llm.compiler.kernels.gpu.table import matmul_single
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import GroupStorage, storage_dtype
from mlc_llm.compiler.quantization.group import dequantize, quantize
from mlc_llm.compiler.quantization.scheme import SCHEMES

ROWS = [1, 2, 7, 16, 70]
slow = pytest.mark.slow


@pytest.mark.parametrize(("n", "k"), [(41, 73), pytest.param(144, 96, marks=slow)])
@pytest.mark.parametrize("storage", ["q4", *(pytest.param(name, marks=slow) for name in list(STORAGES)[1:])])
def test_products_equal_numpy(storage: str, n: int, k: int, kind: str) -> None:
    op = Matmul(n, k, stored(storage, kind))
    check(op, kernels_of(op, kind), ROWS)


def test_a_matrix_may_be_in_pieces(kind: str) -> None:
    op = Matmul(85, 73, stored("q4", kind), bias=True, residual=True, pieces=(32, 32, 21))
    traits = device_target(kind).gpu
    assert traits is not None
    whole, cut = matmul_single(replace(op, pieces=()), traits), matmul_single(op, traits)
    kernels = compile_kernels({"whole": whole, "cut": cut}, kind)
    packed, _ = random_weights(op.storage, 85, 73)
    rng = np.random.default_rng(1)
    x, bias, residual = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 1, 73), 85, (1, 1, 85)))
    results = np.full((2, 1, 1, 85), np.nan, np.float32)
    kernels["whole"](x, *packed, bias, residual, results[0])
    kernels["cut"](x, *pieces(packed, op.pieces), bias, residual, results[1])
    np.testing.assert_array_equal(*results)


@slow
def test_rows_of_all_numbers_may_meet_a_matrix_in_pieces(kind: str) -> None:
    op = Matmul(85, 73, stored("q4 with minimum", kind), bias=True, residual=True, norm_eps=1e-5, pieces=(64, 21))
    check(op, kernels_of(op, kind), ROWS)


@slow
@pytest.mark.parametrize("storage", ["q4 with minimum", "bfloat16"])
def test_bias_norm_and_residual_are_part_of_the_kernel(storage: str, kind: str) -> None:
    op = Matmul(41, 100, stored(storage, kind), bias=True, residual=True, norm_eps=1e-5)
    check(op, kernels_of(op, kind), ROWS)


@slow
@pytest.mark.parametrize("options", [{}, {"bias": True, "norm_eps": 1e-6}])
def test_swiglu_is_part_of_the_kernel(options: dict[str, Any], kind: str) -> None:
    op = Matmul(2 * 80, 96, stored("q4", kind), swiglu=True, **options)
    check(op, kernels_of(op, kind), ROWS)


@slow
def test_a_workgroup_may_take_two_tiles_and_many_units(kind: str) -> None:
    op = Matmul(8208, 2080, stored("q4", kind))
    check(op, kernels_of(op, kind), [1, 3])


@slow
@pytest.mark.parametrize("scheme_name", ["q4f32_1", "q4bf16_1"])
def test_matrices_that_a_scheme_has_quantized(scheme_name: str, kind: str) -> None:
    n, k, scheme = 40, 64, SCHEMES[scheme_name]
    dense = (np.random.default_rng(0).standard_normal((n, k)) * 0.1).astype(scheme.model_dtype)
    codes, scales = quantize(dense, scheme, transposed=scheme.transposed)
    matrix = dequantize(codes, scales, scheme, (n, k), transposed=scheme.transposed).astype(np.float64)
    read = storage_dtype(scheme.model_dtype)
    op = Matmul(n, k, GroupStorage(scheme.bits, scheme.group_size, read, scheme.offset))
    packed = [packed_rows(codes.view(np.int32)), packed_rows(scales.view(read))]
    x = np.random.default_rng(1).standard_normal((1, 3, k)).astype(np.float32)
    y = np.full((1, 3, n), np.nan, np.float32)
    kernels_of(op, kind)["many"](x, *packed, y)
    np.testing.assert_allclose(y, x @ matrix.T, atol=2e-2 if read == "uint16" else 1e-5)
