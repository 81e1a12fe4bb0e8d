"""AMD's cards as a target: code objects made by LLVM and its linker, with no ROCm installed.

There are no device libraries: what a kernel computes has to be LLVM's own, as exp, exp2, log, log2, sqrt, floor and
fabs are. What is not there, the linker refuses by name.
"""

import os
import re
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import TYPE_CHECKING, Any

from ...runtime.devices.rocm import architectures as architectures_here
from ...runtime.errors import UsageError
from .hooks import override
from .host import host_triple
from .lld import find_lld, link
from .sources import keep
from .target import NO_LIMIT, CompileTarget, GpuTraits

if TYPE_CHECKING:
    import tvm

MAGIC = b"MLCHIP1\n"  # begins the code in a library: then u64 n, n x {string architecture; string code object}
_TRIPLE = "amdgcn-amd-amdhsa-hcc"
_THREADS = 256  # TVM allows a kernel no more where there is no card
_SHARED = 64 << 10
# A barrier that waits for what threads have written, as HIP's: TVM's is the instruction alone, which does not, and past
# which LLVM may move what reads and writes.
_BARRIER = "mlc_barrier"
_BARRIER_CODE = f"""
declare void @llvm.amdgcn.s.barrier()

define linkonce_odr void @{_BARRIER}() convergent {{
  fence syncscope("workgroup") release, !mmra !0
  call void @llvm.amdgcn.s.barrier()
  fence syncscope("workgroup") acquire, !mmra !0
  ret void
}}

!0 = !{{!"amdgpu-synchronize-as", !"local"}}
"""
_WARNINGS = (b"Unable to detect ROCm version", b"Cannot get maximum number of threads")
_ABI_VERSION, _VERSION_5, _VERSION_6 = 8, 3, 4  # where an ELF file has it, and AMD's values


class RocmTarget(CompileTarget):
    """A target whose description TVM takes without a warning."""

    def tvm_target(self) -> "tvm.target.Target":
        """The target as TVM's object."""
        with _without_warnings():
            return super().tvm_target()


def resolve(variant: str, host: str) -> CompileTarget:
    """What `--device rocm:<variant>` means: architectures as "gfx1100" or "gfx90a,gfx942"; "native", or nothing, for
    the cards of this machine.

    Raises UsageError for architectures that LLVM does not know, EngineError where there is no linker.
    """
    from tvm.target import codegen

    named = [name.strip() for name in variant.split(",")] if variant not in ("", "native") else architectures_here()
    if not named:
        raise UsageError("--device rocm: this machine has no AMD card; name architectures, as rocm:gfx1100 or "
                         "rocm:gfx90a,gfx942")  # fmt: skip
    for name in named:
        if not re.fullmatch(r"gfx\d{1,3}[0-9a-f]\d?", name) or not codegen.llvm_is_valid_cpu(name, _TRIPLE):
            raise UsageError(f"--device rocm:{variant}: LLVM knows no architecture {name!r}; expected one as gfx90a, "
                             "gfx942, gfx1030, gfx1100 or gfx1201 (rocminfo tells a card's)")  # fmt: skip
    find_lld()
    architectures = list(dict.fromkeys(named))
    warps = {_wavefront(name) for name in architectures}
    units = {_matrix_units(name) for name in architectures}
    return RocmTarget(
        device="rocm",
        attributes={
            "kind": "rocm",
            "mcpu": architectures[0],
            "mtriple": _TRIPLE,
            "max_num_threads": _THREADS,
            "max_threads_per_block": _THREADS,
            "max_shared_memory_per_block": _SHARED,
            "thread_warp_size": min(warps),
            "keys": ["rocm", "gpu", *architectures],
        },
        host_triple=host_triple(host),
        # what only some of the cards have is not to be relied on
        gpu=GpuTraits(
            max_threads=_THREADS,
            shared_bytes=_SHARED,
            subgroup=warps.pop() if len(warps) == 1 else 0,
            matrix=units.pop() if len(units) == 1 else "",
            largest_buffer=NO_LIMIT,
        ),
    )


def _wavefront(architecture: str) -> int:
    """Lanes that run together: 64 up to gfx9 (GCN and CDNA), 32 on what came after (RDNA)."""
    return 64 if int(architecture[3:-2]) < 10 else 32


def _matrix_units(architecture: str) -> str:
    """The matrix units of a card: CDNA's, RDNA3's, or none (RDNA4's have another layout)."""
    if re.fullmatch(r"gfx(908|90a|94\d|950)", architecture):
        return "mfma"
    return "wmma_rdna" if re.fullmatch(r"gfx11\d\d", architecture) else ""


@contextmanager
def code_generation(target: CompileTarget) -> Iterator[None]:
    """TVM's code generator for AMD, for each architecture in turn, with our linker.

    Raises EngineError where the linker is gone or finds a function that no card has.
    """
    import tvm
    import tvm_ffi

    architectures = [name for name in target.attributes["keys"] if name.startswith("gfx")]
    build = tvm_ffi.get_global_func("target.build.rocm")
    made: list[bytes] = []

    def build_all(module: Any, _: object) -> Any:
        made.clear()
        with _without_warnings():
            for name in architectures:
                last = build(module, tvm.target.Target({**target.attributes, "mcpu": name}))
        return last

    def linked(compiled: bytes) -> bytes:
        made.append(_code_object(bytes(compiled)))
        keep(f"kernels-{architectures[len(made) - 1]}.hsaco", made[-1])
        # TVM saves what the last call returns
        return _packed(dict(zip(architectures, made, strict=True))) if len(made) == len(architectures) else made[-1]

    hooks: dict[str, Callable[..., Any]] = {
        "target.build.rocm": build_all,
        "tvm_callback_rocm_link": linked,
        "tvm_callback_rocm_bitcode_path": lambda *_: [str(barrier)],
    }
    with TemporaryDirectory(prefix="mlc-rocm-") as folder, override(hooks), _fences():
        barrier = Path(folder, "barrier.ll")
        barrier.write_text(_BARRIER_CODE)
        yield


@contextmanager
def _fences() -> Iterator[None]:
    """TVM calls `_BARRIER` for its barriers of a workgroup."""
    import tvm
    from tvm import tirx

    def lowered(call: Any) -> Any:
        return tirx.call_extern("void", _BARRIER) if call.args[0].value == "shared" else call

    tirx.register_intrin_lowering("tirx.tvm_storage_sync", "rocm", f=lowered)
    try:
        yield
    finally:
        tvm.ir.Op.get("tirx.tvm_storage_sync").reset_attr("rocm.FLowerIntrinsic")


def _code_object(compiled: bytes) -> bytes:
    """An object file linked to what HIP loads.

    LLVM writes version 6 of AMD's format, which ROCm reads since 6.3. It differs from version 5 in a flag of generic
    architectures alone (llvm-project pull request 76954), which are not among ours: so it is called 5.
    """
    if compiled[_ABI_VERSION] == _VERSION_6:
        compiled = compiled[:_ABI_VERSION] + bytes([_VERSION_5]) + compiled[_ABI_VERSION + 1 :]
    with TemporaryDirectory(prefix="mlc-rocm-") as folder:
        path = Path(folder, "kernels.o")
        path.write_bytes(compiled)
        return link(path, ["-shared", "--no-undefined", "--strip-debug"])


def _packed(objects: dict[str, bytes]) -> bytes:
    """The code of a library, as the plug-in for HIP reads it."""
    parts = [MAGIC, struct.pack("<Q", len(objects))]
    for name, code in objects.items():
        parts += [struct.pack("<Q", len(name)), name.encode(), struct.pack("<Q", len(code)), code]
    return b"".join(parts)


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Drop what TVM's C++ code says on file descriptor 2 of each target and kernel: that it sees no card here."""
    sys.stderr.flush()
    with TemporaryFile() as said:
        kept = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            said.seek(0)
            others = [line for line in said if not any(warning in line for warning in _WARNINGS)]
            sys.stderr.write(b"".join(others).decode("utf-8", "replace"))
