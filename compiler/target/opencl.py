"""OpenCL as a target: OpenCL C 1.2 in the library, which the driver of the device builds and caches."""

from contextlib import AbstractContextManager, nullcontext

from ...runtime.errors import UsageError
from .host import host_triple
from .target import CompileTarget, GpuTraits

# family -> whether all of its devices have cl_khr_fp16. Local memory and threads are what any of them has: Mali's local
# memory is main memory, and Mali and Adreno run few more threads in a group (Arm, "Mali GPU OpenCL Developer Guide";
# Qualcomm, "Snapdragon Mobile Platform OpenCL General Programming and Optimization").
_FAMILIES = {"": False, "adreno": True, "mali": True}
_TRAITS = GpuTraits(max_threads=256, shared_bytes=32 << 10)


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device opencl:<variant>` and `--host` mean. Raises UsageError."""
    if variant not in _FAMILIES:
        names = ", ".join(f"opencl:{name}" if name else "opencl" for name in _FAMILIES)
        raise UsageError(f"--device opencl:{variant} is unknown: expected {names}")
    return CompileTarget(
        device="opencl",
        attributes={
            "kind": "opencl",
            "max_num_threads": _TRAITS.max_threads,
            "max_shared_memory_per_block": _TRAITS.shared_bytes,
            "thread_warp_size": 1,
        },
        host_triple=host_triple(host),
        lanes=4,  # of any processor of the host's architecture: it packs weights
        vector_registers=16,
        converts_float16=_FAMILIES[variant],
        cpu_features=(),
        gpu=_TRAITS,
    )


def code_generation(_: CompileTarget) -> AbstractContextManager[None]:
    """TVM's own code generator needs nothing."""
    return nullcontext()
