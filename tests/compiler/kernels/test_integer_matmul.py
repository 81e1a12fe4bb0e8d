"""Multiplication kernels with quantized activations against float64 numpy: storages, tails, fused norms, activations,
biases and residuals, for every instruction set with integer dot products that this machine can run or qemu can."""

from dataclasses import replace

import numpy as np
import pytest
from compiled_kernels import AARCH64, Kernel, aarch64_target, compile_kernel, needs_qemu
from numpy.typing import NDArray

from mlc_llm.compiler.kernels.cpu.dot import integer_dot
from mlc_llm.compiler.kernels.cpu.integer_matmul import gemm, gemv
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import TILE, GroupStorage, tiles
from mlc_llm.compiler.target import CompileTarget, resolve_target
from mlc_llm.runtime.processor import cpu_features

Array = NDArray[np.generic]
# processor -> what it needs of the machine that runs the test. "vnni-256" is AVX-VNNI in AVX-512's encoding.
_PROCESSORS = {
    "cascadelake": {"avx512_vnni", "avx512vl", "avx512bw", "avx512cd"},
    "skylake-avx512": {"avx512bw", "avx512vl", "avx512cd"},
    "alderlake": {"avx_vnni"},
    "vnni-256": {"avx512_vnni", "avx512vl"},
    "x86-64-v3": {"avx2", "fma", "bmi2"},
    "x86-64-v2": {"ssse3", "sse4_2"},
    "x86-64": {"sse2"},
}
NATIVE = [name for name, needs in _PROCESSORS.items() if needs <= cpu_features()]
EMULATED = [pytest.param(name, marks=needs_qemu) for name in ("cortex-a76", "neoverse-v1")]
RUNNABLE = [*NATIVE, *EMULATED]
# largest error of an output relative to the length of its row of x: 16-bit and 8-bit activations
TOLERANCE = {16: 1e-4, 8: 2e-2}


def target_of(processor: str) -> CompileTarget:
    if processor in AARCH64:
        return aarch64_target(processor)
    if processor != "vnni-256":
        return resolve_target(f"cpu:{processor}")
    target = resolve_target("cpu:x86-64-v3")
    attributes = target.attributes | {"mattr": ["+avx512vl", "+avx512vnni"]}
    return replace(target, attributes=attributes, cpu_features=("avx_vnni",))


def kernel_of(op: Matmul, target: CompileTarget, *, single: bool, activation_bits: int = 16) -> Kernel:
    assert isinstance(op.storage, GroupStorage)
    dot = integer_dot(target, op.storage.bits, activation_bits, single=single)
    assert dot is not None
    return compile_kernel((gemv if single else gemm)(op, dot, activation_bits), target)


def random_weights(storage: GroupStorage, n: int, k: int, seed: int = 0) -> tuple[list[Array], NDArray[np.float64]]:
    """(packed tensors, the matrix [n, k] that they stand for)."""
    rng = np.random.default_rng(seed)
    groups, rows = storage.groups(k), tiles(n) * TILE
    codes = rng.integers(0, 2**storage.bits, (rows, groups * storage.group_size))
    scales = (rng.standard_normal((rows, groups)) * 0.01).astype(np.float16)
    minima = (rng.standard_normal((rows, groups)) * 0.1).astype(np.float16)
    per_word = storage.codes_per_word
    words = np.zeros((rows, groups * storage.words_per_group), np.uint32)
    for i in range(per_word):
        words |= codes[:, i::per_word].astype(np.uint32) << np.uint32(i * storage.bits)

    def packed(a: Array) -> Array:
        return np.ascontiguousarray(a.reshape(tiles(n), TILE, -1).transpose(0, 2, 1))

    grouped = (codes - storage.zero_point).reshape(rows, groups, -1).astype(np.float64)
    matrix = grouped * scales[:, :, None].astype(np.float64)
    tensors = [packed(words.view(np.int32)), packed(scales)]
    if storage.minimum:
        matrix += minima[:, :, None]
        tensors.append(packed(minima))
    return tensors, matrix.reshape(rows, -1)[:n, :k]


def run(kernel: Kernel, *arrays: Array) -> Array:
    """Call a kernel; returns what it made of the last array."""
    kernel(*arrays)
    return arrays[-1]


STORAGES = {
    "q4": GroupStorage(4, 32, "float16", 7),
    "q4 group 40": GroupStorage(4, 40, "float16", 3),
    "q4 with minimum": GroupStorage(4, 32, "float16", 0, minimum=True),
    "q8": GroupStorage(8, 32, "float16", 128),
    "q8 group 16 with minimum": GroupStorage(8, 16, "float16", 32, minimum=True),
}


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize(("n", "k"), [(64, 96), (41, 73)])
@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
@pytest.mark.parametrize("processor", RUNNABLE[:1])
def test_products_equal_numpy(storage: GroupStorage, processor: str, activation_bits: int, n: int, k: int) -> None:
    check_products(storage, processor, activation_bits, n, k)


@pytest.mark.parametrize("activation_bits", [8, 16])
@pytest.mark.parametrize("storage", ["q4 with minimum", "q8"])
@pytest.mark.parametrize("processor", RUNNABLE[1:])
def test_products_of_every_instruction_set_equal_numpy(storage: str, processor: str, activation_bits: int) -> None:
    check_products(STORAGES[storage], processor, activation_bits, 41, 73)


def check_products(storage: GroupStorage, processor: str, activation_bits: int, n: int, k: int) -> None:
    target = target_of(processor)
    tensors, matrix = random_weights(storage, n, k)
    rng = np.random.default_rng(1)
    op = Matmul(n, k, storage)
    single, many = (kernel_of(op, target, single=single, activation_bits=activation_bits) for single in (True, False))
    for kernel, shape in [(single, (1, 1)), (many, (1, 3)), (many, (67, 1))]:
        x = rng.standard_normal((*shape, k)).astype(np.float32) * np.float32(3)
        y = run(kernel, x, *tensors, np.full((*shape, n), np.nan, np.float32))
        scale = np.linalg.norm(x, axis=-1, keepdims=True) * np.abs(matrix).max()
        error = np.abs(y - x.astype(np.float64) @ matrix.T) / scale
        assert error.max() < TOLERANCE[activation_bits]


@pytest.mark.parametrize("processor", RUNNABLE)
@pytest.mark.parametrize("rows", [1, 5])
def test_norm_bias_and_residual_are_part_of_the_kernel(processor: str, rows: int) -> None:
    target = target_of(processor)
    n, k, eps = 48, 100, 1e-5
    tensors, matrix = random_weights(STORAGES["q4"], n, k)
    rng = np.random.default_rng(2)
    x, norm = rng.standard_normal((1, rows, k)).astype(np.float32), rng.standard_normal(k).astype(np.float32)
    bias, residual = rng.standard_normal(n).astype(np.float32), rng.standard_normal((1, rows, n)).astype(np.float32)
    op = Matmul(n, k, STORAGES["q4"], bias=True, residual=True, norm_eps=eps)
    kernel = kernel_of(op, target, single=rows == 1)
    y = run(kernel, x, norm, *tensors, bias, residual, np.zeros((1, rows, n), np.float32))
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=-1, keepdims=True) + eps) * norm
    np.testing.assert_allclose(y, normed @ matrix.T + bias + residual, atol=2e-3)


@pytest.mark.parametrize("processor", RUNNABLE)
@pytest.mark.parametrize(("rows", "bias"), [(1, True), (5, False)])
def test_swiglu_is_part_of_the_kernel(processor: str, rows: int, bias: bool) -> None:
    target = target_of(processor)
    n, k = 96, 64
    tensors, matrix = random_weights(STORAGES["q4"], n, k)
    rng = np.random.default_rng(3)
    x, b = rng.standard_normal((1, rows, k)).astype(np.float32) * 20, rng.standard_normal(n).astype(np.float32)
    op = Matmul(n, k, STORAGES["q4"], bias=bias, swiglu=True)
    kernel = kernel_of(op, target, single=rows == 1)
    y = run(kernel, x, *tensors, *([b] if bias else []), np.zeros((1, rows, n // 2), np.float32))
    gate, up = np.split(x @ matrix.T + (b if bias else 0), 2, axis=-1)
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, atol=2e-2, rtol=1e-3)


@pytest.mark.parametrize("processor", RUNNABLE)
def test_zero_rows_and_extreme_values(processor: str) -> None:
    target = target_of(processor)
    tensors, matrix = random_weights(STORAGES["q4"], 32, 64)
    x = np.zeros((1, 4, 64), np.float32)
    x[0, 1], x[0, 2, 5], x[0, 3, 7] = 1e-20, 3e4, -1e-38
    op = Matmul(32, 64, STORAGES["q4"])
    kernel = kernel_of(op, target, single=False)
    y = run(kernel, x, *tensors, np.full((1, 4, 32), np.nan, np.float32))
    assert (y[0, 0] == 0).all()
    assert np.isfinite(y).all()
    np.testing.assert_allclose(y[0, 2], x[0, 2] @ matrix.T, rtol=1e-4)
