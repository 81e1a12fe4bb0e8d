"""The first two launches that choose tokens: blocks are reduced; each row is drawn from, or what its cuts can keep is
collected."""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import SAMPLING_BLOCK
from .launch import barrier, cell, private, shared
from .sample_row import INFINITY, LAST_FLOOR, LOWEST_KEY, NONE, Row, Walk, assign, increase, number, plus, weight
from .sample_workgroup import THREADS, Expr, Workgroup, settled

_LANES = 16  # threads that share a block in `reduce_blocks`
BLOCKS_AT_ONCE = THREADS // _LANES
_FIRST_FLOOR = -8.0  # exponents of 2: nearly all of the weight of most distributions is above it


def reduce_blocks(row: Row, chunk: Expr, thread: Expr) -> None:
    """`keys` and `sums` of 16 blocks, by 16 threads each."""
    lane, block = settled(thread % _LANES), settled(chunk * BLOCKS_AT_ONCE + thread // _LANES)
    keys, sums = shared([THREADS], "int32"), shared([THREADS])
    own, per_lane = private(SAMPLING_BLOCK // _LANES, "int32"), SAMPLING_BLOCK // _LANES
    largest = cell(LOWEST_KEY, "int32")
    for i in range(per_lane):
        place = settled(block * SAMPLING_BLOCK + i * _LANES + lane)
        T.buffer_store(own, T.int32(LOWEST_KEY), [i])
        with T.If(place < row.count), T.Then():
            T.buffer_store(own, row.key(place), [i])
        T.buffer_store(largest, T.max(largest[0], own[i]), [0])
    T.buffer_store(keys, largest[0], [thread])
    barrier()
    with T.serial(0, _LANES) as i:
        T.buffer_store(largest, T.max(largest[0], keys[thread // _LANES * _LANES + i]), [0])
    barrier()  # the two arrays may have the same memory
    top = settled(number(largest[0]))
    sum_ = cell(0.0)
    for i in range(per_lane):
        with T.If(own[i] > LOWEST_KEY), T.Then():
            increase(sum_, weight((number(own[i]) - top) * row.given["scale"]))
    T.buffer_store(sums, sum_[0], [thread])
    barrier()
    with T.If(tirx.all(lane == 0, block < row.keys.shape[0])), T.Then():
        with T.serial(1, _LANES) as i:
            increase(sum_, sums[thread + i])
        T.buffer_store(row.keys, largest[0], [block])
        T.buffer_store(row.sums, sum_[0], [block])


class Blocks:
    """The blocks of a row, of which each thread has some that follow one another."""

    def __init__(self, row: Row, group: Workgroup) -> None:
        self.row, self.group, self.largest = row, group, None

    def each(self, do: Callable[[Expr, Expr], None]) -> None:
        """do(block, its key) for the blocks of this thread."""
        count = int(self.row.keys.shape[0])
        per_thread = -(-count // THREADS)
        with T.serial(0, per_thread) as i:
            block = settled(self.group.thread * per_thread + i)
            with T.If(block < count), T.Then():
                do(block, settled(self.row.keys[block]))

    def exponent(self, key: Expr) -> Expr:
        """That of a logit's weight."""
        return settled((number(key) - self.largest) * self.row.given["scale"])

    def sum(self, block: Expr, key: Expr) -> Expr:
        """Of the weights of a block."""
        return settled(self.row.sums[block] * weight(self.exponent(key)))

    def tokens(self, block: Expr, floor: Expr, do: Callable[[Expr, Expr], None]) -> None:
        """do(token, its weight) for those of a block with an exponent of at least `floor`."""
        with T.serial(0, SAMPLING_BLOCK) as i:
            token = settled(block * SAMPLING_BLOCK + i)
            with T.If(token < self.row.count), T.Then():
                exponent = self.exponent(self.row.key(token))
                with T.If(exponent >= floor), T.Then():
                    do(token, settled(weight(exponent)))

    def most_likely(self) -> tuple[Expr, Expr]:
        """The first of the largest logits; a NaN is larger than all. Returns its token and key."""
        own, place, token = cell(LOWEST_KEY, "int32"), cell(NONE, "int32"), cell(NONE, "int32")

        def look(block: Expr, key: Expr) -> None:
            with T.If(tirx.any(key > own[0], place[0] == NONE)), T.Then():
                assign(own, key)
                assign(place, block)

        self.each(look)
        largest = self.group.one(own[0], T.max, "int32")
        block = self.group.one(tirx.Select(own[0] == largest, place[0], T.int32(NONE)), T.min, "int32")
        here = settled(block * SAMPLING_BLOCK + self.group.thread)
        is_here = tirx.all(self.group.thread < SAMPLING_BLOCK, here < self.row.count)
        with T.If(is_here), T.Then(), T.If(self.row.key(here) == largest), T.Then():
            assign(token, here)
        return self.group.one(token[0], T.min, "int32"), largest


def collect(row: Row, group: Workgroup) -> None:
    """The most likely token, the draw where nothing is cut, or the tokens that the cuts can keep."""
    given, blocks = row.given, Blocks(row, group)
    token, largest = blocks.most_likely()
    is_finite = tirx.all(largest < INFINITY, largest > -INFINITY)
    draws = tirx.all(given["scale"] > T.float32(0), is_finite)
    cuts = tirx.any(given["top_k"] > 0, given["top_p"] < T.float32(1), given["min_p"] > T.float32(0))
    with T.If(group.thread == 0), T.Then():
        T.buffer_store(row.found, T.int32(0), [0])
        with T.If(tirx.Not(draws)), T.Then():
            row.choose(tirx.Select(is_finite, token, -1 - token))
    with T.If(draws), T.Then():
        blocks.largest = settled(number(largest))
        own = cell(0.0)
        blocks.each(lambda block, key: increase(own, blocks.sum(block, key)))
        with T.If(cuts):
            with T.Then():
                _collect_candidates(blocks, group.one(own[0], plus, "float32"), largest)
            with T.Else():
                is_mine, rest = group.covering(own[0], row.uniforms[0])
                with T.If(is_mine), T.Then():
                    _draw(blocks, rest)


def _draw(blocks: Blocks, rest: Expr) -> None:
    """By one thread: find the block of its own in whose share of the running sum `rest` lies, then the token in it."""
    row = blocks.row
    walk = Walk(rest)
    share = cell(0.0)

    def look(block: Expr, key: Expr) -> None:
        sum_ = blocks.sum(block, key)
        walk.visit(block, sum_, lambda: assign(share, sum_))

    blocks.each(look)
    block, exact = settled(walk.chosen[0]), cell(0.0)
    # The block's sum was rounded: what counts is which part of it the target takes.
    part = settled((rest - walk.before[0]) / share[0])
    floor = T.float32(LAST_FLOOR)
    blocks.tokens(block, floor, lambda token, weight: increase(exact, weight))
    inside = Walk(settled(part * exact[0]))
    blocks.tokens(block, floor, inside.visit)
    row.choose(inside.chosen[0])


def _collect_candidates(blocks: Blocks, total: Expr, largest: Expr) -> None:
    """Write to `ids` the tokens above a floor, which sinks until they suffice for the cuts."""
    row, group, given = blocks.row, blocks.group, blocks.row.given
    is_top_k = given["top_k"] > 0
    lowest = settled(tirx.Select(is_top_k, T.float32(LAST_FLOOR), given["least"]))
    # so little is left out by such a top_p that rounding of the sums would show
    begin = tirx.Select(given["top_p"] > T.float32(0.999), lowest, T.float32(_FIRST_FLOOR))
    begin = tirx.Select(is_top_k, T.float32(_FIRST_FLOOR), begin)
    floor, searching = cell(T.max(begin, lowest)), cell(1, "int32")
    total, own = cell(total), cell(0, "int32")

    def above_floor(do: Callable[[Expr, Expr], None]) -> None:
        def look(block: Expr, key: Expr) -> None:
            with T.If(blocks.exponent(key) >= floor[0]), T.Then():
                blocks.tokens(block, floor[0], do)

        blocks.each(look)

    with T.While(searching[0] == 1):
        mass = cell(0.0)
        assign(own, T.int32(0))

        def count(_: Expr, weight: Expr, mass=mass) -> None:
            increase(own, T.int32(1))
            increase(mass, weight)

        above_floor(count)
        number_ = group.one(own[0], plus, "int32")
        sum_ = group.one(mass[0], plus, "float32")
        by_mass = tirx.all(tirx.Not(is_top_k), sum_ >= given["top_p"] * total[0])
        enough = tirx.any(tirx.all(is_top_k, number_ >= given["top_k"]), by_mass)
        with T.If(tirx.any(enough, floor[0] <= lowest)):
            with T.Then():
                assign(searching, T.int32(0))
                with T.If(floor[0] <= T.float32(LAST_FLOOR)), T.Then():
                    assign(total, sum_)
            with T.Else():
                assign(floor, T.max(floor[0] * T.float32(1.5), lowest))
    before, _, all_ = group.running_sum(own[0], "int32")
    place = cell(before, "int32")

    def write(token: Expr, _: Expr) -> None:
        T.buffer_store(row.ids, token, [place[0]])
        increase(place, T.int32(1))

    above_floor(write)
    with T.If(group.thread == 0), T.Then():
        for i, value in enumerate((all_, largest, T.reinterpret(total[0], dtype="int32"))):
            T.buffer_store(row.found, value, [i])
