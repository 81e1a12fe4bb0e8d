"""Apple's graphics processors as a target: Metal's language in the library, which the system compiles at load.

Nothing of Apple's is needed to make one: TVM writes the kernels as text, and the part for the processor is linked for
macOS or iOS on any machine (link.py).
"""

from contextlib import AbstractContextManager
from dataclasses import replace

from ...runtime.errors import UsageError
from .cpu import native_triple
from .hooks import override
from .host import host_triple, parse_host
from .sources import keeping
from .target import CompileTarget, GpuTraits

_BUILD = "target.build.metal"
_HOSTS = {"macos": "arm64-apple-macos", "ios": "arm64-apple-ios"}
# Of each device since the A14 and the M1 (Apple, "Metal Feature Set Tables", family Apple7), but for the threads: how
# many a kernel can have depends on its registers too, and 256 are always possible.
_TRAITS = GpuTraits(max_threads=256, shared_bytes=32 << 10, subgroup=32, matrix="simdgroup")
# Macs of Intel have graphics processors of Intel and AMD: SIMD-groups of other sizes, and no matrices in them.
_INTEL = replace(_TRAITS, subgroup=0, matrix="")


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device metal:<variant>` and `--host` mean: variant "macos", or nothing, or "ios". Raises UsageError."""
    if variant not in ("", *_HOSTS):
        raise UsageError(f"--device metal:{variant} is unknown: expected metal, metal:macos or iphone")
    system = variant or "macos"
    if host == "auto":
        here = native_triple()
        host = here if system == "macos" and parse_host(here).system == "macos" else _HOSTS[system]
    device = "iphone" if system == "ios" else "metal"
    if parse_host(host).system != system:
        name = "iOS" if system == "ios" else "macOS"
        raise UsageError(f"--device {device} --host {host}: its libraries are loaded by {name}; expected a host like "
                         f"{_HOSTS[system]}")  # fmt: skip
    traits = _INTEL if host.startswith("x86_64") else _TRAITS
    return CompileTarget(
        device=device,
        attributes={
            "kind": "metal",
            **traits.limits(),
            "max_threads_per_block": traits.max_threads,
            "thread_warp_size": traits.subgroup or 1,
        },
        host_triple=host_triple(host),
        vector_registers=32,
        gpu=traits,
    )


def code_generation(_: CompileTarget) -> AbstractContextManager[None]:
    """TVM's own code generator, whose text is kept for those who want to read it."""
    import tvm_ffi

    return override({_BUILD: keeping(tvm_ffi.get_global_func(_BUILD), ".metal")})
