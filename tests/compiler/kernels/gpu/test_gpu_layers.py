"""The small kernels of devices against numpy: embedding rows, RMS norm, SwiGLU, the last row."""

from typing import Any

import numpy as np
import pytest
from device_kernels import Kernel, compile_kernels
from numpy.typing import NDArray
from packed_weights import pieces, random_weights

from mlc_llm.compiler.kernels.gpu import layers
from mlc_llm.compiler.kernels.storage import DenseStorage, GroupStorage
from mlc_llm.compiler.target.target import GpuTraits

Array = NDArray[Any]
COLUMNS = 300  # not a multiple of the threads of a workgroup
STORAGES = {
    "q4": GroupStorage(4, 32, "float32", 7),
    "q8 of two levels": GroupStorage(8, 16, "int8", 32, super_size=256, super_dtype="float32"),
    "bfloat16": DenseStorage("uint16"),
}


@pytest.fixture(scope="module")
def kernels(kind: str) -> dict[str, Kernel]:
    """All kernels of this file, compiled together."""
    traits = GpuTraits()
    functions = {f"embedding {name}": layers.embedding((37,), COLUMNS, storage) for name, storage in STORAGES.items()}
    functions["embedding pieces"] = layers.embedding((32, 32, 5), COLUMNS, STORAGES["q4"])
    for single in (True, False):
        functions[f"rms_norm {single}"] = layers.rms_norm(COLUMNS, 1e-5, traits, single=single)
        functions[f"silu_mul {single}"] = layers.silu_mul(COLUMNS, single=single)
    functions["last_row"] = layers.last_row(COLUMNS)
    renamed = {name: name.replace(" ", "_") for name in functions}
    compiled = compile_kernels({renamed[name]: function for name, function in functions.items()}, kind)
    return {name: compiled[renamed[name]] for name in functions}


@pytest.mark.parametrize("storage", STORAGES)
def test_embedding_rows_are_the_stored_rows(storage: str, kernels: dict[str, Kernel]) -> None:
    packed, matrix = random_weights(STORAGES[storage], 37, COLUMNS)
    ids = np.array([0, 36, 5, 5], np.int32)
    y = np.full((4, COLUMNS), np.nan, np.float32)
    kernels[f"embedding {storage}"](ids, *packed, y)
    np.testing.assert_allclose(y, matrix[ids], rtol=1e-5, atol=1e-6)


def test_a_table_may_be_in_pieces(kernels: dict[str, Kernel]) -> None:
    packed, matrix = random_weights(STORAGES["q4"], 69, COLUMNS)
    ids = np.array([68, 0, 31, 32, 63, 64], np.int32)
    y = np.full((len(ids), COLUMNS), np.nan, np.float32)
    kernels["embedding pieces"](ids, *pieces(packed, (32, 32, 5)), y)
    np.testing.assert_allclose(y, matrix[ids], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("single", [True, False])
def test_swiglu_and_rms_norm_equal_numpy(single: bool, kernels: dict[str, Kernel]) -> None:
    rng = np.random.default_rng(0)
    shape = (1, 1) if single else (2, 3)
    x = rng.standard_normal((*shape, 2 * COLUMNS)).astype(np.float32) * 30  # far into both tails of the sigmoid
    y = np.full((*shape, COLUMNS), np.nan, np.float32)
    kernels[f"silu_mul {single}"](x, y)
    gate, up = x[..., :COLUMNS].astype(np.float64), x[..., COLUMNS:]
    np.testing.assert_allclose(y, gate / (1 + np.exp(-gate)) * up, rtol=2e-5, atol=1e-30)

    weight = rng.standard_normal(COLUMNS).astype(np.float32)
    x = np.ascontiguousarray(x[..., :COLUMNS])
    kernels[f"rms_norm {single}"](x, weight, y)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-5) * weight
    np.testing.assert_allclose(y, expected, rtol=2e-6)
    again = np.full_like(y, np.nan)
    kernels[f"rms_norm {single}"](x, weight, again)
    np.testing.assert_array_equal(y, again)


def test_the_last_row_is_taken(kernels: dict[str, Kernel]) -> None:
    x = np.random.default_rng(0).standard_normal((1, 5, COLUMNS)).astype(np.float32)
    y = np.full((1, 1, COLUMNS), np.nan, np.float32)
    kernels["last_row"](x, y)
    np.testing.assert_array_equal(y, x[:, -1:])
