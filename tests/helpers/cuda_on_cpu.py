"""CUDA kernels without a card: TVM's CUDA source becomes code of this machine, the stock CUDA runtime launches it
through the driver of stub_cuda.c. A process that has called `install` has one card, named Stub 0."""

import ctypes
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from mlc_llm.compiler.target import cuda as target
from mlc_llm.runtime.devices import cuda
from mlc_llm.runtime.devices.cuda_code import FAT_BINARY

_HERE = Path(__file__).parent
_HEADERS = ("cuda.h", "cuda_fp16.h", "cuda_bf16.h", "mma.h")
_KERNEL = re.compile(r'extern "C" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\) {')


class CpuCompiler:
    """Takes nvcc's place. What it makes stays in `folder` for as long as the process may load it."""

    name = "g++"

    def __init__(self, folder: Path, lanes: int) -> None:
        self._folder, self._lanes = folder, lanes
        for header in _HEADERS:
            (folder / header).write_text("")
        self._count = 0

    def architectures(self) -> tuple[str, ...]:
        return ("sm_80", "sm_90")

    def compile(self, source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        self._count += 1
        text, library = (self._folder / f"kernels{self._count}.{end}" for end in ("cc", "so"))
        source = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 __shared__", source)  # the order that C++ wants
        text.write_text(source + "".join(_launcher(*found.groups()) for found in _KERNEL.finditer(source)))
        options = [
            "-std=c++17",
            "-O1",
            "-w",
            "-fPIC",
            "-shared",
            f"-I{self._folder}",
            f"-DLANES_OF_A_WARP={self._lanes}",
        ]
        options += ["-include", str(_HERE / "cuda_on_cpu.h")]
        subprocess.run(["g++", *options, "-o", str(library), str(text)], check=True)
        return {FAT_BINARY: b"HOSTCODE" + str(library).encode() + b"\0"}


def _launcher(name: str, parameters: str) -> str:
    types = [re.sub(r"\s*(__restrict__\s*)?\w+$", "", p.strip()) for p in parameters.split(",")]
    values = ", ".join(f"*(({kind}*)a[{i}])" for i, kind in enumerate(types))
    signature = f"void launch_{name}(const unsigned* grid, const unsigned* block, void** a)"
    sizes = f"extern const unsigned sizes_{name}[] = {{{''.join(f'sizeof({kind}), ' for kind in types)}0}};"
    return f'\nextern "C" {{ {sizes} {signature} {{ cpu::run(grid, block, [=] {{ {name}({values}); }}); }} }}\n'


def build_stubs(folder: Path) -> None:
    """Make the driver (libcuda.so.1) and the CUDA runtime (libcudart.so.13) in a folder."""
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: *; };")
    for name, options in (("libcuda.so.1", ["-DDRIVER"]), ("libcudart.so.13", [f"-Wl,--version-script={versions}"])):
        command = ["cc", "-shared", "-fPIC", "-w", f"-Wl,-soname,{name}", *options, "-o", str(folder / name)]
        subprocess.run([*command, str(_HERE / "stub_cuda.c"), "-ldl"], check=True)


def install(folder: Path, lanes: int = 32) -> None:
    """Give this process its card, with so many lanes in a warp. There is no way back: for processes of their own.
    `folder` outlives them."""
    build_stubs(folder)
    for name in ("libcuda.so.1", "libcudart.so.13"):
        ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
    compiler = CpuCompiler(folder, lanes)
    target.find_compiler = lambda: compiler
    cuda._cuda_runtime = lambda: str(folder / "libcudart.so.13")
