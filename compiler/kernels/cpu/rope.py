# mypy: ignore-errors
"""Rotary position embedding on the CPU: splits fused q, k, v and rotates q and k.

The frequencies are constants of the kernel, so every RoPE type that has a table of them is the same code. Cosines and
sines are computed once a token and applied to all of its heads.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tvm.script import tirx as T

from .vector import Expr, VectorUnit, constant, copy, load, sincos, span, splat, store, table


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
    for start in range(0, len(rotation.frequencies), unit.lanes):
        angle = T.bind(turn * table(rotation.frequencies[start : start + unit.lanes]))
        sine, cosine = sincos(angle, unit.lanes)
        T.buffer_store(cosines, cosine * factor, [span(start, unit.lanes)])
        T.buffer_store(sines, sine * factor, [span(start, unit.lanes)])


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


def split_rotary(num_q_heads: int, num_kv_heads: int, rotation: Rotation, dtype: str, unit: VectorUnit):
    """PrimFunc(qkv [n, q + 2 kv heads, d], positions [n], q [n, q heads, d], k [n, kv heads, d], v, apply_rope)."""
    head_dim, half = rotation.head_dim, len(rotation.frequencies)
    fused_heads = num_q_heads + 2 * num_kv_heads
    whole = unit.dividing(head_dim)

    def angles(position, apply_rope, cosines, sines):
        with T.If(apply_rope > 0):
            with T.Then():
                emit_angles(rotation, unit, position, cosines, sines)
            with T.Else(), T.serial(half) as i:
                T.buffer_store(cosines, T.float32(1), [i])
                T.buffer_store(sines, T.float32(0), [i])

    def token(t, qkv, positions, q, k, v, apply_rope):
        cosines, sines = T.alloc_buffer((half,), "float32"), T.alloc_buffer((half,), "float32")
        angles(positions[t], apply_rope, cosines, sines)
        for target, first, heads in ((q, 0, num_q_heads), (k, num_q_heads, num_kv_heads)):
            with T.serial(heads) as h:
                emit_rotate(rotation, unit, (qkv, (t, first + h, 0)), (target, (t, h, 0)), cosines, sines)
        with T.serial(num_kv_heads) as h:
            copy(whole, v, (t, h, 0), qkv, (t, num_q_heads + num_kv_heads + h, 0), head_dim)

    @T.prim_func(s_tir=True)
    def split_rotary(
        qkv_handle: T.handle,
        positions_handle: T.handle,
        q_handle: T.handle,
        k_handle: T.handle,
        v_handle: T.handle,
        apply_rope: T.int64,
    ):
        T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True})
        n = T.int32()
        positions_offset = T.int32()
        qkv = T.match_buffer(qkv_handle, (n, fused_heads, head_dim), dtype)
        positions = T.match_buffer(positions_handle, (n,), "int32", elem_offset=positions_offset)
        q = T.match_buffer(q_handle, (n, num_q_heads, head_dim), dtype)
        k = T.match_buffer(k_handle, (n, num_kv_heads, head_dim), dtype)
        v = T.match_buffer(v_handle, (n, num_kv_heads, head_dim), dtype)
        with T.sblock("root"):
            if n < 8:  # a parallel region costs more than a few tokens
                for t in T.serial(n):
                    token(t, qkv, positions, q, k, v, apply_rope)
            else:
                for t in T.parallel(n):
                    token(t, qkv, positions, q, k, v, apply_rope)

    return split_rotary
