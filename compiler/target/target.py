"""A compile target: the device's name, TVM's description of it and what the kernels ask of it."""

import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ...runtime.artifact import KVDtype
from ...runtime.devices.device import resolve_device
from ...runtime.errors import EngineError, UsageError

if TYPE_CHECKING:
    import tvm

KV_CACHE_DTYPES = ("auto", "int8")  # what a model's `kv_cache_dtype` may be
NO_LIMIT = 1 << 62  # of a tensor's bytes, where devices have none but their memory


@dataclass(frozen=True)
class GpuTraits:
    """What kernels may ask of a device that runs workgroups of threads."""

    max_threads: int = 256  # of a workgroup
    shared_bytes: int = 32768  # of a workgroup's shared memory
    subgroup: int = 0  # lanes that can shuffle and add among each other; 0: not to be relied on
    vector_bytes: int = 16  # the widest load of a thread
    # bytes of a tensor; a larger weight is several. What every device of OpenCL 1.2, Vulkan and WebGPU has, but the
    # smallest: CL_DEVICE_MAX_MEM_ALLOC_SIZE, maxStorageBufferRange, maxStorageBufferBindingSize
    largest_buffer: int = 128 << 20
    # matrix units: "wmma" (CUDA), "simdgroup" (Metal), "cooperative" (Vulkan), "mfma", "wmma_rdna" (ROCm); "": none
    matrix: str = ""

    def limits(self) -> dict[str, int]:
        """The limits of a workgroup as attributes of TVM's target."""
        return {"max_num_threads": self.max_threads, "max_shared_memory_per_block": self.shared_bytes}


@dataclass(frozen=True)
class CompileTarget:
    """One device that a library is built for."""

    device: str  # as in `--device` and in the library's file name: "cpu"
    attributes: dict[str, Any]  # TVM's target description: {"kind": "llvm", "mcpu": ..., "mtriple": ...}
    host_triple: str  # "x86_64-linux-gnu"
    # of the processor: for devices, any of the host's architecture, which packs weights
    lanes: int = 4  # float32 lanes of one vector register
    vector_registers: int = 16
    converts_float16: bool = True  # has instructions between float16 and float32
    cpu_features: tuple[str, ...] = ()  # instruction sets of the code, in /proc/cpuinfo's spelling
    gpu: GpuTraits | None = None  # None: the processor itself

    @property
    def runtime_device(self) -> str:
        """What runs the library, as runtimes call it: an iPhone runs Metal."""
        return "cpu" if self.gpu is None else str(self.attributes["kind"])

    def tvm_target(self) -> "tvm.target.Target":
        """The target as TVM's object; a device's one names its host, where what runs on the processor is compiled."""
        import tvm

        if self.gpu is None:
            return tvm.target.Target(self.attributes)
        return tvm.target.Target(self.attributes, host={"kind": "llvm", "mtriple": self.host_triple})

    def kv_dtype(self, model_dtype: str, choice: str = "auto") -> KVDtype:
        """Storage type of keys and values: "auto" is float16 for float16 models where the CPU converts it, else
        float32."""
        if choice == "int8":
            return "int8"
        return "float16" if model_dtype == "float16" and self.converts_float16 else "float32"


# What `--device` takes -> the module beside this one that knows it. Each has `resolve(variant, host) -> CompileTarget`
# for what follows the colon and `--host`, and `code_generation(target)`, a context in which TVM can compile for it.
_MODULES = {
    "cpu": "cpu",
    "llvm": "cpu",
    "cuda": "cuda",
    "iphone": "iphone",
    "metal": "metal",
    "opencl": "opencl",
    "rocm": "rocm",
    "vulkan": "vulkan",
    "webgpu": "webgpu",
}


def resolve_target(device: str = "auto", host: str = "auto") -> CompileTarget:
    """Turn `--device` (a name, or a target as TVM describes it in JSON) and `--host` into a target.

    Raises UsageError that lists what is accepted.
    """
    from .json_target import is_json, resolve_json

    if is_json(device):
        return resolve_json(device, host, _resolve)
    kind, _, variant = (_best_here() if device == "auto" else device).partition(":")
    return _resolve(kind, variant, host)


def _best_here() -> str:
    """The best device of this machine; where code is for an architecture, for that of its cards alone."""
    device = resolve_device("auto")
    kind = device.partition(":")[0]
    return f"{kind}:native" if kind in ("cuda", "rocm") else device


def _resolve(kind: str, variant: str, host: str) -> CompileTarget:
    if kind not in _MODULES:
        names = ", ".join(("auto", *_MODULES))
        raise UsageError(
            f"--device {kind!r:.60} is unknown: expected {names}, perhaps with a variant, as cpu:x86-64-v3"
        )
    target: CompileTarget = _module(kind).resolve(variant, host)
    return target


def code_generation(target: CompileTarget) -> AbstractContextManager[None]:
    """The context in which a module is built for a target and exported."""
    context: AbstractContextManager[None] = _module(target.device).code_generation(target)
    return context


def _module(kind: str) -> Any:
    return import_module(f".{_MODULES[kind]}", __package__)


def target_here(device: str, auto: bool) -> str:
    """What to compile for so that it runs on a device of this machine, as "cuda:0": its own architecture and no other.

    `auto`: nobody has asked for this device, so that the processor stands in, with a line on stderr, where nothing here
    compiles for it. Raises UsageError and EngineError where nothing does.
    """
    kind = device.partition(":")[0]
    name = f"{kind}:native" if kind in ("cuda", "rocm") else kind
    try:
        resolve_target(name)
    except (UsageError, EngineError) as error:
        if not auto:
            raise
        print(f"{device} is here, but is not used: {error}", file=sys.stderr, flush=True)
        return "cpu"
    return name
