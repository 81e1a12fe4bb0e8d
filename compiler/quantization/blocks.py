"""GGUF's blocks of quantized weights taken apart into tensors, with every bit of them kept.

    weight[n, k] = (code[n, k] - zero_point) * scale[n, g] (+ minimum[n, g])      k in group g of 16 or 32 inputs

A block of the older types (Q4_0 to Q8_0) is one group with float16 scales. A block of the K types is 256 inputs, and
its groups have small integers that are multiplied by the block's two float16 numbers:

    scale[n, g] = q_scale[n, g] * q_super_scale[n, b]      minimum[n, g] = q_min[n, g] * q_super_min[n, b]

Codes of 5 and 6 bits become bytes, codes of 2 and 3 bits become 4-bit ones, and those of IQ4_NL and IQ4_XS the bytes of
ggml's table that they stand for; words are laid out as in `group.py`. ggml subtracts minima of the K types: here the
sign is that of `q_super_min`. Layouts: ggml-common.h and ggml-quants.c of https://github.com/ggml-org/ggml; the inverse
is `dequantize_blocks` of the gguf package.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from ..source.gguf_file import BLOCK_TYPES
from .rows import BLOCK_ELEMENTS, for_blocks, numpy_dtype

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

SUPER_SIZE = 256  # inputs of a K type's block
# ggml's `kvalues_iq4nl`, moved by 128
_IQ4_VALUES = np.array([1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241], np.uint8)


@dataclass(frozen=True)
class BlockFormat:
    """How a matrix of blocks is stored. `scale_dtype` int8 means two levels of scales, as the K types have them."""

    name: str
    bits: int  # of a stored code: 4 or 8
    group_size: int
    zero_point: int
    minimum: bool
    scale_dtype: Literal["float16", "int8", "float32"] = "float16"

    @property
    def super_size(self) -> int:
        """Inputs that share a float16 factor of their scales; 0 where scales have none."""
        return SUPER_SIZE if self.scale_dtype == "int8" else 0

    def records(self, rows: int, columns: int) -> dict[str, tuple[tuple[int, int], str]]:
        """The stored tensors of a matrix [rows, columns], in order: name -> shape, dtype."""
        groups = rows, -(-columns // self.group_size)
        records = {
            "q_weight": ((rows, groups[1] * self.group_size * self.bits // 32), "uint32"),
            "q_scale": (groups, str(self.scale_dtype)),
        }
        if self.minimum:
            records["q_min"] = (groups, str(self.scale_dtype))
        if self.super_size:
            blocks = rows, -(-columns // self.super_size)
            records["q_super_scale"] = (blocks, "float16")
            if self.minimum:
                records["q_super_min"] = (blocks, "float16")
        return records


FORMATS = {
    form.name: form
    for form in (
        BlockFormat("q4_0", 4, 32, 8, minimum=False),
        BlockFormat("q4_1", 4, 32, 0, minimum=True),
        BlockFormat("q5_0", 8, 32, 16, minimum=False),
        BlockFormat("q5_1", 8, 32, 0, minimum=True),
        BlockFormat("q8_0", 8, 32, 128, minimum=False),
        BlockFormat("q2_k", 4, 16, 0, minimum=True, scale_dtype="int8"),
        BlockFormat("q3_k", 4, 16, 4, minimum=False, scale_dtype="int8"),
        BlockFormat("q4_k", 4, 32, 0, minimum=True, scale_dtype="int8"),
        BlockFormat("q5_k", 8, 32, 0, minimum=True, scale_dtype="int8"),
        BlockFormat("q6_k", 8, 16, 32, minimum=False, scale_dtype="int8"),
        BlockFormat("iq4_nl", 8, 32, 128, minimum=False),
        BlockFormat("iq4_xs", 8, 32, 128, minimum=False, scale_dtype="int8"),
    )
}


def joined_format(types: Sequence[str]) -> BlockFormat:
    """The format of a matrix whose rows come in `types` (q, k and v of different ones, say): holds each exactly.

    Codes are bytes, groups the smallest, and scales are two-level only where all are. Raises KeyError for a type that
    is none of FORMATS.
    """
    forms = [FORMATS[name] for name in sorted(set(types))]
    if len(forms) == 1:
        return forms[0]
    dtypes = {form.scale_dtype for form in forms}
    return BlockFormat(
        "+".join(form.name for form in forms),
        bits=8,
        group_size=min(form.group_size for form in forms),
        zero_point=max(form.zero_point for form in forms),  # codes that are moved there are bytes still
        minimum=any(form.minimum for form in forms),
        scale_dtype=dtypes.pop() if len(dtypes) == 1 else "float32",
    )


class Parts(NamedTuple):
    """n blocks: codes uint8 [n, inputs], scales and minima [n, groups], their factors float16 [n, 1] in the K types."""

    codes: Bytes
    scale: Array
    minimum: Array | None = None
    super_scale: Array | None = None
    super_minimum: Array | None = None


def take_apart(data: Bytes, type_name: str, form: BlockFormat) -> tuple[Array, ...]:
    """Rows of blocks [rows, bytes] of one type as the tensors that `form`, theirs or a joined one, stores."""
    block = next(block for block in BLOCK_TYPES.values() if block.name.lower() == type_name)
    rows, columns = len(data), data.shape[1] // block.nbytes * block.elements
    tensors = {
        name: np.empty(shape, numpy_dtype(dtype)) for name, (shape, dtype) in form.records(rows, columns).items()
    }

    def work(start: int, stop: int) -> None:
        parts = _UNPACK[type_name](np.ascontiguousarray(data[start:stop]).reshape(-1, block.nbytes))
        for name, value in _as_stored(parts, FORMATS[type_name], form).items():
            tensors[name][start:stop] = value.reshape(stop - start, -1)

    for_blocks(rows, max(1, BLOCK_ELEMENTS // columns), work)
    return tuple(tensors.values())


def _as_stored(parts: Parts, own: BlockFormat, form: BlockFormat) -> dict[str, Array]:
    """The tensors of a few blocks of type `own` in `form`."""
    scale, super_scale = parts.scale, parts.super_scale
    minimum = np.zeros_like(scale) if parts.minimum is None else parts.minimum
    super_minimum = np.zeros((len(scale), 1), np.float16) if parts.super_minimum is None else parts.super_minimum
    if super_scale is not None and not form.super_size:
        scale = scale * super_scale.astype(np.float32)  # exact: 8 bits times 11
        minimum = minimum * super_minimum.astype(np.float32)
    repeats = own.group_size // form.group_size
    tensors = {
        "q_weight": _words(parts.codes + np.uint8(form.zero_point - own.zero_point), form.bits),
        "q_scale": np.repeat(scale, repeats, axis=1),
        "q_min": np.repeat(minimum, repeats, axis=1),
        "q_super_scale": super_scale,
        "q_super_min": super_minimum,
    }
    return {name: value for name in form.records(1, SUPER_SIZE) if (value := tensors[name]) is not None}


def _words(codes: Bytes, bits: int) -> npt.NDArray[np.uint32]:
    """Codes [n, inputs] in 32-bit words, the first in the lowest bits."""
    if bits == 4:
        codes = codes[:, 0::2] | (codes[:, 1::2] << np.uint8(4))
    return np.ascontiguousarray(codes).view("<u4")


def _half(data: Bytes) -> Array:
    return np.ascontiguousarray(data).view("<f2")


def _fields(data: Bytes, run: int, bits: int) -> Bytes:
    """Bit fields of bytes [n, m] as [n, m * 8 / bits]: of each `run` bytes first the lowest fields, then the next."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    fields: Bytes = (data.reshape(len(data), -1, 1, run) >> shifts) & np.uint8(2**bits - 1)
    return fields.reshape(len(data), -1)


def _fifth_bits(data: Bytes) -> Bytes:
    """The fifth bits of 32 codes, [n, 4] -> [n, 32], in their place."""
    bits: Bytes = np.unpackbits(data, axis=1, bitorder="little") << np.uint8(4)
    return bits


def _unpack_q4_0(blocks: Bytes) -> Parts:
    return Parts(_fields(blocks[:, 2:], 16, 4), _half(blocks[:, :2]))


def _unpack_q4_1(blocks: Bytes) -> Parts:
    return Parts(_fields(blocks[:, 4:], 16, 4), _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _unpack_q5_0(blocks: Bytes) -> Parts:
    return Parts(_fields(blocks[:, 6:], 16, 4) | _fifth_bits(blocks[:, 2:6]), _half(blocks[:, :2]))


def _unpack_q5_1(blocks: Bytes) -> Parts:
    codes = _fields(blocks[:, 8:], 16, 4) | _fifth_bits(blocks[:, 4:8])
    return Parts(codes, _half(blocks[:, :2]), _half(blocks[:, 2:4]))


def _unpack_q8_0(blocks: Bytes) -> Parts:
    return Parts(blocks[:, 2:] ^ np.uint8(0x80), _half(blocks[:, :2]))  # signed bytes, moved by 128


def _unpack_q2_k(blocks: Bytes) -> Parts:
    """16 bytes of scale and minimum, 4 bits each; 64 bytes of codes; two factors."""
    scales = blocks[:, :16]
    scale, minimum = (scales & np.uint8(15)).view(np.int8), (scales >> np.uint8(4)).view(np.int8)
    return Parts(_fields(blocks[:, 16:80], 32, 2), scale, minimum, _half(blocks[:, 80:82]), -_half(blocks[:, 82:84]))


def _unpack_q3_k(blocks: Bytes) -> Parts:
    """32 bytes of the third bits, 64 bytes of the lower two, 12 bytes of 6-bit scales, one factor."""
    codes = _fields(blocks[:, 32:96], 32, 2) | (_fields(blocks[:, :32], 32, 1) << np.uint8(2))
    low, high = _fields(blocks[:, 96:104], 8, 4), _fields(blocks[:, 104:108], 4, 2)
    scale = (low | (high << np.uint8(4))).view(np.int8) - np.int8(32)
    return Parts(codes, scale, None, _half(blocks[:, 108:110]))


def _scales_and_minima(packed: Bytes) -> tuple[Array, Array]:
    """Eight 6-bit scales and minima out of the 12 bytes of Q4_K and Q5_K."""
    scale, minimum, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, top = np.uint8(63), np.uint8(0x30)
    scales = [scale & low, (rest & np.uint8(15)) | ((scale >> np.uint8(2)) & top)]
    minima = [minimum & low, (rest >> np.uint8(4)) | ((minimum >> np.uint8(2)) & top)]
    return np.concatenate(scales, axis=1).view(np.int8), np.concatenate(minima, axis=1).view(np.int8)


def _unpack_q4_k(blocks: Bytes) -> Parts:
    """Two factors, 12 bytes of scales and minima, 128 bytes of codes."""
    scale, minimum = _scales_and_minima(blocks[:, 4:16])
    return Parts(_fields(blocks[:, 16:], 32, 4), scale, minimum, _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _unpack_q5_k(blocks: Bytes) -> Parts:
    """As Q4_K, with 32 bytes of the fifth bits before the codes."""
    scale, minimum = _scales_and_minima(blocks[:, 4:16])
    codes = _fields(blocks[:, 48:], 32, 4) | (_fields(blocks[:, 16:48], 32, 1) << np.uint8(4))
    return Parts(codes, scale, minimum, _half(blocks[:, :2]), -_half(blocks[:, 2:4]))


def _unpack_q6_k(blocks: Bytes) -> Parts:
    """128 bytes of the lower four bits, 64 of the upper two, 16 signed scales, one factor."""
    codes = _fields(blocks[:, :128], 64, 4) | (_fields(blocks[:, 128:192], 32, 2) << np.uint8(4))
    return Parts(codes, blocks[:, 192:208].view(np.int8), None, _half(blocks[:, 208:]))


def _unpack_iq4_nl(blocks: Bytes) -> Parts:
    """As Q4_0, with codes that stand for the bytes of a table."""
    return Parts(_IQ4_VALUES[_fields(blocks[:, 2:], 16, 4)], _half(blocks[:, :2]))


def _unpack_iq4_xs(blocks: Bytes) -> Parts:
    """One factor, 2 and 4 bytes of 6-bit scales, 128 bytes of codes."""
    scale = _fields(blocks[:, 4:8], 1, 4) | (_fields(blocks[:, 2:4], 1, 2) << np.uint8(4))
    codes = _IQ4_VALUES[_fields(blocks[:, 8:], 16, 4)]
    return Parts(codes, scale.view(np.int8) - np.int8(32), None, _half(blocks[:, :2]))


_UNPACK: dict[str, Callable[[Bytes], Parts]] = {
    "q4_0": _unpack_q4_0,
    "q4_1": _unpack_q4_1,
    "q5_0": _unpack_q5_0,
    "q5_1": _unpack_q5_1,
    "q8_0": _unpack_q8_0,
    "q2_k": _unpack_q2_k,
    "q3_k": _unpack_q3_k,
    "q4_k": _unpack_q4_k,
    "q5_k": _unpack_q5_k,
    "q6_k": _unpack_q6_k,
    "iq4_nl": _unpack_iq4_nl,
    "iq4_xs": _unpack_iq4_xs,
}
