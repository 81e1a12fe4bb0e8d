"""NVIDIA's cards as a target: machine code for named architectures, and PTX for those that come later."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ...runtime.devices import cuda
from ...runtime.devices.cuda_code import CudaCode
from ...runtime.errors import UsageError
from .cuda_compilers import find_compiler
from .hooks import override
from .host import host_triple
from .sources import keep
from .target import NO_LIMIT, CompileTarget, GpuTraits

# What `--device cuda` compiles for, as far as the compiler knows it: the first architecture of each generation since
# Turing, whose code the later ones of the generation run too (sm_80 serves sm_86 and sm_89).
_PORTABLE = ("sm_75", "sm_80", "sm_90", "sm_100", "sm_120")


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device cuda:<variant>` means: architectures as "sm_80,sm_90", "native" for the cards of this machine,
    nothing for all the usual ones.

    The library gets machine code for each of them, and PTX of the oldest: every card at least as new as that runs it,
    what has no machine code of its own once its driver has compiled the PTX. Raises UsageError for architectures that
    the compiler does not know, EngineError where there is no compiler.
    """
    compiler = find_compiler()
    known = compiler.architectures()
    if variant == "native":
        named = _architectures_here()
    elif variant:
        named = [name.strip() for name in variant.split(",")]
    else:
        named = [name for name in _PORTABLE if name in known]
    for name in named:
        # "sm_90a" is sm_90 with what no other card has
        if not re.fullmatch(r"sm_\d+[af]?", name) or name.rstrip("af") not in known:
            raise UsageError(f"--device cuda:{variant}: {name!r} is no architecture that {compiler.name} compiles for; "
                             f"it knows {', '.join(known)}")  # fmt: skip
    architectures = sorted(set(named), key=lambda name: (_number(name), name))
    return CompileTarget(
        device="cuda",
        attributes={
            "kind": "cuda",
            "arch": f"sm_{_number(architectures[0])}",  # decides what the source may use: all of them compile it
            "mcpu": ",".join(architectures),
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
        },
        host_triple=host_triple(host),
        gpu=GpuTraits(max_threads=1024, shared_bytes=49152, subgroup=32, matrix="wmma", largest_buffer=NO_LIMIT),
    )


def _number(architecture: str) -> int:
    return int(re.sub(r"\D", "", architecture))


def _architectures_here() -> list[str]:
    found = [str(card["architecture"]) for card in cuda.devices()]
    if not found:
        raise UsageError(f"--device cuda:native: {cuda.problem()}; name architectures, as cuda:sm_90")
    return found


@contextmanager
def code_generation(target: CompileTarget) -> Iterator[None]:
    """TVM's CUDA source is compiled at once, and the machine code put in its place.

    Raises EngineError where the compiler is gone or rejects a kernel.
    """
    architectures = target.attributes["mcpu"].split(",")
    ptx = target.attributes["arch"].replace("sm_", "compute_")

    def compiled(source: str, _: object) -> bytes:
        keep("kernels.cu", source)
        return CudaCode(tuple(architectures), ptx, find_compiler().compile(source, architectures, ptx)).packed()

    with override({"tvm_callback_cuda_postproc": compiled}):
        yield
