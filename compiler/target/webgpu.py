"""Browsers' graphics interface as a target: WGSL in the library. Nothing here loads such a library; the kernels are as
good as their text, which a validator has read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...runtime.errors import UsageError
from .hooks import override
from .host import host_triple
from .sources import keeping
from .target import CompileTarget, GpuTraits

# W3C, "WebGPU", 3.6.2: an adapter has 256 threads and 16 KiB in a workgroup. Kernels ask for twice the memory, which
# graphics cards of desktops and laptops have, and a page has to ask for, as for float16 ("shader-f16").
_TRAITS = GpuTraits(max_threads=256, shared_bytes=32 << 10)
_SMALL_INTEGER = re.compile(r"array<(?:vec[234]<)?([iu](?:8|16))>")
_BITS = {"i8": "8", "u8": "8", "i16": "16", "u16": "16"}


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device webgpu` and `--host` mean. Raises UsageError."""
    if variant:
        raise UsageError(f"--device webgpu:{variant} is unknown: expected webgpu")
    return CompileTarget(
        device="webgpu",
        attributes={"kind": "webgpu", **_TRAITS.limits()},
        host_triple=host_triple(host),
        gpu=_TRAITS,
    )


@contextmanager
def code_generation(_: CompileTarget) -> Iterator[None]:
    """TVM's own code generator, which writes types that WGSL lacks. Raises UsageError for those."""
    import tvm_ffi

    build = tvm_ffi.get_global_func("target.build.webgpu")

    def checked(module: Any, target: Any) -> Any:
        built = build(module, target)
        if missing := _SMALL_INTEGER.search(built.inspect_source("")):
            raise UsageError(f"--device webgpu: WGSL has no integers of {_BITS[missing[1]]} bits, in which the model's "
                             "scales or biases are stored: choose -q q4f16_1, q4f32_1, q0f16 or q0f32")  # fmt: skip
        return built

    with override({"target.build.webgpu": keeping(checked, ".wgsl")}):
        yield
