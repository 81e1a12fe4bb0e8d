"""Random matrices in the packed layout of kernels, and what they stand for, made by numpy alone."""

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from mlc_llm.compiler.kernels.storage import TILE, DenseStorage, Storage, tiles

Array = NDArray[np.generic]


def random_weights(storage: Storage, n: int, k: int, seed: int = 0) -> tuple[list[Array], NDArray[np.float64]]:
    """(packed tensors in the order of kernels' arguments, the matrix [n, k] that they stand for)."""
    rng = np.random.default_rng(seed)
    if isinstance(storage, DenseStorage):
        stored, matrix = _stored(rng.standard_normal((tiles(n) * TILE, k)) * 0.1, storage.dtype)
        return [packed_rows(stored)], matrix[:n]
    rows, groups = tiles(n) * TILE, storage.groups(k)
    codes = rng.integers(0, 2**storage.bits, (rows, groups * storage.group_size))
    words = np.zeros((rows, groups * storage.words_per_group), np.uint32)
    for i in range(storage.codes_per_word):
        words |= codes[:, i :: storage.codes_per_word].astype(np.uint32) << np.uint32(i * storage.bits)
    tensors = {"words": words.view(np.int32)}
    matrix = (codes - storage.zero_point).reshape(rows, groups, -1).astype(np.float64)
    levels = {"scales": 0.01, "minima": 0.1} if storage.minimum else {"scales": 0.01}
    values = {}
    for name, size in levels.items():
        if storage.super_size:
            tensors[name] = rng.integers(-60, 60, (rows, groups)).astype(np.int8)
            outer = rng.standard_normal((rows, -(-k // storage.super_size))) * size / 30
            tensors[f"super_{name}"], factor = _stored(outer, storage.super_dtype)
            values[name] = tensors[name] * np.repeat(factor, storage.super_size // storage.group_size, 1)[:, :groups]
        else:
            tensors[name], values[name] = _stored(rng.standard_normal((rows, groups)) * size, storage.scale_dtype)
    matrix = matrix * values["scales"][:, :, None]
    if storage.minimum:
        matrix += values["minima"][:, :, None]
    return [packed_rows(tensors[name]) for name in storage.parts(n, k)], matrix.reshape(rows, -1)[:n, :k]


def _stored(values: NDArray[np.float64], dtype: str) -> tuple[Array, NDArray[np.float64]]:
    """(numbers as kernels read them, what they are); bfloat16 is read as its bits."""
    if dtype == "uint16":
        rounded = values.astype(ml_dtypes.bfloat16)
        return rounded.view(np.uint16), rounded.astype(np.float64)
    stored = values.astype(dtype)
    return stored, stored.astype(np.float64)


def pieces(packed: list[Array], rows: tuple[int, ...]) -> list[Array]:
    """Packed tensors of a matrix as the arguments of a kernel that takes it in pieces of so many rows."""
    ends = np.cumsum([tiles(count) for count in rows])
    return [piece for cut in zip(*(np.split(one, ends[:-1]) for one in packed), strict=True) for piece in cut]


def packed_rows(stored: Array) -> Array:
    """A stored matrix [rows, units] in tiles [tiles, units, 16]; rows that are missing in the last ones are zeros."""
    rows, units = stored.shape
    filled = np.concatenate([stored, np.zeros((tiles(rows) * TILE - rows, units), stored.dtype)])
    return np.ascontiguousarray(filled.reshape(-1, TILE, units).transpose(0, 2, 1))
