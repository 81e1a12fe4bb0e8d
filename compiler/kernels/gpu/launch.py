"""Launches of device kernels: grids of workgroups, their threads, what they share.

A PrimFunc may have several launches; they run one after another, and between them a part that runs on the host. Threads
of a workgroup meet at `barrier()` only: nothing may rely on warps that run in lockstep.
"""
# mypy: ignore-errors

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from tvm import tirx
from tvm.tirx.script.builder import ir as T


@contextmanager
def launch(blocks: Sequence, threads: int | Sequence[int]) -> Iterator[tuple[list, list]]:
    """A grid of `blocks` (one to three extents, int32 or int64 expressions) of workgroups with `threads` each (one to
    three constants). Yields the block's indices and the thread's, as int32."""
    threads = [threads] if isinstance(threads, int) else list(threads)
    with ExitStack() as stack:
        indices = [
            [T.cast(stack.enter_context(T.launch_thread(f"{kind}.{axis}", extent)), "int32")
             for axis, extent in zip("xyz", extents, strict=False)]
            for kind, extents in (("blockIdx", list(blocks)), ("threadIdx", threads))
        ]  # fmt: skip
        # TVM would add barriers wherever it cannot exclude a conflict in shared memory, and fail where it may not
        stack.enter_context(T.attr(tirx.const(0), "hand_threaded", 1))
        yield tuple(indices)


def shared(shape: Sequence[int], dtype: str = "float32"):
    """Memory of a workgroup."""
    return T.alloc_buffer(tuple(shape), dtype, scope="shared")


def private(shape: int | Sequence[int], dtype: str = "float32"):
    """Memory of a thread: registers, where indices are constants once loops are unrolled."""
    return T.alloc_buffer((shape,) if isinstance(shape, int) else tuple(shape), dtype, scope="local")


def barrier() -> None:
    """All threads of the workgroup have come here, and see what the others wrote to shared memory. Never within a
    condition or a loop that some threads leave earlier."""
    T.evaluate(T.tvm_storage_sync("shared"))


def cell(value, dtype: str = "float32"):
    """A variable of a thread with a first value: read and write its element 0."""
    buffer = private(1, dtype)
    T.buffer_store(buffer, tirx.const(value, dtype) if isinstance(value, int | float) else value, [0])
    return buffer


@contextmanager
def strided(thread, threads: int, count: int) -> Iterator[object]:
    """Numbers 0..count dealt out to the threads of a workgroup, neighbours to neighbours."""
    with ExitStack() as stack:
        turn = stack.enter_context(T.serial(0, -(-count // threads)))
        number = turn * threads + thread
        if count % threads:
            stack.enter_context(T.If(number < count))
            stack.enter_context(T.Then())
        yield number
