"""What multiplications on devices share: rows of x and y as plain matrices, and what becomes of a sum."""
# mypy: ignore-errors

import math

from tvm.tirx.script.builder import ir as T

from ..builder import zeros
from ..operations import Arguments, Columns, Matmul
from .launch import cell
from .matmul_weights import QUAD, quad


def rows_of(buffer, columns: int):
    """A tensor [batch, seq, columns], or some columns of a wider one, as a matrix [batch * seq, columns] whose indices
    are int32."""
    first = 0
    if isinstance(buffer, Columns):
        first, buffer = buffer.first, buffer.tensor
        columns = int(buffer.shape[-1])
    # its number of rows is not said: nobody asks, and as int64 it would make all indices int64
    return T.decl_buffer((1, columns), buffer.dtype, data=buffer.data, elem_offset=first)


def load_row(values, x, row, column, count: int, in_features: int, *, ends: int) -> None:
    """`count` neighbours of a row from `column` on, a multiple of 4, to registers; zeros past the last input. `ends`:
    the column where the last thread's neighbours end."""
    width = QUAD if in_features % QUAD == 0 else 1
    for i in range(0, count, width):
        index, source = (quad(i), quad(column + i)) if width > 1 else (i, column + i)
        if ends <= in_features:
            T.buffer_store(values, x[row, source], [index])
            continue
        with T.If(column + i < in_features):
            with T.Then():
                T.buffer_store(values, x[row, source], [index])
            with T.Else():
                T.buffer_store(values, zeros(QUAD) if width > 1 else T.float32(0), [index])


def inverse_root(op: Matmul, squares):
    """1 / sqrt(mean(x^2) + eps) of a sum of squares."""
    return T.float32(1) / T.sqrt(squares / T.float32(op.in_features) + T.float32(op.norm_eps))


def silu(x):
    """x / (1 + e^-x) of a number."""
    # e^-x would overflow float32 beyond 88, where the result is 0 anyway
    power = T.min(x * T.float32(-math.log2(math.e)), T.float32(126))
    return x / (T.float32(1) + T.exp2(power))


def write(op: Matmul, a: Arguments, y, residual, row, column, value, up=None) -> None:
    """Output `column` of a row, made of a sum: bias, activation (with `up`, the sum of the other half), residual."""
    if op.bias:
        value = value + a.bias[column]
    if op.swiglu:
        if op.bias:
            up = up + a.bias[column + op.result_features]
        value = silu(cell(value)[0]) * up
    if op.residual:
        value = value + residual[row, column]
    T.buffer_store(y, value, [row, column])
