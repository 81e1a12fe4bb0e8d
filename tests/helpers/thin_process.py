"""Kernels of a compiled library called as the runtime calls them: by ctypes, in a process that has no `tvm` in it."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime import ffi, ffi_tensor, tvm_runtime
from mlc_llm.runtime.devices import plugin

Array = np.ndarray[Any, Any]
Call = tuple[str, Sequence[Array]]  # a function and its arguments, which it changes

_PROGRAM = """
import json, sys
from pathlib import Path
import numpy as np
from mlc_llm.runtime import ffi
from mlc_llm.runtime.devices import plugin
sys.path.append(sys.argv[1])
from thin_process import call

kind, library, folder, names = *sys.argv[2:5], json.loads(sys.argv[5])
plugin.load(kind)
module = ffi.load_module(library)
for number, name in enumerate(names):
    with np.load(Path(folder, f"{number}.npz")) as stored:
        arrays = [stored[key] for key in stored]
    call(module[name], kind, arrays)
    np.savez(Path(folder, f"{number}.npz"), *arrays)
print(any(name.split(".")[0] in ("tvm", "tvm_ffi") for name in sys.modules))
"""


def call(function: ffi.Function, kind: str, arrays: Sequence[Array]) -> None:
    """Call a kernel on the first device of a kind with copies of `arrays`, then copy them back. Raises FFIError."""
    tensors = []
    for array in arrays:
        tensors.append(ffi_tensor.empty(array.shape, str(array.dtype), ffi.Device(kind, 0)))
        ffi_tensor.copy(tvm_runtime.tensor(array), tensors[-1])
    function(*tensors)
    for array, tensor in zip(arrays, tensors, strict=True):
        ffi_tensor.copy(tensor, tvm_runtime.tensor(array))


def run_calls(
    kind: str, library: Path, calls: Sequence[Call], folder: Path, environment: Mapping[str, str] | None = None
) -> list[list[Array]]:
    """Call functions of a library in a process of their own: what became of the arguments of each call."""
    for number, (_, arrays) in enumerate(calls):
        np.savez(folder / f"{number}.npz", *arrays)
    names = json.dumps([name for name, _ in calls])
    imported = run_python(
        _PROGRAM, str(Path(__file__).parent), kind, str(library), str(folder), names, environment=environment
    )
    assert imported.strip() == "False", "the process has imported tvm"
    answers = []
    for number in range(len(calls)):
        with np.load(folder / f"{number}.npz") as stored:
            answers.append([stored[key] for key in stored])
    return answers


def run_python(program: str, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
    """What a Python program prints, run in a process of its own."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return done.stdout


def require_device(kind: str) -> None:
    """Skip a test on a contributor's machine without such a device; where CI runs it has to be there."""
    problem = plugin.problem(kind)
    if problem:
        assert "CI" not in os.environ, f"CI has to run the tests of {kind}: {problem}"
        pytest.skip(f"no device for {kind} here: {problem}")
