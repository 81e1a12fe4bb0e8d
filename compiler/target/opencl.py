"""OpenCL as a target: OpenCL C 1.2 in the library, which the driver of the device builds and caches."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...runtime.errors import UsageError
from .hooks import override
from .host import host_triple
from .sources import keeping
from .target import CompileTarget, GpuTraits

# family -> whether all of its devices have cl_khr_fp16. Local memory and threads are what any of them has: Mali's local
# memory is main memory, and Mali and Adreno run few more threads in a group (Arm, "Mali GPU OpenCL Developer Guide";
# Qualcomm, "Snapdragon Mobile Platform OpenCL General Programming and Optimization").
_FAMILIES = {"": False, "adreno": True, "mali": True}
_TRAITS = GpuTraits(max_threads=256, shared_bytes=32 << 10)
_BUILD = "target.build.opencl"
_KERNEL = re.compile(r"__kernel void (\w+)\(")


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device opencl:<variant>` and `--host` mean. Raises UsageError."""
    if variant not in _FAMILIES:
        names = ", ".join(f"opencl:{name}" if name else "opencl" for name in _FAMILIES)
        raise UsageError(f"--device opencl:{variant} is unknown: expected {names}")
    return CompileTarget(
        device="opencl",
        attributes={"kind": "opencl", **_TRAITS.limits(), "thread_warp_size": 1},
        host_triple=host_triple(host),
        converts_float16=_FAMILIES[variant],
        gpu=_TRAITS,
    )


@contextmanager
def code_generation(_: CompileTarget) -> Iterator[None]:
    """TVM's own code generator, and kernels say how many threads a group has: a driver that does not know may use so
    many registers that a group does not fit, and could not build them before they are called."""
    import tvm_ffi

    build = tvm_ffi.get_global_func(_BUILD)
    sizes: dict[str, tuple[int, int, int]] = {}

    def noted(module: Any, target: Any) -> Any:
        sizes.update({str(f.attrs["global_symbol"]): _group_size(f) for f in module.functions.values()})
        return build(module, target)  # whose text is that of `sized`

    def sized(source: str, _: object) -> str:
        return _KERNEL.sub(lambda found: _declaration(found[1], sizes[found[1]]), source)

    with override({_BUILD: keeping(noted, ".cl"), "tvm_callback_opencl_postproc": sized}):
        yield


def _group_size(function: Any) -> tuple[int, int, int]:
    """Threads of a workgroup along x, y and z, which are constants in our kernels."""
    extents = dict.fromkeys("xyz", 1)

    def visit(statement: Any) -> None:  # launches are the outermost statements of a kernel
        if getattr(statement, "attr_key", "") == "thread_extent":
            name, _, axis = str(statement.node.thread_tag).partition(".")
            if name == "threadIdx":
                extents[axis] = int(statement.value)
        for inner in getattr(statement, "seq", [getattr(statement, "body", None)]):
            if inner is not None:
                visit(inner)

    visit(function.body)
    return extents["x"], extents["y"], extents["z"]


def _declaration(kernel: str, size: tuple[int, int, int]) -> str:
    return f"__kernel __attribute__((reqd_work_group_size({size[0]}, {size[1]}, {size[2]}))) void {kernel}("
