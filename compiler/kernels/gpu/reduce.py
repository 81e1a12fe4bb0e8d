"""Sums over the threads of a workgroup: by shuffles where a target has subgroups, else through shared memory.

The order of the additions is fixed, so that the same input gives the same bits.
"""
# mypy: ignore-errors

from collections.abc import Sequence

from tvm.tirx.script.builder import ir as T

from ...target.target import GpuTraits
from ..builder import load
from ..storage import TILE
from .launch import barrier, private, shared, strided
from .matmul_weights import QUAD, QUADS, quad

_AT_ONCE = 4  # vectors of each thread that lie in shared memory at the same time


def power_of_two(most: int) -> int:
    """The largest power of two that is not more."""
    return 1 << (most.bit_length() - 1)


def shuffle(value, lane, subgroup: int):
    """The value of another lane of the subgroup. All lanes must come here."""
    return T.tvm_warp_shuffle(T.uint32(0xFFFFFFFF), value, lane, subgroup, subgroup)


def sum_of_workgroup(value, thread, threads: int, traits: GpuTraits):
    """The sum of a float32 over all threads, a power of two, which every one of them gets."""
    cells = private(1)
    T.buffer_store(cells, value, [0])
    parts, part = threads, thread
    if 1 < traits.subgroup <= threads:
        _sum_of_subgroup(cells, 1, thread, 1, traits.subgroup)
        parts, part = threads // traits.subgroup, T.floordiv(thread, traits.subgroup)
    if parts == 1:
        return cells[0]
    sums = shared([parts])
    T.buffer_store(sums, cells[0], [part])
    barrier()
    while parts > 1:
        parts //= 2
        with T.If(thread < parts), T.Then():
            T.buffer_store(sums, sums[thread] + sums[thread + parts], [thread])
        barrier()
    return sums[0]


def sum_over_slots(vectors: Sequence, thread, slots: int, traits: GpuTraits):
    """Shared memory [vectors, 16] with sums over slots, a power of two: thread slot * 4 + q holds, in each of some
    private buffers float32 [4], parts of the sums 4q..4q+3. All threads see the result."""
    result = shared([len(vectors), TILE])
    threads = slots * QUADS
    if traits.subgroup > QUADS:
        _by_shuffles(vectors, thread, threads, result, min(traits.subgroup, threads))
    else:
        parts = shared([min(len(vectors), _AT_ONCE), threads * QUAD])
        for first in range(0, len(vectors), _AT_ONCE):
            if first:
                barrier()
            _by_halves(vectors[first : first + _AT_ONCE], thread, slots, parts, result, first)
    barrier()
    return result


def _sum_of_subgroup(cells, count: int, thread, least: int, subgroup: int) -> None:
    """Sums over the lanes that agree modulo `least`, in all of them."""
    distance = subgroup // 2
    while distance >= least:
        lane = T.bitwise_xor(T.bitwise_and(thread, subgroup - 1), distance)
        for i in range(count):
            T.buffer_store(cells, cells[i] + shuffle(cells[i], lane, subgroup), [i])
        distance //= 2


def _by_shuffles(vectors: Sequence, thread, threads: int, result, subgroup: int) -> None:
    for cells in vectors:
        _sum_of_subgroup(cells, QUAD, thread, QUADS, subgroup)
    groups = threads // subgroup
    parts = result if groups == 1 else shared([groups * len(vectors), TILE])
    lane = T.bitwise_and(thread, subgroup - 1)
    with T.If(lane < QUADS), T.Then():
        for i, cells in enumerate(vectors):
            row = i if groups == 1 else T.floordiv(thread, subgroup) * len(vectors) + i
            T.buffer_store(parts, load(cells, QUAD), [row, quad(lane * QUAD)])
    if groups == 1:
        return
    barrier()
    with strided(thread, threads, len(vectors) * TILE) as i:
        row, column = T.floordiv(i, TILE), T.floormod(i, TILE)
        total = parts[row, column]
        for group in range(1, groups):
            total = total + parts[group * len(vectors) + row, column]
        T.buffer_store(result, total, [row, column])


def _by_halves(vectors: Sequence, thread, slots: int, parts, result, first: int) -> None:
    mine = quad(thread * QUAD)
    for i, cells in enumerate(vectors):
        T.buffer_store(parts, load(cells, QUAD), [i, mine])
    half = slots
    while half > 1:
        half //= 2
        barrier()
        with T.If(thread < half * QUADS), T.Then():
            for i in range(len(vectors)):
                other = quad((thread + half * QUADS) * QUAD)
                T.buffer_store(parts, parts[i, mine] + parts[i, other], [i, mine])
    with T.If(thread < QUADS), T.Then():
        for i in range(len(vectors)):
            T.buffer_store(result, parts[i, mine], [first + i, mine])
