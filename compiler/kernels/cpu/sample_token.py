"""Choosing tokens in one kernel: the most likely one, or a draw from the softmax at a temperature, cut down by top-k,
top-p and min-p.

Logits become weights 2^((logit - largest) * scale), of which the largest is 1. With the blocks' maxima and sums of
weights (sampling.py) only blocks with likely tokens are looked at:

    collect     tokens with an exponent above a floor, in the order of their ids; the floor sinks until they suffice
    cut         the least weight that is still in is found digit by digit of its bits, as in a radix sort: positive
                floats are ordered as their bits are. Of equal weights the lowest ids stay
    choose      the token whose share of the running sum of weights covers the random number

Without any cut the draw goes to one block by the sums, and to one of its tokens.
"""
# mypy: ignore-errors

from collections.abc import Callable

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from ....runtime.artifact import SAMPLING_BLOCK
from ..builder import kernel
from ..operations import SETTINGS
from .sampling import block_exp_sum, block_max, is_finite, is_nan, reduce_to_exp_sum, reduce_to_max
from .vector import Expr, exp2, settled

_DIGITS, _DIGIT_BITS = 5, 6  # of the bits of a weight, the largest of which is 1
_BINS = 1 << _DIGIT_BITS
_FIRST_FLOOR = -8.0  # exponents of 2: nearly all of the weight of most distributions is above it
_LEAST_WEIGHT = 1e-37
_LAST_FLOOR = -125.0  # exp2 goes no deeper: what is below has no weight


class Cell:
    """A variable."""

    def __init__(self, dtype: str, value: Expr) -> None:
        self.dtype, self._buffer = dtype, T.alloc_buffer((1,), dtype)
        self.set(value)

    def get(self) -> Expr:
        return self._buffer[0]

    def set(self, value: Expr) -> None:
        T.buffer_store(self._buffer, T.cast(value, self.dtype), [0])

    def add(self, value: Expr) -> None:
        self.set(self.get() + T.cast(value, self.dtype))


class Candidates:
    """The tokens that are left: `count` ids and weights in memory that the caller lends."""

    def __init__(self, ids, weights) -> None:
        self.ids, self.weights, self.count = ids, weights, Cell("int32", 0)

    def append(self, token: Expr, weight: Expr) -> None:
        T.buffer_store(self.ids, T.cast(token, "int32"), [self.count.get()])
        T.buffer_store(self.weights, weight, [self.count.get()])
        self.count.add(1)

    def each(self, do: Callable[[Expr, Expr, Expr], None]) -> None:
        """do(id, weight, its bits) for every candidate, in order."""
        with T.serial(0, self.count.get()) as i:
            weight = T.bind(self.weights[i])
            do(T.bind(self.ids[i]), weight, T.bind(T.reinterpret(weight, dtype="int32")))

    def cut(self, wanted: Expr, amount: Callable[[Expr], Expr]) -> None:
        """Keep the fewest of the largest weights whose amounts add up to at least `wanted`; all if none do."""
        wanted = settled(wanted, "float64")
        least, above = Cell("int32", 0), Cell("float64", 0.0)  # digits that are known; amount of all that is larger
        bins = T.alloc_buffer((_BINS,), "float64")
        with T.serial(0, _DIGITS) as known:
            shift = T.bind(T.cast(_DIGIT_BITS * (_DIGITS - 1 - known), "int32"))
            with T.serial(0, _BINS) as i:
                T.buffer_store(bins, T.float64(0), [i])
            prefix = settled(least.get())

            def count(token: Expr, weight: Expr, bits: Expr, shift: Expr = shift, prefix: Expr = prefix) -> None:
                with T.If((bits >> (shift + _DIGIT_BITS)) == prefix), T.Then():
                    digit = T.bind((bits >> shift) & (_BINS - 1))
                    T.buffer_store(bins, bins[digit] + amount(weight), [digit])

            self.each(count)
            digit, searching = Cell("int32", 0), Cell("int32", 1)
            with T.serial(0, _BINS) as back, T.If(searching.get() == 1), T.Then():
                bin_ = T.bind(T.cast(_BINS - 1 - back, "int32"))
                with T.If(above.get() + bins[bin_] >= wanted):
                    with T.Then():
                        digit.set(bin_)
                        searching.set(0)
                    with T.Else():
                        above.add(bins[bin_])
            least.set(prefix * _BINS + digit.get())
        least = settled(least.get())
        before = settled(self.count.get())
        self.count.set(0)
        with T.serial(0, before) as i:
            token, weight = T.bind(self.ids[i]), T.bind(self.weights[i])
            bits = T.bind(T.reinterpret(weight, dtype="int32"))
            with T.If(tirx.any(bits > least, tirx.all(bits == least, above.get() < wanted))), T.Then():
                with T.If(bits == least), T.Then():
                    above.add(amount(weight))
                self.append(token, weight)

    def choose(self, uniform: Expr, min_p: Expr) -> Cell:
        """The id whose share of the running sum covers `uniform`, of the weights that are at least `min_p`."""
        total, running = Cell("float64", 0.0), Cell("float64", 0.0)
        token, open_ = Cell("int32", 0), Cell("int32", 1)

        def sum_up(_: Expr, weight: Expr, bits: Expr) -> None:
            with T.If(weight >= min_p), T.Then():
                total.add(weight)

        def walk(candidate: Expr, weight: Expr, bits: Expr) -> None:
            with T.If(tirx.all(open_.get() == 1, weight >= min_p)), T.Then():
                running.add(weight)
                token.set(candidate)  # the last one where rounding lets no sum reach the target
                with T.If(running.get() > uniform * total.get()), T.Then():
                    open_.set(0)

        self.each(sum_up)
        self.each(walk)
        return token


def sampling_kernels() -> dict[str, tirx.PrimFunc]:
    """The functions that a library exports for the sampler, by name."""
    return {"block_max": block_max(), "block_exp_sum": block_exp_sum(), "sample_token": sample_token()}


def sample_token() -> tirx.PrimFunc:
    """One token for each of some rows: the most likely one, or one drawn.

    logits float32 [rows, width]; settings float64 [rows, 6]: see `SETTINGS`; uniforms float64 [rows], in [0, 1); the
    result is token int32 [rows]; scratch: maxima, sums float32 [rows, blocks], ids int32 [rows, width], weights float32
    [rows, width]. Where the largest logit is not finite nothing is drawn, and the result is -1 - the token that has it.

    `scale` is log2(e) / temperature, 0 for the most likely token, `top_k` 0 for no such cut, `top_p` 1 for none,
    `min_p` 0 for none; `least` the lowest exponent of 2 that can matter, log2(min_p) or -125; of the logits of a row
    the first `count` are looked at.
    """
    with kernel("sample_token") as k:
        rows, width, blocks = T.int64(), T.int64(), T.int64()
        arrays = [
            k.input("logits", (rows, width), "float32", align=4),
            k.input("settings", (rows, len(SETTINGS)), "float64", align=8),
            k.input("uniforms", (rows,), "float64", align=8),
            k.input("token", (rows,), "int32", align=4),
            k.input("maxima", (rows, blocks), "float32", align=4),
            k.input("sums", (rows, blocks), "float32", align=4),
            k.input("ids", (rows, width), "int32", align=4),
            k.input("weights", (rows, width), "float32", align=4),
        ]

        def sample(row) -> None:
            given = {name: settled(arrays[1][row, i], "float64") for i, name in enumerate(SETTINGS)}
            count = settled(T.cast(given["count"], "int64"), "int64")
            used = settled(T.floordiv(count + (SAMPLING_BLOCK - 1), SAMPLING_BLOCK), "int64")
            lengths = count, len(SETTINGS), 1, 1, used, used, count, count
            logits, _, uniform, *others = (_row(*pair, row) for pair in zip(arrays, lengths, strict=True))
            _sample_row(given, logits, uniform, *others)

        with k.body(), T.If(rows == 1):
            with T.Then():
                sample(T.int64(0))
            with T.Else(), T.parallel(0, rows) as row:
                sample(row)
    return k.function


def _row(array, length: Expr, row: Expr):
    """The first `length` elements of a row."""
    stride = array.shape[1] if len(array.shape) == 2 else 1
    return T.decl_buffer((length,), array.dtype, data=array.data, elem_offset=row * stride)


def _sample_row(given: dict[str, Expr], logits, uniform, token, maxima, sums, ids, weights) -> None:
    """Emit the work for one row."""
    blocks = maxima.shape[0]
    reduce_to_max(logits, maxima)
    largest = settled(_most_likely(logits, maxima, token), "float32")
    with T.If(tirx.Not(is_finite(largest))), T.Then():
        T.buffer_store(token, -1 - token[0], [0])
    with T.If(tirx.all(given["scale"] > 0, is_finite(largest))), T.Then():
        scale = settled(T.cast(given["scale"], "float32"), "float32")
        reduce_to_exp_sum(logits, largest, scale, sums)
        total = Cell("float64", 0.0)
        with T.serial(0, blocks) as block:
            total.add(sums[block])

        def exponent(logit: Expr) -> Expr:
            return settled((logit - largest) * scale, "float32")

        with T.If(tirx.any(given["top_k"] > 0, given["top_p"] < 1, given["min_p"] > 0)):
            with T.Then():
                candidates = Candidates(ids, weights)
                _collect(candidates, logits, maxima, exponent, given, total)
                _cut(candidates, given, total)
                chosen = candidates.choose(uniform[0], T.cast(given["min_p"], "float32"))
                T.buffer_store(token, chosen.get(), [0])
            with T.Else():
                _choose_of_all(logits, sums, exponent, uniform[0] * total.get(), token)


def _most_likely(logits, maxima, token) -> Expr:
    """The first of the largest logits; a NaN is larger than all. Returns the logit."""
    count, blocks = logits.shape[0], maxima.shape[0]
    best, value = Cell("int64", 0), Cell("float32", maxima[0])
    with T.serial(1, blocks) as block:
        other = T.bind(maxima[block])
        is_larger = tirx.any(other > value.get(), is_nan(other))
        with T.If(tirx.all(is_larger, tirx.Not(is_nan(value.get())))), T.Then():
            best.set(block)
            value.set(other)
    first = settled(best.get() * SAMPLING_BLOCK, "int64")
    last = T.min(T.int64(SAMPLING_BLOCK), count - first)
    with T.serial(0, last) as back:
        place = T.bind(first + last - 1 - back)
        with T.If(tirx.any(logits[place] == value.get(), is_nan(logits[place]))), T.Then():
            T.buffer_store(token, T.cast(place, "int32"), [0])
    return value.get()


def _collect(candidates: Candidates, logits, maxima, exponent: Callable[[Expr], Expr], given, total: Cell) -> None:
    """Collect what the cuts can keep. Where that is everything, `total` becomes the sum of what was collected."""
    count, blocks = logits.shape[0], maxima.shape[0]
    is_top_k = given["top_k"] > 0
    lowest = settled(tirx.Select(is_top_k, T.float32(_LAST_FLOOR), T.cast(given["least"], "float32")), "float32")
    # so little is left out by such a top_p that rounding of the sums would show
    begin = tirx.Select(given["top_p"] > 0.999, lowest, T.float32(_FIRST_FLOOR))
    begin = tirx.Select(is_top_k, T.float32(_FIRST_FLOOR), begin)
    floor, searching = Cell("float32", T.max(begin, lowest)), Cell("int32", 1)
    with T.While(searching.get() == 1):
        candidates.count.set(0)
        mass = Cell("float64", 0.0)
        with T.serial(0, blocks) as block, T.If(exponent(maxima[block]) >= floor.get()), T.Then():
            first = T.bind(block * SAMPLING_BLOCK)
            with T.serial(0, T.min(T.int64(SAMPLING_BLOCK), count - first)) as i:
                power = exponent(logits[first + i])
                with T.If(power >= floor.get()), T.Then():
                    weight = settled(exp2(power, 1), "float32")
                    mass.add(weight)
                    candidates.append(first + i, weight)
        by_count = T.cast(candidates.count.get(), "float64") >= given["top_k"]
        by_mass = mass.get() >= given["top_p"] * total.get()
        enough = tirx.any(tirx.all(is_top_k, by_count), tirx.all(tirx.Not(is_top_k), by_mass))
        with T.If(tirx.any(enough, floor.get() <= lowest)):
            with T.Then():
                searching.set(0)
                with T.If(floor.get() <= _LAST_FLOOR), T.Then():
                    total.set(mass.get())
            with T.Else():
                floor.set(T.max(floor.get() * T.float32(1.25), lowest))


def _cut(candidates: Candidates, given, total: Cell) -> None:
    """Apply top_k, then top_p of what is left."""
    with T.If(given["top_k"] > 0), T.Then():
        candidates.cut(given["top_k"], lambda weight: T.float64(1))
        total.set(0.0)
        candidates.each(lambda token, weight, bits: total.add(weight))
    with T.If(given["top_p"] < 1), T.Then():
        candidates.cut(given["top_p"] * total.get(), lambda weight: T.cast(weight, "float64"))


def _choose_of_all(logits, sums, exponent: Callable[[Expr], Expr], target: Expr, token) -> None:
    """Find the block in whose share of the running sum the target lies, then the token in it."""
    count, blocks = logits.shape[0], sums.shape[0]
    target = settled(target, "float64")
    running, before, chosen, open_ = Cell("float64", 0.0), Cell("float64", 0.0), Cell("int64", 0), Cell("int32", 1)
    with T.serial(0, blocks) as block, T.If(tirx.all(open_.get() == 1, sums[block] > 0)), T.Then():
        before.set(running.get())
        running.add(sums[block])
        chosen.set(block)
        with T.If(running.get() > target), T.Then():
            open_.set(0)
    first = settled(chosen.get() * SAMPLING_BLOCK, "int64")
    # The block's sum was rounded: what counts is which part of it the target takes.
    part = (target - before.get()) / T.cast(T.max(sums[chosen.get()], T.float32(_LEAST_WEIGHT)), "float64")
    part = settled(T.min(part, T.float64(1 - 2**-53)), "float64")

    def each(do: Callable[[Expr, Expr], None]) -> None:
        with T.serial(0, T.min(T.int64(SAMPLING_BLOCK), count - first)) as i:
            power = exponent(logits[first + i])
            with T.If(tirx.all(open_.get() == 1, power > _LAST_FLOOR)), T.Then():
                do(first + i, settled(exp2(power, 1), "float32"))

    exact = Cell("float64", 0.0)
    open_.set(1)
    each(lambda place, weight: exact.add(weight))
    running.set(0.0)

    def walk(place: Expr, weight: Expr) -> None:
        running.add(weight)
        T.buffer_store(token, T.cast(place, "int32"), [0])
        with T.If(running.get() > part * exact.get()), T.Then():
            open_.set(0)

    each(walk)
