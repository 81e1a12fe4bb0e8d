"""Group quantization in numpy, bit for bit MLC's `GroupQuantize`: integer codes, one scale per group of inputs.

For a weight W [N, K] in the model's dtype, every operation rounded to that dtype, M = 2^(bits-1) - 1:

    scale[n, g] = max |W[n, k]| / M                      k in group g; the last group may be short
    code[n, k]  = clip(round_half_even(W[n, k] / scale[n, g] + M), 0, 2M)
    word[n, w]  = sum over r of code[n, w * P + r] << (r * bits)    P = 32 // bits codes a word, first in the low bits

        bits 31 ... 8 7 6 5 4 3 2 1 0     4-bit codes: 8 a word, 4 words a group of 32
             ...      |--k+1--|--k--|     3-bit codes: 10 a word (bits 30, 31 are 0), 4 words a group of 40
                                          8-bit codes: 4 a word, 8 words a group of 32

A group of zeros has scale 0, and its codes are those of 0/0: zero. Codes past K are zero.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from .rows import BLOCK_ELEMENTS, for_blocks, numpy_dtype
from .scheme import Scheme

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]

_DROPPED_BITS = {"float16": 13, "bfloat16": 16, "float32": 0}  # of float32's 23 fraction bits


def _round_quotient(values: Float32, model_dtype: str) -> None:
    """Round float32 to the precision of the model's dtype, half to even, in place.

    The dtype's exponent range is not applied. Quotients W/s are at most 3M/2 or infinite, and of those below 2^-14,
    where float16 loses precision, nothing is left once M has been added: so the codes are the same, four times faster.
    """
    drop = _DROPPED_BITS[model_dtype]
    if drop == 0:
        return
    bits = values.view(np.uint32)
    lowest = bits >> np.uint32(drop)
    lowest &= np.uint32(1)
    bits += lowest
    bits += np.uint32((1 << (drop - 1)) - 1)
    bits &= np.uint32(0xFFFFFFFF << drop & 0xFFFFFFFF)


def _pack(codes: npt.NDArray[np.uint32], scheme: Scheme) -> npt.NDArray[np.uint32]:
    """[N, words, P] codes -> [N, words]."""
    words: npt.NDArray[np.uint32] = codes[:, :, 0].copy()
    for r in range(1, scheme.codes_per_word):
        words |= codes[:, :, r] << np.uint32(r * scheme.bits)
    return words


def _quantize_block(weight: Array, scheme: Scheme) -> tuple[npt.NDArray[np.uint32], Array]:
    """Codes and scales of a few rows.

    Arithmetic is float32, rounded to the model's dtype after each operation: for + and / that equals arithmetic in
    float16 or bfloat16, because 24 bits are at least twice theirs plus two (Figueroa, "When is double rounding
    innocuous?", 1995).
    """
    dtype = numpy_dtype(scheme.model_dtype)
    rows, columns = weight.shape
    groups = -(-columns // scheme.group_size)
    padded = np.zeros((rows, groups * scheme.group_size), np.float32)
    grouped = padded.reshape(rows, groups, scheme.group_size)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        padded[:, :columns] = weight.astype(dtype, copy=False)
        scale = (np.abs(grouped).max(axis=2) / np.float32(scheme.offset)).astype(dtype)
        grouped /= scale.astype(np.float32)[:, :, None]
        _round_quotient(grouped, scheme.model_dtype)
        grouped += np.float32(scheme.offset)
        _round_quotient(grouped, scheme.model_dtype)
    np.rint(grouped, out=grouped)
    np.fmax(grouped, np.float32(0), out=grouped)  # fmax, not maximum: 0/0 becomes 0
    np.minimum(grouped, np.float32(2 * scheme.offset), out=grouped)
    padded[:, columns:] = 0
    codes = padded.astype(np.uint32).reshape(rows, groups * scheme.words_per_group, scheme.codes_per_word)
    return _pack(codes, scheme), scale


def quantize(weight: Array, scheme: Scheme, *, transposed: bool) -> tuple[npt.NDArray[np.uint32], Array]:
    """Codes and scales of a weight [N, K]: uint32 [N, words] and model dtype [N, groups], or both transposed.

    The weight is rounded to the model's dtype first. A group with NaN or infinity gets such a scale: callers check.
    """
    rows, columns = weight.shape
    code_shape, scale_shape = scheme.code_shapes(rows, columns, transposed=transposed)
    q_weight = np.empty(code_shape, np.uint32)
    q_scale = np.empty(scale_shape, numpy_dtype(scheme.model_dtype))
    code_rows, scale_rows = (q_weight.T, q_scale.T) if transposed else (q_weight, q_scale)

    def work(start: int, stop: int) -> None:
        code_rows[start:stop], scale_rows[start:stop] = _quantize_block(weight[start:stop], scheme)

    for_blocks(rows, max(1, BLOCK_ELEMENTS // columns), work)
    return q_weight, q_scale


def dequantize(q_weight: Array, q_scale: Array, scheme: Scheme, shape: tuple[int, int], *, transposed: bool) -> Array:
    """The weight [N, K] in the model's dtype that codes and scales stand for: (code - M) * scale.

    Raises ValueError when the shapes do not belong together.
    """
    rows, columns = shape
    if (q_weight.shape, q_scale.shape) != scheme.code_shapes(rows, columns, transposed=transposed):
        raise ValueError(f"codes {q_weight.shape} and scales {q_scale.shape} are not {scheme.name} of a weight {shape}")
    code_rows, scale_rows = (q_weight.T, q_scale.T) if transposed else (q_weight, q_scale)
    weight = np.empty(shape, numpy_dtype(scheme.model_dtype))
    shifts = np.arange(scheme.codes_per_word, dtype=np.uint32) * np.uint32(scheme.bits)
    mask = np.uint32((1 << scheme.bits) - 1)

    def work(start: int, stop: int) -> None:
        codes = (code_rows[start:stop, :, None] >> shifts) & mask
        grouped = codes.reshape(stop - start, -1, scheme.group_size).astype(np.float32) - np.float32(scheme.offset)
        grouped *= scale_rows[start:stop].astype(np.float32)[:, :, None]
        weight[start:stop] = grouped.reshape(stop - start, -1)[:, :columns].astype(weight.dtype)

    for_blocks(rows, max(1, BLOCK_ELEMENTS // columns), work)
    return weight
