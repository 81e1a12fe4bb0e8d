"""Vulkan as a target: SPIR-V of our own code generator in the library, compiled by the device's driver."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from ...runtime.errors import EngineError, UsageError
from .host import host_triple
from .sources import keep
from .spirv import emit_kernel, module_bytes
from .target import CompileTarget, GpuTraits

# Shared memory and threads are what Vulkan devices other than the smallest have (a device must have 16 KB and 128).
_TRAITS = GpuTraits(max_threads=256, shared_bytes=32 << 10)
# variant -> matrix units. A library with cooperative matrices runs on devices that have them, and on no others.
_MATRIX = {"": "", "cooperative": "cooperative"}
_BUILD = "target.build.vulkan"
# TVM would compute what two launches have in common before them, on the host: then a kernel is given an offset and
# cannot know that it is a multiple of four. The emitter computes nothing twice either.
_PASSES = {"tirx.disable_cse_tir": True}


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device vulkan:<variant>` and `--host` mean. Raises UsageError."""
    if variant not in _MATRIX:
        raise UsageError(f"--device vulkan:{variant} is unknown: expected vulkan or vulkan:cooperative")
    return CompileTarget(
        device="vulkan",
        attributes={
            "kind": "vulkan",
            **_TRAITS.limits(),
            "max_threads_per_block": _TRAITS.max_threads,
            "thread_warp_size": 1,
            "supports_float16": True,
            "supports_16bit_buffer": True,
            "supports_8bit_buffer": True,
            "supports_int8": True,
            "supports_int16": True,
            "supports_int64": True,
            **({"supports_cooperative_matrix": True} if variant == "cooperative" else {}),
        },
        host_triple=host_triple(host),
        gpu=replace(_TRAITS, matrix=_MATRIX[variant]),
    )


@contextmanager
def code_generation(_: CompileTarget) -> Iterator[None]:
    """Compile for Vulkan inside: TVM has no code generator of its own for it.

    Raises EngineError, naming the kernel, for what Vulkan cannot do.
    """
    import tvm
    import tvm_ffi

    from ...runtime.devices import plugin

    plugin.load("vulkan")  # its modules carry the kernels into the library; it needs no driver
    refused: list[EngineError] = []

    def build(module: Any, target: Any) -> Any:
        try:
            return _build(module, target)
        except EngineError as error:
            refused.append(error)
            raise

    tvm_ffi.register_global_func(_BUILD, build, override=True)
    try:
        with tvm.transform.PassContext(config=_PASSES):
            yield
    except Exception:
        if refused:  # TVM has made another class of it, with a traceback in its text
            raise refused[0] from None
        raise
    finally:
        tvm_ffi.registry.remove_global_func(_BUILD)


def _build(module: Any, target: Any) -> Any:
    """TVM's hook: lowered device functions -> a runtime module."""
    import tvm_ffi

    limits = {
        "max_threads": int(target.attrs["max_threads_per_block"]),
        "max_shared_bytes": int(target.attrs["max_shared_memory_per_block"]),
    }
    kernels = [emit_kernel(function, **limits) for function in module.functions.values()]
    for kernel in kernels:
        keep(f"{kernel.name}.spv", kernel.spirv)
    return tvm_ffi.get_global_func("ffi.Module.load_from_bytes.vulkan")(module_bytes(kernels))
