"""Kernels compiled for any processor and called with numpy arrays or TVM tensors: in this process where its
architecture is this machine's, otherwise in a program under qemu (Debian: qemu-user, gcc-aarch64-linux-gnu)."""

import platform
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from numpy.typing import NDArray

from mlc_llm.compiler.target import CompileTarget, resolve_target

Array = NDArray[np.generic]
Kernel = Callable[..., None]  # takes arrays, TVM's tensors and integers; arrays and tensors are changed in place

_LINKER = "aarch64-linux-gnu-gcc"
_EMULATOR = "qemu-aarch64"
# LLVM's name of the processor -> qemu's: without dot products, with them, with i8mm too
AARCH64 = {"cortex-a53": "cortex-a53", "cortex-a76": "cortex-a76", "neoverse-v1": "max"}
_SOURCES = [
    Path(__file__).with_name("kernel_main.c"),
    Path(__file__).parents[2] / "compiler/kernels/cpu/threads.c",
]
_TYPE_CODES = {"i": 0, "u": 1, "f": 2}  # numpy's kinds in dlpack's numbers

needs_qemu = pytest.mark.skipif(
    shutil.which(_LINKER) is None or shutil.which(_EMULATOR) is None,
    reason=f"runs under {_EMULATOR}, linked by {_LINKER}: apt install qemu-user gcc-aarch64-linux-gnu",
)


def aarch64_target(processor: str) -> CompileTarget:
    """The target of one of the processors of `AARCH64`."""
    return resolve_target(f"cpu:{processor}", "aarch64-linux-gnu")


def compile_kernel(function: tvm.tirx.PrimFunc, target: CompileTarget) -> Kernel:
    """The kernel as a Python function."""
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    executable = tvm.compile(module, target=target.tvm_target())
    if target.host_triple.startswith(platform.machine()):
        return _in_process(executable["kernel"])
    processor = AARCH64[target.attributes["mcpu"]]
    with tempfile.TemporaryDirectory() as folder:
        object_file, program = Path(folder, "kernel.o"), Path(folder, "kernel")
        executable.mod.write_to_file(str(object_file), "o")
        harness = Path(folder, "harness.o")
        harness.write_bytes(_harness())
        subprocess.run(
            [_LINKER, "-static", "-o", str(program), str(object_file), str(harness), "-lm", "-pthread"], check=True
        )
        binary = program.read_bytes()
    return lambda *arguments: _emulate(binary, processor, arguments)


def _in_process(function: Callable[..., None]) -> Kernel:
    def kernel(*arguments: Any) -> None:
        tensors = [tvm.runtime.tensor(a) if isinstance(a, np.ndarray) else a for a in arguments]
        function(*tensors)
        for array, tensor in zip(arguments, tensors, strict=True):
            if isinstance(array, np.ndarray):
                array[...] = tensor.numpy()

    return kernel


@cache
def _harness() -> bytes:
    """The object file of everything but the kernel."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "harness.o")
        options = ["-O2", "-Wall", "-Werror", "-r", "-nostdlib", "-o", str(output)]
        subprocess.run([_LINKER, *options, *map(str, _SOURCES)], check=True)
        return output.read_bytes()


def _emulate(binary: bytes, processor: str, arguments: tuple[Any, ...]) -> None:
    sent = struct.pack("=i", len(arguments))
    arrays: list[Array] = []
    for argument in arguments:
        if isinstance(argument, int):
            sent += struct.pack("=iq", -1, argument)
            continue
        array = argument if isinstance(argument, np.ndarray) else argument.numpy()
        arrays.append(array)
        code = _TYPE_CODES[array.dtype.kind]
        sent += struct.pack(f"=3i{array.ndim}q", array.ndim, code, array.itemsize * 8, *array.shape) + array.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "kernel")
        program.write_bytes(binary)
        program.chmod(0o755)
        done = subprocess.run([_EMULATOR, "-cpu", processor, str(program)], input=sent, capture_output=True)
    assert done.returncode == 0, f"the kernel ended with {done.returncode} under {_EMULATOR}: {done.stderr.decode()}"
    offset = 0
    changed = (argument for argument in arguments if not isinstance(argument, int))
    for argument, array in zip(changed, arrays, strict=True):
        after = np.frombuffer(done.stdout, array.dtype, array.size, offset).reshape(array.shape)
        offset += array.nbytes
        if isinstance(argument, np.ndarray):
            argument[...] = after
        else:
            argument.copyfrom(after)
