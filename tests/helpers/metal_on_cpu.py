"""Kernels in Metal's language without Metal: TVM's source becomes code of this machine, by clang and the header that
stands for Metal's library, and takes the place of TVM's Metal runtime. `install` is for processes of their own."""

import re
import subprocess
from pathlib import Path
from typing import Any

import tvm
import tvm_ffi
from msl import HEADERS, clang, for_clang, kernels_of

_KERNEL = re.compile(r"^kernel void \w+\(([^{]*)\) \{", re.MULTILINE)
_ARGUMENTS = re.compile(r"struct \w+_args_t \{(.*?)\};", re.DOTALL)
_FLAGS = ["-x", "c++", "-std=c++17", "-O1", "-fPIC", "-w", "-nostdinc", "-DMETAL_ON_CPU",
          "-flax-vector-conversions=none", "-c"]  # fmt: skip
_AXES = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")


def install(folder: Path) -> None:
    """Give this process a Metal device, whose memory is the processor's. `folder` outlives the process."""
    build = tvm_ffi.get_global_func("target.build.metal")
    threads = folder / "threads.o"
    source = str(HEADERS / "metal_on_cpu.cc")
    subprocess.run(["g++", "-std=c++17", "-O1", "-fPIC", "-c", "-o", str(threads), source], check=True)
    launches: dict[str, list[str]] = {}  # of kernels: which extents their callers pass on
    count = 0

    def built(module: Any, target: Any) -> Any:
        for function in module.functions.values():
            launches[str(function.attrs["global_symbol"])] = list(map(str, function.attrs["tirx.kernel_launch_params"]))
        return build(module, target)

    def loaded(saved: bytes) -> Any:
        nonlocal count
        count += 1
        code, library = folder / f"kernels{count}.o", folder / f"kernels{count}.so"
        command = [*clang(), *_FLAGS, "-I", str(HEADERS), "-o", str(code), "-"]
        subprocess.run(command, input=_program(kernels_of(bytes(saved)), launches), text=True, check=True)
        subprocess.run(["g++", "-shared", "-o", str(library), str(code), str(threads), "-lm"], check=True)
        return tvm.runtime.load_module(str(library))

    tvm_ffi.register_global_func("target.build.metal", built, override=True)
    tvm_ffi.register_global_func("ffi.Module.load_from_bytes.metal", loaded, override=True)
    tvm_ffi.register_global_func("device_api.metal", tvm_ffi.get_global_func("device_api.cpu"), override=True)


def _program(sources: dict[str, str], launches: dict[str, list[str]]) -> str:
    """All kernels of a module, each with a function that tvm-ffi can call."""
    parts = ["#include <metal_stdlib>\n"]
    for name, source in sources.items():
        parts += [f"namespace in_{name} {{\n", for_clang(source), _launcher(name, source, launches[name]), "}\n"]
    return "".join(parts)


def _launcher(name: str, source: str, launched: list[str]) -> str:
    """A function of tvm-ffi that runs a kernel: its arguments are buffers, numbers, and extents of threads."""
    kernel, found = _KERNEL.search(source), _ARGUMENTS.search(source)
    assert kernel is not None, source
    numbers = re.findall(r"(\w+) \w+(?:\[2\])?;", found[1]) if found else []  # each in 8 bytes
    passed, buffers = [], 0
    for parameter in kernel[1].split(",\n"):
        kind = re.sub(r"\s*\w+ \[\[.*", "", parameter.strip())
        if kind.endswith("*"):
            passed.append(f"({kind})a[{buffers}].pointer")
            buffers += 1
        elif kind.endswith("&"):
            passed.append(f"*(const {name}_args_t*)slots")
        else:
            of, lanes = ("group" if "threadgroup_position_in_grid" in parameter else "place"), kind.removeprefix("uint")
            each = ", ".join(f"at.{of}[{i}]" for i in range(int(lanes or 1)))
            passed.append(f"{kind}({each})")
    fill = "".join(f"slots[{i}] = cpu_slot<{kind}>(a[{buffers + i}]);" for i, kind in enumerate(numbers))
    extents = "".join(f"extents[{_AXES.index(tag)}] = a[{buffers + len(numbers) + i}].number;"
                      for i, tag in enumerate(launched))  # fmt: skip
    return f"""
static long slots[{max(1, len(numbers))}];
static void enter(void* context) {{
  Argument* a = (Argument*)context;
  Indices at = cpu_indices();
  {name}({", ".join(passed)});
}}
extern "C" int __tvm_ffi_{name}(void*, const Argument* a, int, Argument*) {{
  unsigned extents[6] = {{1, 1, 1, 1, 1, 1}};
  {fill}{extents}
  cpu_run(extents, extents + 3, enter, (void*)a);
  return 0;
}}
"""
