"""What a Vulkan device has to do right, as functions that raise AssertionError; run as a program, all of them.

A program of its own is for what a process decides once: how memory is reached, which driver there is.
"""

import ctypes
import gc
import json
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from spirv_kernels import axpby, module

from mlc_llm.runtime import ffi, ffi_tensor, tvm_runtime
from mlc_llm.runtime.devices import plugin

VULKAN = ffi.Device("vulkan", 0)
SIZES = (1, 2, 3, 5, 255, 256, 257, 4095, 4096, 4097, (1 << 20) + 1, (20 << 20) + 3)  # bytes


class Raw(ffi.Object):
    """An argument that is no object of TVM's: a pointer, or bytes."""

    __slots__ = ("kept",)

    def __init__(self, type_index: int, handle: int, kept: object = None) -> None:
        self.type_index, self.handle, self.kept = type_index, handle, kept

    def __del__(self, release: Any = None) -> None:
        """There is no reference to give back."""


def load(code: bytes) -> ffi.Module:
    """A module of kernels."""
    plugin.load("vulkan")
    text = ctypes.create_string_buffer(code, len(code))
    array = (ctypes.c_size_t * 2)(ctypes.addressof(text), len(code))
    made = ffi.global_function("ffi.Module.load_from_bytes.vulkan")(Raw(9, ctypes.addressof(array), (text, array)))
    assert isinstance(made, ffi.Module)
    return made


@cache
def kernel() -> Callable[..., None]:
    """y = a * x + b * y."""
    function: Callable[..., None] = load(module(axpby()))["axpby"]
    return function


def counters() -> dict[str, int]:
    """How much the device did so far."""
    found: dict[str, int] = json.loads(ffi.global_function("mlc.vulkan.counters")(0))
    return found


def pointer(tensor: ffi_tensor.Tensor, offset: int = 0) -> Raw:
    """An address in a tensor's memory, as compiled code passes it."""
    return Raw(4, tensor.address + offset, tensor)


def empty(size: int, dtype: str = "uint8") -> ffi_tensor.Tensor:
    """Memory of the device."""
    plugin.load("vulkan")
    return ffi_tensor.empty((size,), dtype, VULKAN)


def write(array: np.ndarray[Any, Any], target: ffi_tensor.Tensor) -> None:
    ffi_tensor.copy(tvm_runtime.tensor(array), target)


def tensor(array: np.ndarray[Any, Any]) -> ffi_tensor.Tensor:
    """An array on the device."""
    made = empty(len(array), str(array.dtype))
    write(array, made)
    return made


def read(tensor: ffi_tensor.Tensor) -> np.ndarray[Any, Any]:
    return tensor.to_host().numpy()


def synchronize() -> None:
    """Wait for the device."""
    ffi.global_function("runtime.Device_StreamSync")(VULKAN, 0)


def run(x: ffi_tensor.Tensor, y: ffi_tensor.Tensor, n: int, a: float, b: float, x_offset: int = 0) -> None:
    kernel()(pointer(x, x_offset), pointer(y), n, a, b, -(-n // 64), 64)


def copies_of_any_size_come_back() -> None:
    for size in SIZES:
        array = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
        first = tensor(array)
        second = empty(size)
        ffi_tensor.copy(first, second)
        assert np.array_equal(read(second), array)


def a_kernel_computes_as_numpy_does() -> None:
    for n in (1, 63, 64, 65, 1000, 100_003):
        x, y = (np.random.default_rng(seed).standard_normal(n).astype("float32") for seed in (0, 1))
        on_x, on_y = tensor(x), tensor(y)
        run(on_x, on_y, n, 2.0, 0.5)
        assert np.array_equal(read(on_y), np.float32(2) * x + np.float32(0.5) * y)


def kernels_run_in_the_order_of_their_calls() -> None:
    """Fibonacci's numbers, from 0 again when they get large: each call reads what the one before it wrote."""
    n = 5000
    a, b = np.zeros(n, "float32"), np.ones(n, "float32")
    on_a, on_b = tensor(a), tensor(b)
    for _ in range(1000):
        run(on_b, on_a, n, 1.0, 1.0)  # a += b
        run(on_a, on_b, n, 1.0, -1.0)  # b = a - b
        a += b
        b = a - b
        if a[0] > 1000:
            run(on_b, on_a, n, 0.0, 0.0)
            a[:] = 0
    assert np.array_equal(read(on_a), a)
    assert np.array_equal(read(on_b), b)


def kernels_that_share_only_what_they_read_need_no_barrier() -> None:
    x = tensor(np.ones(64, "float32"))
    ys = [tensor(np.full(64, i, "float32")) for i in range(100)]
    synchronize()
    before = counters()
    for y in ys:
        run(x, y, 64, 1.0, 1.0)
    after = counters()
    assert after["dispatches"] - before["dispatches"] == len(ys)
    assert after["barriers"] == before["barriers"]
    for y in ys:
        run(ys[0], y, 64, 1.0, 1.0)
    assert counters()["barriers"] > before["barriers"]
    first = read(ys[0])[0]
    assert first == 2
    assert [read(y)[0] for y in ys[1:]] == [i + 1 + first for i in range(1, len(ys))]


def many_kernels_take_few_submissions_and_one_wait() -> None:
    x, y = tensor(np.ones(64, "float32")), tensor(np.zeros(64, "float32"))
    synchronize()
    before = counters()
    for _ in range(500):
        run(x, y, 64, 1.0, 1.0)
    submitted = counters()["submissions"] - before["submissions"]
    assert 500 // 64 <= submitted <= 500 // 8
    assert counters()["waits"] == before["waits"]
    assert read(y)[0] == 500
    assert counters()["waits"] == before["waits"] + 1
    many = [run(x, y, 64, 1.0, 1.0) for _ in range(5000)]
    assert read(y)[0] == 500 + len(many)


def addresses_within_a_tensor_are_parts_of_it() -> None:
    x, y = np.arange(1024, dtype="float32"), np.zeros(64, "float32")
    on_x, on_y = tensor(x), tensor(y)
    run(on_x, on_y, 64, 1.0, 0.0, x_offset=256 * 4)
    assert np.array_equal(read(on_y), x[256:320])


def writes_wait_their_turn() -> None:
    """What a kernel that was called before still has to read is not overwritten, small and large, aligned or not."""
    for n in (1, 64, 1000, 3_000_000):
        x, y = tensor(np.full(n, 1, "float32")), tensor(np.zeros(n, "float32"))
        for value in range(2, 6):
            run(x, y, n, 1.0, 1.0)
            write(np.full(n, value, "float32"), x)
        run(x, y, n, 1.0, 1.0)
        assert np.array_equal(read(y), np.full(n, 15, "float32"))


def memory_is_not_given_away_while_kernels_use_it() -> None:
    n = 100_000
    total = tensor(np.zeros(n, "float32"))
    for value in range(50):
        part = tensor(np.full(n, value, "float32"))
        run(part, total, n, 1.0, 1.0)
        del part
    assert np.array_equal(read(total), np.full(n, 49 * 25, "float32"))


def freed_memory_is_used_again() -> None:
    gc.collect()  # what tests before this one have left must not be freed meanwhile
    synchronize()
    before = counters()
    for size in (100, 5000, 1 << 20, 40 << 20):
        held = [empty(size) for _ in range(5)]
        assert counters()["tensor_bytes"] - before["tensor_bytes"] >= 5 * size
        del held
        assert counters()["tensor_bytes"] == before["tensor_bytes"]
    kept = empty(10)  # blocks that are done with are given back at an allocation
    assert counters()["memory_bytes"] <= before["memory_bytes"] + (64 << 20)
    del kept


def overlapping_copies_move_what_was_there() -> None:
    array = np.arange(10_000, dtype=np.uint8)
    on = tensor(array)
    part = ffi.global_function("runtime.TVMTensorCreateView")
    for source, target in ((0, 256), (256, 0)):
        ffi_tensor.copy(*(part(on, ffi.shape([9000]), "uint8", offset) for offset in (source, target)))
        array[target : target + 9000] = array[source : source + 9000].copy()
        assert np.array_equal(read(on), array)


def threads_do_not_disturb_one_another() -> None:
    wrong: list[object] = []

    def work(seed: int) -> None:
        try:
            for step in range(30):
                n = 100 + 977 * seed + step
                x, y = tensor(np.full(n, seed, "float32")), tensor(np.zeros(n, "float32"))
                for _ in range(20):
                    run(x, y, n, 1.0, 1.0)
                found = read(y)
                if not (found == 20 * seed).all():
                    wrong.append((seed, step, found))
        except Exception as error:  # a thread's error is lost otherwise
            wrong.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in (1, 2, 3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def kernels_are_built_beside_those_that_run() -> None:
    """Each once, whoever asks first: several threads for all of them, or a call."""
    names, before = [f"axpby_{i}" for i in range(8)], counters()["pipelines"]
    several = load(module(*map(axpby, names)))
    builder = threading.Thread(target=several["mlc.build_kernels"], args=(0, 4))
    builder.start()
    y = tensor(np.zeros(64, "float32"))
    for name in names[::-1]:
        several[name](pointer(tensor(np.ones(64, "float32"))), pointer(y), 64, 1.0, 1.0, 1, 64)
    assert (read(y) == len(names)).all()
    builder.join()
    assert counters()["pipelines"] == before + len(names)
    del several, builder
    gc.collect()
    assert counters()["pipelines"] == before


WORK = (
    copies_of_any_size_come_back,
    a_kernel_computes_as_numpy_does,
    kernels_run_in_the_order_of_their_calls,
    kernels_that_share_only_what_they_read_need_no_barrier,
    many_kernels_take_few_submissions_and_one_wait,
    addresses_within_a_tensor_are_parts_of_it,
    writes_wait_their_turn,
    memory_is_not_given_away_while_kernels_use_it,
    freed_memory_is_used_again,
    overlapping_copies_move_what_was_there,
    threads_do_not_disturb_one_another,
    kernels_are_built_beside_those_that_run,
)

if __name__ == "__main__":
    for check in WORK:
        check()
    print("ok", len(WORK))
