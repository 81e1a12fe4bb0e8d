# mypy: ignore-errors
"""Rotary position embedding on the CPU.

The frequencies are constants of the kernel, so every RoPE type that has a table of them is the same code. Cosines and
sines are computed once a token and applied to all of its heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from .vector import Expr, VectorUnit, constant, each, load, sincos, span, splat, store, table


@dataclass(frozen=True)
class Rotation:
    """Inverse frequencies `[rotary_dim / 2]` and the factor of cosine and sine, as compile-time constants."""

    frequencies: tuple[float, ...]
    attention_factor: float
    head_dim: int

    def unit(self, unit: VectorUnit) -> VectorUnit:
        """The unit whose vectors divide both rotated halves and what is left of the head."""
        return unit.dividing(len(self.frequencies), self.head_dim)


def emit_angles(rotation: Rotation, unit: VectorUnit, position: Expr, cosines: Expr, sines: Expr) -> None:
    """Write cosine and sine of `position` times each inverse frequency (the product in float32, as transformers has
    it) to two buffers of `rotary_dim / 2` float32."""
    unit = rotation.unit(unit)
    turn = T.bind(splat(T.cast(position, "float32"), unit.lanes))
    factor = constant(rotation.attention_factor, unit.lanes)
    starts = range(0, len(rotation.frequencies), unit.lanes)
    for start in starts:
        angle = turn * table(rotation.frequencies[start : start + unit.lanes])
        T.buffer_store(cosines, angle, [span(start, unit.lanes)])

    def emit(i: Expr) -> None:
        place = span(i * unit.lanes, unit.lanes)
        sine, cosine = sincos(T.bind(cosines[place]), unit.lanes)
        T.buffer_store(cosines, cosine * factor, [place])
        T.buffer_store(sines, sine * factor, [place])

    each(len(starts), emit)


def emit_rotate(
    rotation: Rotation,
    unit: VectorUnit,
    source: tuple[Expr, Sequence[Expr]],
    target: tuple[Expr, Sequence[Expr]],
    cosines: Expr,
    sines: Expr,
    scale: Callable[[Expr], Expr] = lambda vector: vector,
) -> None:
    """Rotate one head: dimension i of the first half and i of the second half are one complex number.

    `source` and `target` are a buffer and the index of the head's first element; `scale` is applied to what is written.
    """
    unit, half = rotation.unit(unit), len(rotation.frequencies)
    (read, at), (write, to) = source, target
    for d in range(0, half, unit.lanes):
        a, b = load(unit, read, *at[:-1], at[-1] + d), load(unit, read, *at[:-1], at[-1] + half + d)
        cosine, sine = cosines[span(d, unit.lanes)], sines[span(d, unit.lanes)]
        store(unit, write, scale(a * cosine - b * sine), *to[:-1], to[-1] + d)
        store(unit, write, scale(b * cosine + a * sine), *to[:-1], to[-1] + half + d)
    for d in range(2 * half, rotation.head_dim, unit.lanes):
        store(unit, write, scale(load(unit, read, *at[:-1], at[-1] + d)), *to[:-1], to[-1] + d)
