"""Arguments of the small kernels between the multiplications, the same on every device."""
# mypy: ignore-errors

from tvm.tirx.script.builder import ir as T

from .builder import Kernel


def norm_arguments(k: Kernel, columns: int, *, single: bool):
    """(batch, seq, x, weight, y) of an RMS norm of rows [batch, seq, columns], one row if `single`."""
    batch, seq = (1, 1) if single else (T.int64(), T.int64())
    x = k.input("x", (batch, seq, columns), "float32")
    weight = k.input("weight", (columns,), "float32")
    return batch, seq, x, weight, k.input("y", (batch, seq, columns), "float32")


def swiglu_arguments(k: Kernel, columns: int, *, single: bool):
    """(batch, seq, x, y) of SwiGLU of rows [batch, seq, 2 x columns], one row if `single`."""
    batch, seq = (1, 1) if single else (T.int64(), T.int64())
    x = k.input("x", (batch, seq, 2 * columns), "float32")
    return batch, seq, x, k.input("y", (batch, seq, columns), "float32")


def last_row_arguments(k: Kernel, columns: int):
    """(seq, x, y) of the choice of the last of the rows [1, seq, columns]."""
    seq = T.int64()
    x = k.input("x", (1, seq, columns), "float32")
    return seq, x, k.input("y", (1, 1, columns), "float32")
