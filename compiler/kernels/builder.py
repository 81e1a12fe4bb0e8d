"""A thin shell around TVM's IR builder: kernels are written as ordinary Python that emits loops."""
# mypy: ignore-errors

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tvm import tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script.builder import ir as T

_OPAQUE = 8  # TVM's OpPatternKind: nothing is fused with it
_PARTS = 96  # of a parallel loop: as threads.c expects it; a multiple of 2, 3, 4, 6, 8, 12, 16, 24, 32 and 48 threads


class Kernel:
    """A PrimFunc under construction; `function` holds it once the `kernel` block has ended."""

    function: tirx.PrimFunc

    def __init__(self, name: str) -> None:
        self.name = name

    def input(self, name: str, shape: Sequence, dtype: str, align: int = -1):
        """Declare the next argument: a buffer with the name that it has in dumps. `align`: bytes that its address is
        a multiple of, -1 for TVM's 64."""
        handle = T.arg(f"{name}_handle", T.handle())
        buffer = T.match_buffer(handle, tuple(shape), dtype, align=align)
        IRBuilder.name(name, buffer)
        return buffer

    def scalar(self, name: str, dtype: str):
        """Declare the next argument: a number."""
        return T.arg(name, getattr(T, dtype)())

    def body(self):
        """The block that holds the statements. Bare loops would crash the default Relax pipeline."""
        return T.sblock("root")


@contextmanager
def kernel(name: str, **attributes: object) -> Iterator[Kernel]:
    """Build a kernel that is scheduled by hand: no later pass touches its loops."""
    with IRBuilder() as builder:
        with T.prim_func(s_tir=True):
            T.func_name(name)
            T.func_attr({"tirx.noalias": True, "tirx.is_scheduled": True, "op_pattern": _OPAQUE, **attributes})
            under_construction = Kernel(name)
            yield under_construction
        # the Relax function that calls the kernel names it: many share one name here
        under_construction.function = builder.get().without_attr("global_symbol")


@contextmanager
def parallel(count) -> Iterator[object]:
    """A parallel loop over 0..count whose parts differ by at most one.

    TVM rounds the share of a thread up, so that the last one may get half: here the parts are `_PARTS`, which most
    numbers of threads divide.
    """
    with T.parallel(0, _PARTS) as part:
        first = T.floordiv(part * count, _PARTS)
        with T.serial(0, T.floordiv((part + 1) * count, _PARTS) - first) as i:
            yield first + i


def local(count: int = 16, dtype: str = "float32"):
    """A buffer that lives in a vector register: TVM keeps less than 1 KB on the stack in its default scope, while the
    scope "local" means a call that allocates."""
    return T.alloc_buffer((count,), dtype)


def align_stack() -> None:
    """Align the stack of the function to cache lines, once within each parallel loop or kernel that spills registers.

    LLVM aligns a frame as its variables ask for, not for the registers that it spills: half of these cross cache lines
    then, which doubles the time of some kernels. So there has to be a variable, in memory because its address is used.
    """
    variable = local(1, "float32x16")
    read, keep, data = T.int32(0), T.int32(3), T.int32(1)
    T.evaluate(T.call_llvm_intrin("llvm.prefetch", T.address_of(variable[0]), read, keep, data, dtype="void"))


def load(buffer, count: int = 16):
    """The whole of a `local` buffer as one vector."""
    return buffer[T.ramp(0, 1, count)]


def store(buffer, value, count: int = 16) -> None:
    """Overwrite the whole of a `local` buffer."""
    T.buffer_store(buffer, value, [T.ramp(0, 1, count)])


def splat(value, count: int = 16):
    """A scalar in every lane."""
    return T.broadcast(value, count)


def zeros(count: int = 16):
    """A float32 vector of zeros."""
    return T.broadcast(T.float32(0), count)
