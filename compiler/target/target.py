"""A compile target: the device's name, TVM's description of it and what the kernels ask of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...runtime.artifact import KVDtype
from ...runtime.errors import UsageError

if TYPE_CHECKING:
    import tvm

# Names that `--device` will take once their kernels exist; told apart from typing errors in the message.
_KNOWN_DEVICES = ("cuda", "rocm", "metal", "vulkan", "opencl", "webgpu", "iphone", "android")


KV_CACHE_DTYPES = ("auto", "int8")  # what a model's `kv_cache_dtype` may be


@dataclass(frozen=True)
class GpuTraits:
    """What kernels may ask of a device that runs workgroups of threads."""

    max_threads: int = 256  # of a workgroup
    shared_bytes: int = 32768  # of a workgroup's shared memory
    subgroup: int = 0  # lanes that can shuffle and add among each other; 0: not to be relied on
    vector_bytes: int = 16  # the widest load of a thread
    matrix: str = ""  # matrix units: "wmma" (CUDA), "simdgroup" (Metal), "cooperative" (Vulkan); "": none


@dataclass(frozen=True)
class CompileTarget:
    """One device that a library is built for."""

    device: str  # as in `--device` and in the library's file name: "cpu"
    attributes: dict[str, Any]  # TVM's target description: {"kind": "llvm", "mcpu": ..., "mtriple": ...}
    host_triple: str  # "x86_64-linux-gnu"
    lanes: int  # float32 lanes of one vector register
    vector_registers: int
    converts_float16: bool  # has instructions between float16 and float32
    cpu_features: tuple[str, ...]  # instruction sets of the code, in /proc/cpuinfo's spelling
    gpu: GpuTraits | None = None  # None: the processor itself

    def tvm_target(self) -> "tvm.target.Target":
        """The target as TVM's object."""
        import tvm

        return tvm.target.Target(self.attributes)

    def kv_dtype(self, model_dtype: str, choice: str = "auto") -> KVDtype:
        """Storage type of keys and values: "auto" is float16 for float16 models where the CPU converts it, else
        float32."""
        if choice == "int8":
            return "int8"
        return "float16" if model_dtype == "float16" and self.converts_float16 else "float32"


def resolve_target(device: str = "auto", host: str = "auto") -> CompileTarget:
    """Turn `--device` and `--host` into a target. Raises UsageError that lists what is accepted."""
    from .cpu import cpu_target

    kind, _, variant = device.partition(":")
    if kind in ("auto", "cpu", "llvm"):
        return cpu_target(variant or "native", host)
    if kind in _KNOWN_DEVICES:
        raise UsageError(f"--device {device}: this version compiles for the CPU only; use --device cpu")
    raise UsageError(f"--device {device!r} is unknown: expected auto, cpu or cpu:<processor>, as cpu:x86-64-v3")
