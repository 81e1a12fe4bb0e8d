"""Multiplications of a device against numpy in float64."""

from typing import Any

import numpy as np
from device_kernels import Kernel, compile_kernels, device_target
from packed_weights import pieces, random_weights

from mlc_llm.compiler.kernels.gpu.table import matmul, matmul_single
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import DenseStorage, GroupStorage, Storage

# "float16" is replaced by float32 for devices that lack it
STORAGES: dict[str, Storage] = {
    "q4": GroupStorage(4, 32, "float16", 7),
    "q4 group 40": GroupStorage(4, 40, "uint16", 3),
    "q4 with minimum": GroupStorage(4, 32, "float32", 0, minimum=True),
    "q8": GroupStorage(8, 32, "uint16", 128),
    "q8 of two levels": GroupStorage(8, 16, "int8", 32, super_size=256, super_dtype="float16"),
    "q4 of two levels": GroupStorage(4, 32, "int8", 0, minimum=True, super_size=256, super_dtype="float32"),
    "float32": DenseStorage("float32"),
    "float16": DenseStorage("float16"),
    "bfloat16": DenseStorage("uint16"),
}
_FLOAT32, _FLOAT16 = 2e-6, 5e-4  # tolerated errors of an output relative to the length of its row of x


def stored(name: str, kind: str) -> Storage:
    """One of STORAGES as a kind of device reads it."""
    storage = STORAGES[name]
    if device_target(kind).converts_float16:
        return storage
    fields = {field: "float32" for field, value in vars(storage).items() if value == "float16"}
    return type(storage)(**{**vars(storage), **fields})


def kernels_of(op: Matmul, kind: str, *, units: bool = False) -> dict[str, Kernel]:
    """Both kernels of an operation. `units`: with matrix units."""
    traits = device_target(kind).gpu
    assert traits is not None
    return compile_kernels({"single": matmul_single(op, traits), "many": matmul(op, traits, units=units)}, kind)


def check(op: Matmul, kernels: dict[str, Kernel], rows: list[int], *, units: bool = False) -> None:
    """The kernels give numpy's results for these numbers of rows of x, and the same bits each time."""
    packed, matrix = random_weights(op.storage, op.out_features, op.in_features)
    if op.pieces:
        packed = pieces(packed, op.pieces)
    rng = np.random.default_rng(1)
    for count in rows:
        x = rng.standard_normal((1, count, op.in_features)).astype(np.float32)
        x[0, 0] = 0
        norm, bias = (rng.standard_normal(n).astype(np.float32) for n in (op.in_features, op.out_features))
        residual = rng.standard_normal((1, count, op.out_features)).astype(np.float32)
        expected = x.astype(np.float64)
        if op.norm_eps is not None:
            expected = expected / np.sqrt(np.mean(expected**2, axis=-1, keepdims=True) + op.norm_eps) * norm
        size = np.linalg.norm(expected, axis=-1, keepdims=True) * np.abs(matrix).max() + 1
        expected = expected @ matrix.T + (bias if op.bias else 0)
        if op.swiglu:
            gate, up = np.split(expected, 2, axis=-1)
            expected = gate / (1 + np.exp(-gate)) * up
            size = size * size
        expected += residual if op.residual else 0
        arguments: list[Any] = [x] + [norm] * (op.norm_eps is not None) + packed + [bias] * op.bias
        arguments += [residual] * op.residual
        results = []
        for kernel in ["many", "many"] + ["single"] * (count == 1):
            y = np.full((1, count, op.result_features), np.nan, np.float32)
            kernels[kernel](*arguments, y)
            results.append(y)
            error = (np.abs(y - expected) / size).max()
            assert error < (_FLOAT16 if units and count > 16 else _FLOAT32), (kernel, count, error)
        np.testing.assert_array_equal(results[0], results[1])
