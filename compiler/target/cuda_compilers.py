"""NVIDIA's compilers: nvcc of a CUDA toolkit, else NVRTC of the packages that pip installs."""

import ctypes
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from ...runtime.devices.cuda_code import FAT_BINARY
from ...runtime.errors import EngineError

PACKAGES = "nvidia-cuda-nvrtc nvidia-cuda-runtime nvidia-cuda-cccl nvidia-cuda-crt"
_HEADERS = ("cuda_fp16.h", "cuda/std/cstdint", "mma.h", "crt/mma.h")  # that kernels include, from three of them

# Subnormal numbers count as zero; division and square root may err by 2 units in the last place. Not --use_fast_math:
# its sine is wrong by whole digits at the angles of far positions.
_MATH = ("--ftz=true", "--prec-div=false", "--prec-sqrt=false")


class CudaCompiler(Protocol):
    """What turns CUDA source into images for the driver."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    def architectures(self) -> tuple[str, ...]:
        """What it compiles for, as "sm_80", oldest first."""
        ...

    def compile(self, source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        """Images as `CudaCode` has them. Raises EngineError with the compiler's first complaint."""
        ...


def find_compiler() -> CudaCompiler:
    """The compiler of this machine. Raises EngineError that says what to install."""
    found = _nvcc() or _nvrtc()
    if found is None:
        raise EngineError(
            f"--device cuda: there is no CUDA compiler here: `pip install {PACKAGES}`, "
            "or put nvcc on PATH or its toolkit in $CUDA_HOME"
        )
    return found


def _nvcc() -> "Nvcc | None":
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    for path in (*(f"{home}/bin" for home in homes), os.environ.get("PATH", ""), "/usr/local/cuda/bin"):
        program = shutil.which("nvcc", path=path)
        if program:
            return Nvcc(program)
    return None


@dataclass(frozen=True)
class Nvcc:
    """nvcc makes one fat binary."""

    program: str

    @property
    def name(self) -> str:
        return self.program

    def architectures(self) -> tuple[str, ...]:
        return _listed(self.program)

    def compile(self, source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        with TemporaryDirectory(prefix="mlc-cuda-") as folder:
            text, binary = Path(folder, "kernels.cu"), Path(folder, "kernels.fatbin")
            text.write_text(source, encoding="utf-8")
            command = [self.program, "--fatbin", "-O3", "--std=c++17", "--threads=0", *_MATH]
            for name in architectures:
                command += ["-gencode", f"arch=compute_{name[3:]},code={name}"]
            command += ["-gencode", f"arch={ptx},code={ptx}", "-o", str(binary), str(text)]
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if result.returncode or not binary.is_file():
                raise _rejected(self.name, result.stderr or result.stdout)
            return {FAT_BINARY: binary.read_bytes()}


@cache
def _listed(program: str) -> tuple[str, ...]:
    """The architectures that an nvcc knows."""
    try:
        result = subprocess.run([program, "--list-gpu-code"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"{program} does not run ({error}): put another nvcc on PATH or in $CUDA_HOME") from None
    names = sorted(set(re.findall(r"\bsm_\d+[a-z]?\b", result.stdout)), key=_order)
    if not names:
        raise EngineError(f"{program} --list-gpu-code names no architecture: CUDA 11.5 or newer is needed")
    return tuple(names)


def _order(name: str) -> tuple[int, str]:
    return int(re.sub(r"\D", "", name)), name


def _rejected(compiler: str, log: str) -> EngineError:
    """The first line of a compiler's output that says why."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    why = next((line for line in lines if re.search(r"error|fatal|cannot", line)), lines[0] if lines else "no reason")
    return EngineError(f"{compiler} does not compile the kernels: {why}")


def _nvidia_folders() -> Iterator[Path]:
    """The folders of NVIDIA's pip packages: nvidia/cu13, nvidia/cuda_nvrtc and the like, the newest CUDA first."""
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        yield from sorted((path for path in Path(folder).iterdir() if path.is_dir()), reverse=True)


def _nvrtc() -> "Nvrtc | None":
    """Raises EngineError where its headers are missing, as where torch alone has brought it."""
    folders = list(_nvidia_folders())
    library = next((path for f in folders for path in sorted(f.glob("lib/libnvrtc.so.*[0-9]"))), None)
    if library is None:
        return None
    includes = [path for f in folders for path in (f / "include", f / "include/cccl") if path.is_dir()]
    missing = [header for header in _HEADERS if not any((path / header).is_file() for path in includes)]
    if missing:
        raise EngineError(f"--device cuda: the header {missing[0]} for NVRTC is missing: `pip install {PACKAGES}`")
    return Nvrtc(str(library), tuple(map(str, includes)))


@dataclass(frozen=True)
class Nvrtc:
    """NVRTC makes an image for each architecture; its headers come from other packages."""

    library: str
    includes: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"NVRTC ({self.library})"

    def architectures(self) -> tuple[str, ...]:
        library = self._load()
        count = ctypes.c_int()
        library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        library.nvrtcGetSupportedArchs(numbers)
        return tuple(f"sm_{number}" for number in sorted(numbers))

    def compile(self, source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        names = [*architectures, ptx]
        with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
            return dict(zip(names, threads.map(lambda name: self._image(source.encode(), name), names), strict=True))

    def _load(self) -> Any:
        return _open_nvrtc(self.library)

    def _image(self, source: bytes, name: str) -> bytes:
        library = self._load()
        program = ctypes.c_void_p()
        options = [f"--gpu-architecture={name}", "--std=c++17", *_MATH, *(f"--include-path={f}" for f in self.includes)]
        library.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
        try:
            listed = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
            if library.nvrtcCompileProgram(program, len(options), listed):
                raise _rejected(self.name, _output(library, program, "ProgramLog").decode("utf-8", "replace"))
            return _output(library, program, "PTX" if name.startswith("compute_") else "CUBIN")
        finally:
            library.nvrtcDestroyProgram(ctypes.byref(program))


@cache
def _open_nvrtc(path: str) -> Any:
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be loaded ({error}): `pip install --force-reinstall {PACKAGES}`") from None


def _output(library: Any, program: ctypes.c_void_p, what: str) -> bytes:
    """What a compilation left: its log, PTX (text that ends with a zero, which the driver wants) or machine code."""
    size = ctypes.c_size_t()
    length: Callable[..., int] = library[f"nvrtcGet{what}Size"]
    content: Callable[..., int] = library[f"nvrtcGet{what}"]
    if length(program, ctypes.byref(size)):
        return b""
    text = ctypes.create_string_buffer(size.value)
    content(program, text)
    return text.raw
