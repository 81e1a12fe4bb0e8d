"""The CPU as a target: which processor, which instruction sets, which vector width."""

import platform
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from ...runtime.errors import UsageError
from ...runtime.processor import cpu_features, host_architecture
from .target import CompileTarget

# LLVM's feature name -> the flag of /proc/cpuinfo; only those that code generation uses
_X86_FLAGS = {
    "sse2": "sse2",
    "ssse3": "ssse3",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "popcnt": "popcnt",
    "avx": "avx",
    "f16c": "f16c",
    "fma": "fma",
    "avx2": "avx2",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "avxvnni": "avx_vnni",
    "avx512f": "avx512f",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512vl": "avx512vl",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512bitalg": "avx512_bitalg",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avx512vnni": "avx512_vnni",
    "avx512bf16": "avx512_bf16",
    "avx512fp16": "avx512_fp16",
    "gfni": "gfni",
    "amx-tile": "amx_tile",
    "amx-int8": "amx_int8",
    "amx-bf16": "amx_bf16",
}
_AARCH64_FLAGS = {"dotprod": "asimddp", "i8mm": "i8mm", "fullfp16": "asimdhp", "bf16": "bf16", "sve": "sve"}


def native_triple() -> str:
    """LLVM's triple of this machine."""
    return f"{host_architecture()}-{'apple-darwin' if platform.system() == 'Darwin' else 'linux-gnu'}"


def cpu_target(processor: str = "native", host: str = "auto", mattr: Sequence[str] = ()) -> CompileTarget:
    """A CPU target: `processor` is LLVM's name of one ("znver4", "x86-64-v3") or "native"; `mattr` adds instruction
    sets to it ("+dotprod") or takes them away ("-avx512f").

    Raises UsageError for a processor or host triple that LLVM does not know.
    """
    import tvm
    from tvm.target import codegen

    native = native_triple()
    triple = native if host == "auto" else host
    if processor == "native":
        if triple.split("-")[0] != native.split("-")[0]:
            raise UsageError(
                f"--host {host}: name the processor too, as --device cpu:generic; this machine is {native}"
            )
        processor = codegen.llvm_get_system_cpu()
        present = cpu_features()  # empty where the system does not tell
    else:
        present = frozenset()
    if not codegen.llvm_is_valid_cpu(processor, triple):
        raise UsageError(f"--device cpu:{processor}: LLVM knows no such processor for {triple}; try cpu:x86-64-v3")
    attributes: dict[str, Any] = {"kind": "llvm", "mcpu": processor, "mtriple": triple}
    if mattr:
        attributes["mattr"] = list(mattr)
    features = codegen.llvm_get_cpu_features(tvm.target.Target(attributes))
    is_aarch64 = triple.startswith(("aarch64", "arm64"))
    flags = _AARCH64_FLAGS if is_aarch64 else _X86_FLAGS
    wanted = {llvm: flag for llvm, flag in flags.items() if llvm in features}
    if present:
        # a hypervisor may hide instruction sets that the processor's name implies
        hidden = [llvm for llvm, flag in wanted.items() if flag not in present]
        if hidden:
            attributes["mattr"] = [*mattr, *(f"-{llvm}" for llvm in hidden)]
            wanted = {llvm: flag for llvm, flag in wanted.items() if llvm not in hidden}
    lanes = 16 if "avx512f" in wanted else 8 if "avx2" in wanted else 4
    return CompileTarget(
        device="cpu",
        attributes=attributes,
        host_triple=triple,
        lanes=lanes,
        vector_registers=32 if lanes == 16 or is_aarch64 else 16,
        converts_float16="f16c" in wanted or is_aarch64,
        cpu_features=tuple(sorted(wanted.values())),
    )


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device cpu:<variant>` means."""
    return cpu_target(variant or "native", host)


def code_generation(_: CompileTarget) -> AbstractContextManager[None]:
    """LLVM needs nothing."""
    return nullcontext()
