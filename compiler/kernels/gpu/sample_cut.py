"""The last launch that chooses tokens: top-k, top-p and min-p of what was collected, and the draw."""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .launch import cell, private
from .sample_row import NONE, Row, Walk, assign, increase, number, plus, weight
from .sample_workgroup import THREADS, Expr, Workgroup, settled

_DIGITS, _DIGIT_BITS = 15, 2  # of the bits of a weight, the largest of which is 1


def choose(row: Row, group: Workgroup) -> None:
    """Cut the collected tokens down, and draw one."""
    count = settled(row.found[0])
    with T.If(count > 0), T.Then():
        given, candidates = row.given, Candidates(row, group, count)
        total = cell(T.reinterpret(row.found[2], dtype="float32"))
        with T.serial(0, 2) as step:
            is_top_k = step == 0
            wanted = tirx.Select(is_top_k, T.cast(given["top_k"], "float32"), given["top_p"] * total[0])
            is_cut = tirx.Select(is_top_k, T.cast(given["top_k"] > 0, "int32"), T.cast(given["top_p"] < 1.0, "int32"))
            candidates.cut(settled(wanted), lambda weight: tirx.Select(is_top_k, T.float32(1), weight), is_cut)
            sum_ = candidates.sum()
            with T.If(given["top_k"] > 0), T.Then():
                assign(total, sum_)
        is_mine, rest = group.covering(candidates.own_sum(given["min_p"]), row.uniforms[0])
        with T.If(is_mine), T.Then():
            walk = Walk(rest)

            def visit(token: Expr, weight: Expr, _: Expr) -> None:
                with T.If(weight >= given["min_p"]), T.Then():
                    walk.visit(token, weight)

            candidates.each(visit)
            row.choose(walk.chosen[0])


class Candidates:
    """The collected tokens of a row, of which each thread has some that follow one another. Those are left that weigh
    more than `least`, and of those that weigh as much the ones up to token `last`."""

    def __init__(self, row: Row, group: Workgroup, count: Expr) -> None:
        self.row, self.group, self.count = row, group, count
        self.least, self.last = cell(0, "int32"), cell(NONE, "int32")
        self._largest = settled(number(row.found[1]))

    def each(self, do: Callable[[Expr, Expr, Expr], None]) -> None:
        """do(token, weight, its bits) for those of this thread that are left."""
        per_thread = settled((self.count + (THREADS - 1)) // THREADS)
        first = settled(self.group.thread * per_thread)
        with T.serial(0, T.max(T.min(per_thread, self.count - first), 0)) as i:
            token = settled(self.row.ids[first + i])
            logit = settled(self.row.logits[token])
            weighs = settled(weight(settled((logit - self._largest) * self.row.given["scale"])))
            bits = settled(T.reinterpret(weighs, dtype="int32"))
            is_left = tirx.any(bits > self.least[0], tirx.all(bits == self.least[0], token <= self.last[0]))
            with T.If(is_left), T.Then():
                do(token, weighs, bits)

    def own_sum(self, least: Expr) -> Expr:
        """The sum of this thread's weights that are at least so much."""
        own = cell(0.0)

        def add(_: Expr, weight: Expr, bits: Expr) -> None:
            with T.If(weight >= least), T.Then():
                increase(own, weight)

        self.each(add)
        return settled(own[0])

    def sum(self) -> Expr:
        """The sum of the weights that are left."""
        return self.group.one(self.own_sum(T.float32(0)), plus, "float32")

    def cut(self, wanted: Expr, amount: Callable[[Expr], Expr], is_cut: Expr) -> None:
        """Where `is_cut` is 1 and not 0, keep the fewest of the largest weights whose amounts add up to at least
        `wanted`; all if none do.

        The least weight that stays is found digit by digit of its bits: positive floats are ordered as their bits are.
        Sums of more numbers, added in the same order, are never less, whatever is rounded. There is a loop of no steps
        in place of a condition: PoCL copies what follows a condition with barriers.
        """
        group, least, highest = self.group, cell(0, "int32"), (1 << _DIGIT_BITS) - 1
        sums = private(highest)  # with the next digit at least 1, 2, ...
        with T.serial(0, is_cut * _DIGITS) as known:
            shift = settled(T.cast(_DIGIT_BITS * (_DIGITS - 1 - known), "int32"))
            for i in range(highest):
                T.buffer_store(sums, T.float32(0), [i])

            def add(_: Expr, weight: Expr, bits: Expr) -> None:
                for i in range(highest):
                    is_in = bits >= (least[0] | ((i + 1) << shift))
                    T.buffer_store(sums, sums[i] + tirx.Select(is_in, amount(weight), T.float32(0)), [i])

            self.each(add)
            for total in group.reduce([sums[i] for i in range(highest)], plus, "float32"):
                with T.If(total >= wanted), T.Then():
                    increase(least, T.int32(1) << shift)
        with T.serial(0, is_cut):
            self._keep(settled(least[0]), wanted, amount)

    def _keep(self, least: Expr, wanted: Expr, amount: Callable[[Expr], Expr]) -> None:
        """Keep what weighs more than `least` (its bits), and as many of the equals as it takes."""
        above, equals, last = cell(0.0), cell(0, "int32"), cell(NONE, "int32")

        def add(_: Expr, weight: Expr, bits: Expr) -> None:
            increase(above, tirx.Select(bits > least, amount(weight), T.float32(0)))
            increase(equals, T.cast(bits == least, "int32"))

        self.each(add)
        missing = settled(wanted - self.group.one(above[0], plus, "float32"))
        # devices divide with an error of a few units in the last place, which shall not ask for one more
        share = missing / amount(T.reinterpret(least, dtype="float32")) * T.float32(1 - 2**-21)
        needed = settled(T.cast(T.ceil(share), "int32"))
        before, upto, _ = self.group.running_sum(equals[0], "int32")
        seen = cell(before, "int32")

        def find(token: Expr, _: Expr, bits: Expr) -> None:
            with T.If(bits == least), T.Then():
                increase(seen, T.int32(1))
                with T.If(seen[0] == needed), T.Then():
                    assign(last, token)

        with T.If(tirx.all(before < needed, needed <= upto)), T.Then():
            self.each(find)
        last = self.group.one(last[0], T.min, "int32")
        with T.If(tirx.all(least > 0, least >= self.least[0])), T.Then():
            assign(self.last, tirx.Select(least > self.least[0], last, T.min(last, self.last[0])))
            assign(self.least, least)
