"""OpenCL's plug-in: compiled kernels run in a process without `tvm` as numpy computes, and what goes wrong is one line.

The device is whatever this machine has; in CI it is PoCL, on the processor.
"""

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from thin_process import Call, call, require_device, run_calls, run_python
from tvm import tirx
from tvm.tirx.script.builder import ir as T

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import barrier, cell, launch, shared
from mlc_llm.compiler.target import code_generation, resolve_target
from mlc_llm.runtime import ffi, ffi_tensor, tvm_runtime
from mlc_llm.runtime.devices import plugin

pytestmark = pytest.mark.usefixtures("plugins")
ROW = 64
OPENCL = ffi.Device("opencl", 0)


@pytest.fixture
def opencl(plugins: None) -> None:
    require_device("opencl")


def scale_and_add() -> tirx.PrimFunc:
    """y = 2.5 x + i, any length, in two launches."""
    with kernel("scale_and_add") as k:
        n = T.int64()
        x, y = k.input("x", (n,), "float32"), k.input("y", (n,), "float32")
        with k.body():
            for step in range(2):
                with launch([T.ceildiv(n, 64)], 64) as ([block], [thread]):
                    i = block * 64 + thread
                    with T.If(i < n), T.Then():
                        T.buffer_store(y, y[i] + T.cast(i, "float32") if step else x[i] * T.float32(2.5), [i])
    return k.function


def row_sums() -> tirx.PrimFunc:
    """Sums of rows of 64 by a tree in shared memory: wrong without each of its barriers."""
    with kernel("row_sums") as k:
        n = T.int64()
        x, y = k.input("x", (n, ROW), "float32"), k.input("y", (n,), "float32")
        with k.body(), launch([n], ROW) as ([row], [thread]):
            sums = shared([ROW])
            T.buffer_store(sums, x[row, thread], [thread])
            for half in (32, 16, 8, 4, 2, 1):
                barrier()
                with T.If(thread < half), T.Then():
                    T.buffer_store(sums, sums[thread] + sums[thread + half], [thread])
            barrier()
            with T.If(thread == 0), T.Then():
                T.buffer_store(y, sums[0], [row])
    return k.function


def unpacked() -> tirx.PrimFunc:
    """Words of eight 4-bit codes, a float16 scale a row -> float32: integers, shifts, a vector load, a loop."""
    with kernel("unpacked") as k:
        n = T.int64()
        words, scales = k.input("words", (n, 4), "uint32"), k.input("scales", (n,), "float32")
        y = k.input("y", (n, 32), "float32")
        with k.body(), launch([n], 4) as ([row], [thread]):
            word = cell(words[row, thread], "uint32")
            with T.serial(0, 8) as code:
                value = T.bitwise_and(T.shift_right(word[0], T.cast(code * 4, "uint32")), T.uint32(15))
                T.buffer_store(y, (T.cast(value, "float32") - 8) * scales[row], [row, thread * 8 + code])
    return k.function


def few_of_each_row() -> tirx.PrimFunc:
    """The last m numbers of a row, backwards, and m in the first two columns of another tensor: conditions of single
    threads after a barrier that is itself within a condition, of all threads."""
    with kernel("few_of_each_row") as k:
        n, m = T.int64(), T.int64()
        x, y = k.input("x", (n, ROW), "float32"), k.input("y", (n, ROW), "float32")
        counts = k.input("counts", (n, 2), "float32")
        k.input("m", (m,), "float32")
        with k.body(), launch([n + 1], ROW) as ([row], [thread]), T.If(row < n), T.Then():
            numbers = shared([ROW])
            T.buffer_store(numbers, x[row, thread], [thread])
            barrier()
            with T.If(thread < m), T.Then():
                T.buffer_store(y, numbers[ROW - 1 - thread], [row, thread])
                with T.If(thread < 2), T.Then():
                    T.buffer_store(counts, T.cast(m, "float32"), [row, thread])
    return k.function


def too_many_threads() -> tirx.PrimFunc:
    with kernel("too_many_threads") as k:
        n = T.int64()
        x, y = k.input("x", (n,), "float32"), k.input("y", (n,), "float32")
        with k.body(), launch([1], 1 << 20) as (_, [thread]), T.If(thread < n), T.Then():
            T.buffer_store(y, x[thread], [thread])
    return k.function


def rejected() -> tirx.PrimFunc:
    with kernel("rejected") as k:
        n = T.int64()
        x, y = k.input("x", (n,), "float32"), k.input("y", (n,), "float32")
        with k.body(), launch([1], 4) as (_, [thread]):
            T.buffer_store(y, T.call_extern("float32", "no_such_function", x[thread]), [thread])
    return k.function


def halves() -> tirx.PrimFunc:
    """y = x + x in float16, which not all devices have."""
    with kernel("halves") as k:
        n = T.int64()
        x, y = k.input("x", (n,), "float16"), k.input("y", (n,), "float16")
        with k.body(), launch([n], 1) as ([i], _):
            T.buffer_store(y, x[i] + x[i], [i])
    return k.function


KERNELS = (scale_and_add, row_sums, unpacked, few_of_each_row, too_many_threads, rejected)


def build(path: Path, *makers: Callable[[], tirx.PrimFunc]) -> Path:
    """A library of kernels, each under the name of its function here."""
    target = resolve_target("opencl")
    functions = {make.__name__: make().with_attr("global_symbol", make.__name__) for make in makers}
    with code_generation(target):
        tvm.compile(tvm.IRModule(functions), target=target.tvm_target()).export_library(str(path))
    return path


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("library") / "kernels.so", *KERNELS)


@pytest.fixture
def module(opencl: None, library: Path) -> ffi.Module:
    """The library, loaded into this process."""
    return ffi.load_module(str(library))


def numbers(*shape: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(shape).astype("float32")


def scaled(x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """What scale_and_add computes."""
    return x * np.float32(2.5) + np.arange(len(x), dtype="float32")


def test_kernels_compute_what_numpy_does(opencl: None, library: Path, tmp_path: Path) -> None:
    calls: list[Call] = []
    expected = []
    for n in (1, 63, 64, 65, 1000, 70_000):
        x = numbers(n)
        calls.append(("scale_and_add", [x, np.zeros(n, "float32")]))
        expected.append(scaled(x))
    for n in (1, 7, 3000):
        rows = numbers(n, ROW)
        calls.append(("row_sums", [rows, np.zeros(n, "float32")]))
        expected.append(rows.sum(1))
        words = np.random.default_rng(1).integers(0, 1 << 32, (n, 4), dtype="uint32")
        scales = numbers(n)
        calls.append(("unpacked", [words, scales, np.zeros((n, 32), "float32")]))
        codes = (words[:, :, None] >> (4 * np.arange(8, dtype="uint32"))) & 15
        expected.append((codes.reshape(n, 32).astype("float32") - 8) * scales[:, None])
    answers = [arrays[-1] for arrays in run_calls("opencl", library, calls * 3, tmp_path)]
    for answer, right in zip(answers, expected * 3, strict=True):
        np.testing.assert_allclose(answer, right, rtol=1e-5, atol=1e-5)
    for first, again in zip(answers, answers[len(calls) :], strict=False):  # bit for bit: nothing races
        np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("m", [2, 37, ROW])
def test_each_thread_takes_its_own_way_after_a_barrier_in_a_condition(module: ffi.Module, m: int) -> None:
    """PoCL 3.1 sends all where the first one goes: they write what is not theirs."""
    x, y, counts = numbers(3, ROW), np.zeros((3, ROW), "float32"), np.zeros((3, 2), "float32")
    call(module["few_of_each_row"], "opencl", [x, y, counts, np.zeros(m, "float32")])
    expected = np.zeros_like(y)
    expected[:, :m] = x[:, ::-1][:, :m]
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(counts, np.full((3, 2), m))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("too_many_threads", ("wants groups of 1048576 threads", "runs at most")),
        ("rejected", ("rejects it: ", "no_such_function", "(CL_BUILD_PROGRAM_FAILURE)")),
    ],
)
def test_a_kernel_that_cannot_run_is_one_line_that_names_it(
    module: ffi.Module, name: str, parts: tuple[str, ...]
) -> None:
    x, y = numbers(4), np.zeros(4, "float32")
    with pytest.raises(ffi.FFIError) as refusal:
        call(module[name], "opencl", [x, y])
    message = str(refusal.value)
    assert message.startswith(f"kernel {name}")
    assert "\n" not in message
    assert all(part in message for part in parts), message
    call(module["scale_and_add"], "opencl", [x, y])  # the device is still usable
    np.testing.assert_allclose(y, scaled(x), rtol=1e-6)


def test_float16_is_for_devices_that_have_it(opencl: None, tmp_path: Path) -> None:
    module = ffi.load_module(str(build(tmp_path / "halves.so", halves)))
    x, y = numbers(5).astype("float16"), np.zeros(5, "float16")
    if plugin.devices("opencl")[0]["float16"]:
        call(module["halves"], "opencl", [x, y])
        np.testing.assert_array_equal(y, x + x)
    else:
        with pytest.raises(ffi.FFIError, match=r"^kernel halves.* computes with float16, .* --device opencl$"):
            call(module["halves"], "opencl", [x, y])


def test_a_tensor_that_is_too_large_is_refused_with_the_limit(opencl: None) -> None:
    limit = plugin.devices("opencl")[0]["max_buffer"]
    with pytest.raises(
        ffi.FFIError, match=r"^OpenCL device .*: a tensor of .* is wanted, the driver's limit .*ALLOC_SIZE\)$"
    ):
        ffi_tensor.empty((limit + 1,), "int8", OPENCL)


def test_too_little_memory_is_one_line_and_what_is_freed_can_be_used(opencl: None) -> None:
    device = plugin.devices("opencl")[0]
    held: list[ffi_tensor.Tensor] = []
    size = device["max_buffer"] * 3 // 4
    with pytest.raises(ffi.FFIError) as refusal:
        held.extend(ffi_tensor.empty((size,), "int8", OPENCL) for _ in range(device["memory"] // size + 1))
    message = str(refusal.value)
    assert message.startswith("OpenCL device ")
    assert "too little memory: " in message
    assert "are in use" in message
    assert "\n" not in message
    held.clear()
    ffi_tensor.empty((size,), "int8", OPENCL)


def test_many_small_writes_arrive_in_their_order_and_place(opencl: None) -> None:
    """They are sent from copies while the host goes on, so that it may change what it wrote at once."""
    rows, columns = 3000, 1000
    target = ffi_tensor.empty((rows, columns), "int32", OPENCL)
    part = ffi.global_function("runtime.TVMTensorCreateView")
    row = np.zeros(columns, "int32")
    for repeat in range(2):
        for i in range(rows):
            row[:] = i + repeat
            ffi_tensor.copy(tvm_runtime.tensor(row), part(target, ffi.shape([columns]), "int32", 4 * columns * i))
    answer = np.zeros((rows, columns), "int32")
    ffi_tensor.copy(target, tvm_runtime.tensor(answer))
    np.testing.assert_array_equal(answer, np.arange(1, rows + 1, dtype="int32")[:, None].repeat(columns, 1))
    last = part(target, ffi.shape([5]), "int32", 4 * (rows * columns - 5))
    few, copied = np.zeros(5, "int32"), ffi_tensor.empty((5,), "int32", OPENCL)
    ffi_tensor.copy(last, copied)
    ffi_tensor.copy(copied, tvm_runtime.tensor(few))
    np.testing.assert_array_equal(few, [rows] * 5)


def test_threads_may_call_the_same_kernels(module: ffi.Module) -> None:
    wrong: list[int] = []

    def work(seed: int) -> None:
        for n in (100, 3000, 70_000) * 3:
            x = np.random.default_rng(seed).standard_normal(n).astype("float32")
            y = np.zeros(n, "float32")
            call(module["scale_and_add"], "opencl", [x, y])
            if not np.allclose(y, scaled(x), rtol=1e-6):
                wrong.append(n)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_kernels_are_built_beside_those_that_run(opencl: None, tmp_path: Path) -> None:
    module = ffi.load_module(str(build(tmp_path / "several.so", scale_and_add, row_sums, unpacked)))
    wrong: list[object] = []

    def work() -> None:
        try:
            module.get_function("mlc.build_kernels", True)(0, 3)
        except Exception as error:  # a thread's error is lost otherwise
            wrong.append(error)

    builder = threading.Thread(target=work)
    builder.start()
    rows, sums = numbers(7, ROW), np.zeros(7, "float32")
    call(module["row_sums"], "opencl", [rows, sums])
    np.testing.assert_allclose(sums, rows.sum(1), rtol=1e-5, atol=1e-5)
    builder.join()
    assert wrong == []


def test_a_kernel_that_is_refused_before_it_runs_is_named_too(module: ffi.Module) -> None:
    with pytest.raises(ffi.FFIError, match=r"^kernel (too_many_threads|rejected)_kernel: "):
        module.get_function("mlc.build_kernels", True)(0, 1)
    with pytest.raises(ffi.FFIError, match=r"^there is no OpenCL device 99"):
        module.get_function("mlc.build_kernels", True)(99, 1)


def test_kernels_that_the_driver_has_built_are_kept(opencl: None, library: Path, tmp_path: Path) -> None:
    """PoCL has a cache of its own, so that ours has to be asked for."""
    x = numbers(100)
    calls = [("scale_and_add", [x, np.zeros(100, "float32")])]
    environment = {"MLC_OPENCL_CACHE": "1"}
    kept = Path(os.environ["MLC_LLM_HOME"], "kernels/opencl")

    ((_, answer),) = run_calls("opencl", library, calls, tmp_path, environment)
    np.testing.assert_allclose(answer, scaled(x), rtol=1e-6)
    damaged, whole = files = sorted(kept.iterdir())  # the kernel has two launches
    damaged.write_bytes(damaged.read_bytes()[:-100] + b"?" * 100)
    inodes = [file.stat().st_ino for file in files]

    ((_, answer),) = run_calls("opencl", library, calls, tmp_path, environment)
    np.testing.assert_allclose(answer, scaled(x), rtol=1e-6)
    assert sorted(kept.iterdir()) == files
    assert whole.stat().st_ino == inodes[1]  # it was used: otherwise it had been written again
    assert damaged.stat().st_ino != inodes[0]
    assert b"?" * 100 not in damaged.read_bytes()


def test_a_device_says_what_it_can(opencl: None) -> None:
    for device in plugin.devices("opencl"):
        assert device["name"]
        assert device["driver"]
        assert device["type"] in ("gpu", "accelerator", "cpu")
        assert device["memory"] >= device["max_buffer"] >= 128 << 20  # what OpenCL asks of every device
        assert device["max_threads"] >= 1
        assert device["shared_memory"] >= 32 << 10
        assert isinstance(device["float16"], bool)


_REPORT = """
import json
from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime import ffi, ffi_tensor, tvm_runtime
from mlc_llm.runtime.devices import plugin
devices, problem = plugin.devices("opencl"), plugin.problem("opencl")
try:
    ffi_tensor.empty((1,), "int8", ffi.Device("opencl", 0))
except ffi.FFIError as error:
    print(json.dumps([devices, problem, str(error)]))
"""


def test_without_a_driver_there_are_no_devices_and_a_reason(tmp_path: Path) -> None:
    devices, problem, refusal = json.loads(run_python(_REPORT, environment={"OCL_ICD_VENDORS": str(tmp_path)}))
    assert devices == []
    assert problem.startswith("no OpenCL")
    assert "install" in problem
    assert "\n" not in problem
    assert refusal == problem


def test_without_a_loader_there_are_no_devices_and_a_reason(tmp_path: Path) -> None:
    for name in ("libOpenCL.so.1", "libOpenCL.so"):
        (tmp_path / name).write_text("not a library")
    search = [str(tmp_path), *filter(None, [os.environ.get("LD_LIBRARY_PATH")])]
    said = run_python(_REPORT, environment={"LD_LIBRARY_PATH": os.pathsep.join(search)})
    devices, problem, refusal = json.loads(said)
    assert devices == []
    assert problem.startswith("no OpenCL: ")
    assert "libOpenCL.so.1" in problem
    assert "install an OpenCL loader" in problem
    assert "\n" not in problem
    assert refusal == problem
