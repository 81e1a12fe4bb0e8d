"""Kernels compiled for a device of this machine and called with numpy arrays. Devices that run on the processor (PoCL
for OpenCL, lavapipe for Vulkan) are good at finding what is missing between threads: none runs in lockstep there."""

import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import tvm

from mlc_llm.compiler.target import CompileTarget, code_generation, resolve_target
from mlc_llm.compiler.target.cpu import native_triple
from mlc_llm.runtime.devices import cuda, plugin

Kernel = Callable[..., None]  # takes arrays and numbers; arrays are changed in place

KINDS = ("opencl", "vulkan")


@cache
def device_target(kind: str) -> CompileTarget:
    """The target that libraries for this kind of device are compiled for."""
    return resolve_target(kind)


@cache
def device(kind: str) -> Any:
    """TVM's device, with its plug-in loaded; None where this machine has none."""
    if kind == "cuda":
        cuda.load()
    elif kind in plugin.FOLDERS:
        plugin.load(kind)
    found = tvm.device(kind, 0)
    return found if found.exist else None


@pytest.fixture(params=KINDS, scope="session", name="kind")
def device_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of device that kernels run on here; those that this machine lacks are skipped."""
    require_device(request.param)
    return str(request.param)


def require_device(kind: str) -> None:
    """Skip a test for which this machine lacks the device; in CI, where there is one, it fails."""
    if kind == "cpu" or device(kind) is not None:
        return
    message = f"this machine has no device for {kind}: apt install pocl-opencl-icd mesa-vulkan-drivers"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def compile_kernels(functions: Mapping[str, tvm.tirx.PrimFunc], kind: str) -> dict[str, Kernel]:
    """The kernels as Python functions, compiled together. Each may have any number of launches."""
    target, at = device_target(kind), device(kind)
    # the processor, this machine's, only calls the device here: a part that is not worth LLVM's time
    host = {"kind": "llvm", "mtriple": native_triple(), "opt-level": 0}
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    with TemporaryDirectory() as folder, code_generation(target):
        path = str(Path(folder, "kernels.so"))
        tvm.compile(module, target=tvm.target.Target(target.attributes, host=host)).export_library(path)
        library = tvm.runtime.load_module(path)  # as a model's: what compiles is no runtime of its devices
    return {name: _on_device(library[name], at) for name in functions}


def compile_kernel(function: tvm.tirx.PrimFunc, kind: str) -> Kernel:
    """One kernel as a Python function."""
    return compile_kernels({"kernel": function}, kind)["kernel"]


def _on_device(function: Callable[..., None], at: Any) -> Kernel:
    def kernel(*arguments: Any) -> None:
        tensors = [tvm.runtime.tensor(a, at) if isinstance(a, np.ndarray) else a for a in arguments]
        function(*tensors)
        for array, tensor in zip(arguments, tensors, strict=True):
            if isinstance(array, np.ndarray):
                array[...] = tensor.numpy()

    return kernel
