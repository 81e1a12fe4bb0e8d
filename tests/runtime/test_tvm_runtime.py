"""TVM's runtime without its compiler, and memory that kernels can read."""

import importlib.metadata
import mmap
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from mlc_llm.runtime import tvm_runtime
from mlc_llm.runtime.errors import EngineError, ModelFileError
from mlc_llm.runtime.ffi import FFIError
from mlc_llm.runtime.ffi_tensor import Lent
from mlc_llm.runtime.tvm_runtime import Arena, global_function, load_runtime, numpy_dtype, one_line, tensor


def in_new_process(code: str, **environment: str) -> str:
    cleared = {
        k: v for k, v in os.environ.items() if k not in ("TVM_NUM_THREADS", "OMP_NUM_THREADS", "TVM_BIND_THREADS")
    }
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**cleared, **environment}
    )
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_the_runtime_loads_without_any_package() -> None:
    code = (
        "import sys; from mlc_llm.runtime.tvm_runtime import global_function\n"
        "print(global_function('vm.builtin.kv_state_popn') is not None)\n"
        "print({'tvm', 'tvm_ffi', 'torch', 'numpy', 'mlc_llm.compiler'} & set(sys.modules))"
    )
    assert in_new_process(code).splitlines() == ["True", "set()"]


def test_a_missing_runtime_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    load = tvm_runtime.load_runtime.__wrapped__
    for spec in (None, SimpleNamespace(submodule_search_locations=[str(tmp_path)])):
        monkeypatch.setattr(tvm_runtime, "find_spec", lambda name, spec=spec: spec)
        with pytest.raises(EngineError, match=r"libtvm_runtime\.so\) is missing: run `pip install apache-tvm`"):
            load()
    (tmp_path / "lib").mkdir()
    for name in ("libtvm_runtime.so", "libtvm_ffi.so"):
        (tmp_path / "lib" / name).write_text("no library")
    with pytest.raises(EngineError, match=r"libtvm_runtime\.so cannot be loaded: .*(invalid ELF header|too short)"):
        load()


def test_the_version_of_tvm_is_that_of_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    version = tvm_runtime.tvm_version.__wrapped__
    assert version() == importlib.metadata.version("apache-tvm")

    installed = importlib.metadata.version

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(tvm_runtime, "find_spec", lambda name: None)
    assert version() == installed("apache-tvm")  # found otherwise
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(EngineError, match="TVM is not installed"):
        version()


def test_one_line_of_an_error() -> None:
    assert one_line(ValueError("\n  first \nsecond")) == "first"
    assert one_line(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_an_arena_gives_aligned_arrays_that_do_not_overlap() -> None:
    arena = Arena(2 * Arena.room(100) + Arena.room(12))
    arrays = [arena.array((10, 5), np.dtype(np.float16)), arena.array((100,), np.dtype(np.uint8))]
    arrays.append(arena.array((3,), np.dtype(np.float32)))
    for number, array in enumerate(arrays):
        assert array.ctypes.data % 64 == 0
        array[...] = number
    assert [int(array.sum()) for array in arrays] == [0, 100, 6]


def test_an_arena_that_is_full_says_so() -> None:
    arena = Arena(1000)
    with pytest.raises(ValueError, match="bytes left, not"):
        arena.array((8 << 20,), np.dtype(np.uint8))


def test_huge_pages_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE")
    assert Arena(100).array((100,), np.dtype(np.uint8)).sum() == 0


def test_more_memory_than_there_is_is_one_line() -> None:
    with pytest.raises(EngineError, match="MiB of memory for weights are not available"):
        Arena(1 << 60)


def test_arrays_become_tensors_without_a_copy() -> None:
    array = np.zeros((2, 3), np.float32)
    shared = tensor(array).view((3, 2))
    array[1, 2] = 5
    assert np.from_dlpack(shared)[2, 1] == 5


def test_memory_is_lent_for_a_call_and_calls_are_prepared() -> None:
    load_runtime()
    source, target = np.arange(8, dtype=np.float32), np.zeros(8, np.float32)
    given, taken = Lent("float32"), Lent("float32")
    copy = global_function("runtime.TVMTensorCopyFromTo").prepared(given, taken)
    for first, count in ((0, 8), (2, 3)):
        target[:] = 0
        given.point(source[first:].ctypes.data, count)
        taken.point(target.ctypes.data, count)
        copy()
        assert target.tolist() == [*source[first : first + count].tolist(), *[0] * (8 - count)]
    taken.point(target.ctypes.data, 4)  # another size
    with pytest.raises(FFIError):
        copy()


@pytest.mark.parametrize(("dtype", "carrier"), [("bfloat16", "uint16"), ("float8_e4m3fn", "uint8")])
def test_types_that_numpy_lacks_travel_as_bits(dtype: str, carrier: str) -> None:
    assert numpy_dtype(dtype) == np.dtype(carrier)
    assert str(tensor(np.zeros((4, 4), carrier), dtype).dtype) == dtype


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ModelFileError, match="tensor type 'float7' is unknown"):
        numpy_dtype("float7")
