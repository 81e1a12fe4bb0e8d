"""Multiplication kernels against numpy: every storage, odd shapes, every vector width this machine can run, and NEON
under qemu."""

import ml_dtypes
import numpy as np
import pytest
import tvm
from compiled_kernels import AARCH64, aarch64_target, compile_kernel, needs_qemu
from numpy.typing import NDArray

from mlc_llm.compiler.kernels.cpu.float_matmul import gemm, gemv, tiling
from mlc_llm.compiler.kernels.cpu.layers import embedding, rms_norm, silu_mul
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import (
    DenseStorage,
    GroupStorage,
    pack_codes,
    pack_rows,
    packed_dtype,
    tiled_shape,
)
from mlc_llm.compiler.quantization.group import dequantize, quantize
from mlc_llm.compiler.quantization.scheme import SCHEMES
from mlc_llm.compiler.target import CompileTarget, resolve_target

Array = NDArray[np.generic]
TARGETS = ["x86-64", "x86-64-v3", "native"]
NEON = "cortex-a53"


def target_of(processor: str) -> CompileTarget:
    return aarch64_target(processor) if processor in AARCH64 else resolve_target(f"cpu:{processor}")


def run(function: tvm.tirx.PrimFunc, processor: str, *arrays: Array) -> None:
    """Compile and run a kernel; the last array receives the result."""
    compile_kernel(function, target_of(processor))(*arrays)


def tile(stored: Array, rows: int, units: int, packed_dtype: str, *, transposed: bool = False) -> Array:
    function = pack_rows("pack", rows, units, str(stored.dtype), packed_dtype, transposed=transposed)
    packed = np.full(tiled_shape(rows, units), 7, packed_dtype)
    run(function, "native", stored, packed)
    return packed


def weights(
    scheme_name: str, n: int, k: int, processor: str = "native"
) -> tuple[GroupStorage | DenseStorage, list[Array], NDArray[np.float32]]:
    """(storage, packed arrays, the float32 matrix that they stand for) of a random [n, k] matrix."""
    scheme = SCHEMES[scheme_name]
    dense = np.random.default_rng(n + k).standard_normal((n, k)).astype(np.float32) * np.float32(0.1)
    dtype = {"float16": np.float16, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16}[scheme.model_dtype]
    dense = dense.astype(dtype)
    stored_dtype = "uint16" if scheme.model_dtype == "bfloat16" else scheme.model_dtype
    read_dtype = packed_dtype(scheme.model_dtype, converts_float16=processor != "x86-64")
    if scheme.kind == "none":
        return (
            DenseStorage(read_dtype),
            [tile(dense.view(stored_dtype), n, k, read_dtype)],
            dense.astype(np.float32),
        )
    codes, scales = quantize(dense, scheme, transposed=scheme.transposed)
    storage = GroupStorage(max(4, scheme.bits), scheme.group_size, read_dtype, scheme.offset)
    groups = storage.groups(k)
    if scheme.bits == 3:
        words = np.full(tiled_shape(n, groups * storage.words_per_group), 7, np.int32)
        expand = pack_codes("expand", n, groups, bits=3, group_size=40, transposed=scheme.transposed)
        run(expand, "native", codes, words)
    else:
        words = tile(codes, n, groups * storage.words_per_group, "int32", transposed=scheme.transposed)
    packed = [
        words,
        tile(scales.view(stored_dtype), n, groups, read_dtype, transposed=scheme.transposed),
    ]
    exact = dequantize(codes, scales, scheme, (n, k), transposed=scheme.transposed)
    return storage, packed, exact.astype(np.float32)


@pytest.mark.parametrize("processor", TARGETS)
@pytest.mark.parametrize(
    ("scheme", "n", "k"),
    [
        ("q4f16_1", 64, 96),
        ("q4f16_1", 40, 72),
        ("q4f16_0", 48, 64),
        ("q3f16_1", 33, 100),
        ("q4f32_1", 32, 64),
        ("q8f16_1", 40, 72),
        ("q4bf16_1", 32, 64),
        ("q0f16", 20, 34),
        ("q0f32", 32, 33),
        ("q0bf16", 16, 32),
    ],
)
def test_products_equal_numpy(processor: str, scheme: str, n: int, k: int) -> None:
    check_products(processor, scheme, n, k)


@needs_qemu
@pytest.mark.parametrize(("scheme", "n", "k"), [("q4f16_1", 40, 72), ("q0f16", 20, 34)])
def test_products_by_neon_equal_numpy(scheme: str, n: int, k: int) -> None:
    check_products(NEON, scheme, n, k)


def check_products(processor: str, scheme: str, n: int, k: int) -> None:
    storage, packed, matrix = weights(scheme, n, k, processor)
    rng = np.random.default_rng(0)
    target = target_of(processor)
    bias = rng.standard_normal(n).astype(np.float32)
    for shape, fused in [((1, 1), False), ((1, 1), True), ((1, 13), True), ((3, 1), False)]:
        x = rng.standard_normal((*shape, k)).astype(np.float32)
        residual = rng.standard_normal((*shape, n)).astype(np.float32)
        y = np.full((*shape, n), np.nan, np.float32)
        op = Matmul(n, k, storage, bias=fused, residual=fused)
        function = gemv(op) if shape == (1, 1) else gemm(op, **tiling(target.lanes, target.vector_registers))
        run(function, processor, x, *packed, *([bias, residual] if fused else []), y)
        expected = x @ matrix.T + (bias + residual if fused else 0)
        # the stored scheme rounds each weight to 11 or 8 bits; the kernels multiply code and scale exactly
        tolerance = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 1e-5}[SCHEMES[scheme].model_dtype]
        np.testing.assert_allclose(y, expected, atol=tolerance if SCHEMES[scheme].kind == "group" else 1e-5)


def test_many_columns_are_widened_in_blocks() -> None:
    storage, packed, matrix = weights("q0f32", 16, 4100)
    x = np.random.default_rng(0).standard_normal((1, 3, 4100)).astype(np.float32)
    residual = np.ones((1, 3, 16), np.float32)
    y = np.zeros((1, 3, 16), np.float32)
    run(gemm(Matmul(16, 4100, storage, residual=True), rows=12, tiles_at_once=2), "native", x, *packed, residual, y)
    np.testing.assert_allclose(y, x @ matrix.T + 1, atol=1e-4)


EVERY_ARCHITECTURE = pytest.mark.parametrize("processor", ["native", pytest.param(NEON, marks=needs_qemu)])


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("scheme", ["q4f16_1", "q3f16_1", "q8f16_1", "q0f16", "q0bf16"])
def test_embedding_rows_are_the_stored_rows(scheme: str, processor: str) -> None:
    storage, packed, matrix = weights(scheme, 37, 72)
    ids = np.array([0, 36, 5, 5], np.int32)
    y = np.zeros((4, 72), np.float32)
    run(embedding(37, 72, storage), processor, ids, *packed, y)
    np.testing.assert_allclose(y, matrix[ids], rtol=1e-3)


@EVERY_ARCHITECTURE
@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("columns", [48, 37])
def test_swiglu_and_rms_norm_equal_numpy(single: bool, columns: int, processor: str) -> None:
    rng = np.random.default_rng(columns)
    shape = (1, 1) if single else (2, 3)
    x = rng.standard_normal((*shape, 2 * columns)).astype(np.float32) * 30  # far into both tails of the sigmoid
    y = np.full((*shape, columns), np.nan, np.float32)
    run(silu_mul(columns, single=single), processor, x, y)
    gate, up = x[..., :columns].astype(np.float64), x[..., columns:]
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, rtol=2e-5, atol=1e-30)

    weight = rng.standard_normal(columns).astype(np.float32)
    x = np.ascontiguousarray(x[..., :columns])
    run(rms_norm(columns, 1e-5, single=single), processor, x, weight, y)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(y, expected, rtol=2e-6)
