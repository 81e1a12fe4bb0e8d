"""What the launches that choose tokens share: a row's arrays, logits that are ordered as integers, weights."""
# mypy: ignore-errors

from collections.abc import Callable
from dataclasses import dataclass

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from .launch import cell
from .sample_workgroup import Expr, settled

MAGNITUDE, INFINITY = 0x7FFFFFFF, 0x7F800000  # of a float32's bits: all but the sign; those of infinity
LOWEST_KEY, NONE = -(2**31 - 1), 2**31 - 1
LAST_FLOOR = -125.0  # exponents of 2 below it have no weight


def key(value: Expr) -> Expr:
    """An integer for a float32: larger for larger numbers, equal for equals, the largest for NaN."""
    bits = settled(T.reinterpret(value, dtype="int32"))
    magnitude = settled(bits & MAGNITUDE)
    ordered = tirx.Select(bits < 0, 0 - magnitude, magnitude)
    return settled(tirx.Select(magnitude > INFINITY, T.int32(NONE), ordered))


def number(key: Expr) -> Expr:
    """The float32 of a key."""
    magnitude = settled(T.reinterpret(settled(tirx.Select(key < 0, 0 - key, key)), dtype="float32"))
    return settled(tirx.Select(key < 0, 0 - magnitude, magnitude))


def weight(exponent: Expr) -> Expr:
    """2^exponent, which is at most 0."""
    exponent = settled(exponent)
    power = tirx.Select(exponent < T.float32(0), T.exp2(exponent), T.float32(1))  # 1 on any device
    return settled(tirx.Select(exponent > T.float32(LAST_FLOOR), power, T.float32(0)))


@dataclass(frozen=True)
class Row:
    """What the kernels read and write of one row."""

    given: dict[str, Expr]
    logits: object
    uniforms: object
    tokens: object
    keys: object  # of the largest logit of each block
    sums: object  # of the weights in each block, as if its largest were 1
    ids: object
    found: object

    @property
    def count(self) -> Expr:
        """How many logits are looked at."""
        return self.given["count"]

    def key(self, place: Expr) -> Expr:
        return key(self.logits[place])

    def choose(self, token: Expr) -> None:
        T.buffer_store(self.tokens, token, [0])


class Walk:
    """A running sum on its way to a target."""

    def __init__(self, target: Expr) -> None:
        self.target, self.sum, self.before = target, cell(0.0), cell(0.0)
        self.chosen, self.open = cell(0, "int32"), cell(1, "int32")

    def visit(self, item: Expr, share: Expr, chosen: Callable[[], None] = lambda: None) -> None:
        """Go on by the share of an item. The chosen one is the first by which the sum gets beyond the target, the last
        that has a share where rounding lets it not come so far."""
        with T.If(tirx.all(self.open[0] == 1, share > T.float32(0))), T.Then():
            assign(self.before, self.sum[0])
            increase(self.sum, share)
            assign(self.chosen, item)
            chosen()
            with T.If(self.sum[0] > self.target), T.Then():
                assign(self.open, T.int32(0))


def plus(a: Expr, b: Expr) -> Expr:
    return a + b


def assign(variable, value: Expr) -> None:
    """Overwrite a `cell`."""
    T.buffer_store(variable, value, [0])


def increase(variable, value: Expr) -> None:
    """Add to a `cell`."""
    assign(variable, variable[0] + value)
