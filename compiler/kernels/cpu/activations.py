"""Activations as integers: what integer matrix kernels multiply the codes of quantized weights by.

A row of x is cut into the groups of the weights. Each group has one float32 scale and is rounded to 8 bits (one plane
of signed bytes, |q| <= 127) or 16 bits (two planes, q = 256 high + low, |q| <= 127 * 256; one plane of 16-bit numbers
where instructions multiply those):

    x[k] ~ scale[group] * q[k]

Kernels multiply a word at a time: an int32 of four bytes or of two 16-bit numbers. They take words of codes out of the
stored ones by shifts and masks, and activations lie in that order: (0 2 4 6) (1 3 5 7) ... for bytes and 4-bit codes.
"""
# mypy: ignore-errors

import math
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ..builder import load, local, splat, store
from ..storage import GroupStorage
from .dot import IntegerDot
from .vector import add, reduce

_LARGEST = {8: 127.0, 16: 127.0 * 256}  # bits -> the largest |q|
_SMALLEST = 1e-30  # of a group's largest |x|: its reciprocal is finite
_ROUND = 12582912.0  # 1.5 * 2^23: a float32 sum with it holds the rounded number in its low bits
_ROUND_BITS = 0x4B400000


@dataclass(frozen=True)
class ActivationFormat:
    """How rows of x [columns] are stored to be multiplied by weights of `storage`."""

    storage: GroupStorage
    columns: int
    dot: IntegerDot
    activation_bits: int  # at least: 8 or 16

    @property
    def groups(self) -> int:
        return self.storage.groups(self.columns)

    @property
    def bits(self) -> int:
        return max(self.activation_bits, self.dot.number_bits)

    @property
    def planes(self) -> int:
        return self.bits // self.dot.number_bits

    @property
    def plane_words(self) -> int:
        """Words of one plane of a group."""
        return self.storage.group_size * self.dot.number_bits // 32

    @property
    def words(self) -> int:
        """Words of a group of one row, its planes one after the other, the high bytes first."""
        return self.plane_words * self.planes

    @property
    def zero_point(self) -> int:
        """The zero point of the codes as they are multiplied."""
        return self.storage.zero_point - self.dot.code_offset(self.storage.bits)


class Activations:
    """Quantized rows in blocks of `rows`: [block, group, row of the block, ...], so that a kernel that holds the
    weights of a group in registers reads the rows one after the other."""

    def __init__(self, form: ActivationFormat, blocks, rows: int) -> None:
        self.form, self.rows = form, rows
        shape = (blocks, form.groups, rows)
        self.codes = T.sblock_alloc_buffer((*shape, form.words), "int32")
        self.scales = T.sblock_alloc_buffer(shape, "float32")
        self.offsets = T.sblock_alloc_buffer(shape, "int32")  # -zero_point * sum of q: what the zero point adds
        self.sums = T.sblock_alloc_buffer(shape, "float32") if form.storage.minimum else None  # of x, for the minima

    def quantize(self, block, row, value) -> None:
        """Store one row; `value(column, lanes)` is x at consecutive columns as float32."""
        form, storage = self.form, self.form.storage
        width = math.gcd(16, storage.group_size)
        vectors = storage.group_size // width

        def group_of(g, columns_left: int) -> None:
            parts = []
            for v in range(vectors):
                part = local(width)
                whole = max(0, min(width, columns_left - v * width))
                if whole == width:
                    store(part, value(g * storage.group_size + v * width, width), width)
                else:
                    store(part, splat(T.float32(0), width), width)
                    for i in range(whole):
                        T.buffer_store(part, value(g * storage.group_size + v * width + i, 1), [i])
                parts.append(part)
            self._quantize_group(block, g, row, parts, width)

        whole_groups = form.columns // storage.group_size
        with T.serial(0, whole_groups) as g:
            group_of(g, storage.group_size)
        if form.columns % storage.group_size:
            group_of(whole_groups, form.columns % storage.group_size)

    def _quantize_group(self, block, g, row, parts, width: int) -> None:
        form = self.form
        place = (block, g, row)
        peak, scalars = local(width), local(3)  # scalars: largest |x|, scale, 1 / scale
        store(peak, T.abs(load(parts[0], width)), width)
        for part in parts[1:]:
            store(peak, T.max(load(peak, width), T.abs(load(part, width))), width)
        T.buffer_store(scalars, T.max(reduce(load(peak, width), width, T.max), T.float32(_SMALLEST)), [0])
        T.buffer_store(scalars, scalars[0] * T.float32(1 / _LARGEST[form.bits]), [1])
        T.buffer_store(scalars, T.float32(_LARGEST[form.bits]) / scalars[0], [2])
        T.buffer_store(self.scales, scalars[1], [*place])
        total, code = local(width, "int32"), local(width, "int32")
        for v, part in enumerate(parts):
            shifted = load(part, width) * splat(scalars[2], width) + splat(T.float32(_ROUND), width)
            bits = T.reinterpret(shifted, dtype=f"int32x{width}")
            store(code, bits - splat(T.int32(_ROUND_BITS), width), width)
            store(total, load(total, width) + load(code, width) if v else load(code, width), width)
            planes = [load(code, width)]
            if form.planes == 2:  # bytes are cut off: the low one is the code modulo 256, from -128
                planes.insert(
                    0, T.shift_right(load(code, width) + splat(T.int32(128), width), splat(T.int32(8), width))
                )
            for plane, values in enumerate(planes):
                count = width * form.dot.number_bits // 32
                index = T.ramp(plane * form.plane_words + v * count, 1, count)
                T.buffer_store(self.codes, _words(form, values, width), [*place, index])
        q = local(1, "int32")
        T.buffer_store(q, reduce(load(total, width), width, add), [0])
        T.buffer_store(self.offsets, q[0] * T.int32(-form.zero_point), [*place])
        if self.sums is not None:
            T.buffer_store(self.sums, T.cast(q[0], "float32") * scalars[1], [*place])


def _words(form: ActivationFormat, values, width: int):
    """int32 x width -> words of their low bits, in the order of the codes in words that are taken out."""
    bits = form.dot.number_bits
    taken = bits // form.storage.bits  # out of a stored word
    values = T.cast(values, f"int{bits}x{width}")
    if taken > 1:
        order = [
            first + i + taken * j
            for first in range(0, width, form.storage.codes_per_word)
            for i in range(taken)
            for j in range(32 // bits)
        ]
        values = tirx.Shuffle([values], order)
    return T.reinterpret(values, dtype=f"int32x{width * bits // 32}")
