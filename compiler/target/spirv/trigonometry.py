"""Functions of float32 that Vulkan lets drivers compute too coarsely, or does not have.

Vulkan asks of sin and cos an error of 2^-11 within [-pi, pi] and nothing beyond: too little for the angles of rotary
embeddings, which are positions of thousands of tokens.
"""

from .dtype import BOOL, UINT32
from .spec import Glsl, Op
from .values import Value, Values

# pi/2 in four pieces of few bits, so that their products with a count of quarter turns up to 2^17 are exact
_QUARTER = (1.5625, 0.0081787109375, 0.00011730194091796875, 3.1391647326017846e-07)
# Cephes, sinf.c and cosf.c: within [-pi/4, pi/4], in powers of x^2
_SINE = (-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1)
_COSINE = (2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2)
# Abramowitz and Stegun, 7.1.26: in powers of t = 1 / (1 + p |x|), to 1.5e-7
_ERF_P = 0.3275911
_ERF = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)


def times(values: Values, x: Value, factor: float) -> Value:
    """A multiple of x."""
    return values.map(Op.F_MUL, x.dtype, x, values.constant(x.dtype, factor))


def _add(values: Values, x: Value, y: Value) -> Value:
    return values.map(Op.F_ADD, x.dtype, x, y)


def _multiply(values: Values, x: Value, y: Value) -> Value:
    return values.map(Op.F_MUL, x.dtype, x, y)


def _polynomial(values: Values, x: Value, coefficients: tuple[float, ...]) -> Value:
    """The highest power's coefficient comes first."""
    result = values.constant(x.dtype, coefficients[0])
    for coefficient in coefficients[1:]:
        result = _add(values, _multiply(values, result, x), values.constant(x.dtype, coefficient))
    return result


def sine(values: Values, x: Value) -> Value:
    """sin(x), to 1e-7 for |x| below 2^17."""
    return _quadrant(values, x, 0)


def cosine(values: Values, x: Value) -> Value:
    """cos(x) = sin(x + pi/2), to 1e-7 for |x| below 2^17."""
    return _quadrant(values, x, 1)


def _quadrant(values: Values, x: Value, ahead: int) -> Value:
    """sin(x + ahead * pi/2): of what is left of x after whole quarter turns, the sine or the cosine."""
    dtype, integer, truth = x.dtype, UINT32.of(x.dtype.lanes), BOOL.of(x.dtype.lanes)
    turns = values.glsl(Glsl.ROUND_EVEN, dtype, times(values, x, 0.6366197723675814))
    rest = x
    for piece in _QUARTER:
        rest = _add(values, rest, times(values, turns, -piece))
    square = _multiply(values, rest, rest)
    odd = _multiply(values, _multiply(values, _polynomial(values, square, _SINE), square), rest)
    of_sine = _add(values, odd, rest)
    even = _multiply(values, _multiply(values, _polynomial(values, square, _COSINE), square), square)
    of_cosine = _add(values, _add(values, even, times(values, square, -0.5)), values.constant(dtype, 1.0))

    count = values.map(Op.CONVERT_F_TO_S, integer, turns)
    quadrant = values.map(Op.I_ADD, integer, count, values.constant(integer, ahead))

    def bit(number: int) -> Value:
        masked = values.map(Op.BITWISE_AND, integer, quadrant, values.constant(integer, number))
        return values.map(Op.I_NOT_EQUAL, truth, masked, values.constant(integer, 0))

    result = values.select(bit(1), of_cosine, of_sine)
    return values.select(bit(2), values.map(Op.F_NEGATE, dtype, result), result)


def tanh(values: Values, x: Value) -> Value:
    """The driver's tanh where e^2x does not overflow, beyond that 1 with the sign of x; a NaN stays one."""
    dtype = x.dtype
    size = values.glsl(Glsl.F_ABS, dtype, x)
    large = values.map(Op.F_ORD_GREATER_THAN, BOOL.of(dtype.lanes), size, values.constant(dtype, 10.0))
    return values.select(large, values.glsl(Glsl.F_SIGN, dtype, x), values.glsl(Glsl.TANH, dtype, x))


def error_function(values: Values, x: Value) -> Value:
    """erf(x), to 5e-7."""
    dtype, one = x.dtype, values.constant(x.dtype, 1.0)
    size = values.glsl(Glsl.F_ABS, dtype, x)
    t = values.map(Op.F_DIV, dtype, one, _add(values, one, times(values, size, _ERF_P)))
    power = values.glsl(Glsl.EXP, dtype, times(values, _multiply(values, x, x), -1.0))
    tail = _multiply(values, _multiply(values, _polynomial(values, t, _ERF), t), power)
    return _multiply(values, values.glsl(Glsl.F_SIGN, dtype, x), _add(values, one, times(values, tail, -1.0)))
