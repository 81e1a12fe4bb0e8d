"""What the threads of a workgroup find out together: sums and running sums of one number from each, always in the same
order, so that the same numbers give the same result to the last bit.

    values      | 0 .. 15 | 16 .. 31 | ... | 240 .. 255 |      one of each thread
    parts       |   p0    |    p1    | ... |    p15     |      one for 16 threads, who wait meanwhile
"""
# mypy: ignore-errors

from collections.abc import Callable, Sequence

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .launch import barrier, cell, shared

THREADS = 256
_PART = 16  # threads whose numbers one thread adds up
_MOST_AT_ONCE = 3

Expr = object  # a TIR expression; tvm is not typed


def settled(value: Expr) -> Expr:
    """A value, computed here and once: TVM's simplifier writes out again what `T.bind` names."""
    return cell(value, str(value.ty.dtype))[0]


class Workgroup:
    """`THREADS` threads. All of them call its methods, at the same places.

    Each method ends with a barrier: TVM lets arrays that are not used at the same time have the same shared memory.
    """

    def __init__(self, thread: Expr) -> None:
        """`thread`: the number of the one that runs the code."""
        self.thread = thread
        self._memory = {
            dtype: [shared([_MOST_AT_ONCE * size], dtype) for size in (THREADS, _PART, 1)]
            for dtype in ("int32", "float32")
        }

    def reduce(self, values: Sequence[Expr], combine: Callable[[Expr, Expr], Expr], dtype: str) -> list[Expr]:
        """Each of a thread's values combined with those of all threads."""
        count, (wide, parts, results) = len(values), self._memory[dtype]
        for i, value in enumerate(values):
            T.buffer_store(wide, value, [i * THREADS + self.thread])
        barrier()
        for number, source, target in ((_PART * count, wide, parts), (count, parts, results)):
            with T.If(self.thread < number), T.Then():
                combined = cell(source[self.thread * _PART], dtype)
                with T.serial(1, _PART) as i:
                    T.buffer_store(combined, combine(combined[0], source[self.thread * _PART + i]), [0])
                T.buffer_store(target, combined[0], [self.thread])
            barrier()
        combined = [settled(results[i]) for i in range(count)]
        barrier()
        return combined

    def one(self, value: Expr, combine: Callable[[Expr, Expr], Expr], dtype: str) -> Expr:
        """A thread's value combined with those of all threads."""
        return self.reduce([value], combine, dtype)[0]

    def running_sum(self, value: Expr, dtype: str) -> tuple[Expr, Expr, Expr]:
        """The sum of the values of the threads before this one, that with its own, and that of all.

        The first is, to the last bit, the second of the thread before.
        """
        wide, parts, _ = self._memory[dtype]
        sums = shared([THREADS], dtype)
        T.buffer_store(wide, value, [self.thread])
        barrier()
        with T.If(self.thread < _PART), T.Then():
            sum_ = cell(0, dtype)
            with T.serial(0, _PART) as i:
                T.buffer_store(sum_, sum_[0] + wide[self.thread * _PART + i], [0])
                T.buffer_store(sums, sum_[0], [self.thread * _PART + i])
            T.buffer_store(parts, sum_[0], [self.thread])
        barrier()
        offset, total, before = cell(0, dtype), cell(0, dtype), cell(0, dtype)
        with T.serial(0, _PART) as i:
            with T.If(i == self.thread // _PART), T.Then():
                T.buffer_store(offset, total[0], [0])
            T.buffer_store(total, total[0] + parts[i], [0])
        with T.If(self.thread % _PART > 0), T.Then():
            T.buffer_store(before, sums[self.thread - 1], [0])
        upto = settled(offset[0] + sums[self.thread])
        barrier()
        return settled(offset[0] + before[0]), upto, settled(total[0])

    def covering(self, own: Expr, uniform: Expr) -> tuple[Expr, Expr]:
        """Whether this is the thread whose share of the running sum of `own` covers `uniform` of the whole, and how
        far into its share that is. At the very end, where rounding lets no sum reach so far, it is the last thread
        that has a share."""
        before, upto, total = self.running_sum(own, "float32")
        target = settled(uniform * total)
        # the larger of the two counts where no thread covers it
        first = tirx.Select(upto > target, self.thread, T.int32(THREADS))
        last = tirx.Select(own > T.float32(0), -1 - self.thread, T.int32(0))
        first, last = self.reduce([first, last], T.min, "int32")
        chosen = settled(tirx.Select(first < THREADS, first, -1 - last))
        return self.thread == chosen, settled(target - before)
