"""Libraries for Apple's graphics processors: what they are linked for, and their kernels in Metal's language, of which
only the types are checked here. The same kernels run on other devices, multiplications also from this language on the
processor, in tests/compiler/kernels/gpu."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tvm
from msl import has_clang, kernels_of, problems

from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.compiler.kernels.gpu.table import GpuKernels
from mlc_llm.compiler.kernels.operations import Matmul, RMSNorm, SwiGLU
from mlc_llm.compiler.kernels.storage import DenseStorage, GroupStorage, Storage
from mlc_llm.compiler.link import find_linker, link
from mlc_llm.compiler.target import CompileTarget, code_generation, metal, resolve_target
from mlc_llm.runtime.errors import ModelFileError, UsageError
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.macho import read_architecture

needs_zig = pytest.mark.skipif(not has_clang(), reason="links and checks types with ziglang: pip install ziglang")
STORAGES: list[Storage] = [
    GroupStorage(4, 32, "float16", 7),
    GroupStorage(8, 32, "uint16", 128),
    GroupStorage(4, 32, "int8", 0, minimum=True, super_size=256, super_dtype="float32"),
    DenseStorage("float16"),
]


@pytest.mark.parametrize(
    ("device", "host", "expected"),
    [
        ("metal", "auto", ("metal", "arm64-apple-macos")),
        ("metal:macos", "x86_64-apple-macos13.0", ("metal", "x86_64-apple-macos13.0")),
        ("iphone", "auto", ("iphone", "arm64-apple-ios")),
        ("metal:ios", "arm64-apple-ios17.0", ("iphone", "arm64-apple-ios17.0")),
    ],
)
def test_what_a_device_means(device: str, host: str, expected: tuple[str, str]) -> None:
    target = resolve_target(device, host)
    assert (target.device, target.host_triple) == expected
    assert target.attributes["kind"] == target.runtime_device == "metal"
    assert target.gpu is not None
    # what Macs of Intel have is not Apple's
    assert (target.gpu.subgroup, target.gpu.matrix) == ((0, "") if host.startswith("x86") else (32, "simdgroup"))


def test_a_mac_compiles_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metal, "native_triple", lambda: "x86_64-apple-darwin")
    assert resolve_target("metal").host_triple == "x86_64-apple-darwin"
    assert resolve_target("iphone").host_triple == "arm64-apple-ios"


@pytest.mark.parametrize(
    ("device", "host", "message"),
    [
        ("metal:m5", "auto", "--device metal:m5 is unknown: expected metal, metal:macos or iphone"),
        ("iphone:17", "auto", "--device iphone:17 is unknown: expected iphone"),
        ("metal", "x86_64-linux-gnu",
         "--device metal --host x86_64-linux-gnu: its libraries are loaded by macOS; expected a host like "
         "arm64-apple-macos"),
        ("iphone", "arm64-apple-macos",
         "--device iphone --host arm64-apple-macos: its libraries are loaded by iOS; expected a host like "
         "arm64-apple-ios"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(device: str, host: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target(device, host)
    assert str(caught.value) == message


def test_the_checks_of_kernels_find_mistakes() -> None:
    kernel = """#include <metal_stdlib>
using namespace metal;
kernel void f(device float* x [[ buffer(0) ]], device half* y [[ buffer(1) ]],
  uint threadIdx [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  thread float4 v[2];
  v[0] = *(device float4*)(x + 4) * float4(x[0], x[1], x[2], x[3]);
  v[1] = (float4)*(device half4*)(y + 4) + 1.0f;
  *(device half4*)(y) = (half4)v[0] * 2.0h;
  ushort4 bits = ushort4(as_type<uint4>(v[0]) & 255u);
  v[0] = fma(float4(bits), v[1], v[0]);
  shared[threadIdx] = simd_shuffle(exp2(v[0].x), threadIdx ^ 1);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 sums = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_half8x8 factor;
  simdgroup_load(factor, y, 8, 0, false);
  simdgroup_multiply_accumulate(sums, factor, factor, sums);
  simdgroup_store(sums, shared, 8);
  // here
}
"""
    assert problems(kernel) == []
    for mistake, reason in {
        "v[0] = *(device half4*)(y);": "assigning",
        "float4 q = float4(1.0f, 2.0f);": "as many numbers as it has elements",
        "float4 q = (float4)uint3(1);": "one of as many elements",
        "v[0] = v[0] + int4(1);": "cannot convert between vector values",
        "float q = erf(v[0].x);": "undeclared identifier 'erf'",
        "float q = max(v[0].x, y[0]);": "no matching function",
        "float q = max(x[0], 1);": "no matching function",
        "double q = 1;": "metal_has_no_double",
        "float q = as_type<float>(y[0]);": "as_type between sizes",
        "simdgroup_load(factor, v);": "no matching function",
        "threadgroup half more[20000];": "40256 bytes of threadgroup memory: expected at most 32768",
        "bfloat16 q;": "unknown type name",
        "device float* p = shared;": "cannot initialize",
    }.items():
        found = problems(kernel.replace("// here", mistake))
        assert found, mistake
        assert reason in found[0]
    (problem,) = problems(kernel.replace("buffer(1)", "buffer(0)"))
    assert problem == "buffers [0, 0]: expected at most 31, each index once"
    (problem,) = problems(kernel.replace("thread_position_in_threadgroup", "warp"))
    assert problem == "unknown attributes ['warp']"


def kernels(target: CompileTarget, storages: list[Storage]) -> tvm.IRModule:
    """What a model multiplies and norms with."""
    table = GpuKernels(target)
    functions = [table.function(RMSNorm(100, 1e-5), single=False), table.function(SwiGLU(40), single=False)]
    for storage in storages:
        for single in (True, False):
            operation = Matmul(48, 96, storage, bias=single, residual=not single, norm_eps=1e-5)
            functions.append(table.function(operation, single=single))
        functions.append(table.embedding((272,), 64, storage))
    return tvm.IRModule({f"kernel_{i}": f.with_attr("global_symbol", f"kernel_{i}") for i, f in enumerate(functions)})


@pytest.fixture
def linked(tmp_path: Path) -> Callable[[str, list[Storage]], bytes]:
    """A library of kernels for a device."""

    def make(device: str, storages: list[Storage]) -> bytes:
        target, output = resolve_target(device), tmp_path / "kernels.dylib"
        with code_generation(target):
            executable = tvm.compile(kernels(target, storages), target=target.tvm_target())
            link(executable, find_linker(target.host_triple), tmp_path, output, target.runtime_device)
        return output.read_bytes()

    return make


@needs_zig
@pytest.mark.parametrize(
    ("device", "storages", "machine"),
    [
        ("metal", STORAGES[:1], "aarch64 macOS"),
        pytest.param("iphone", STORAGES, "aarch64 iOS", marks=pytest.mark.slow),
    ],
)
def test_kernels_of_a_library_have_no_wrong_types(
    device: str, storages: list[Storage], machine: str, tmp_path: Path,
    linked: Callable[[str, list[Storage]], bytes],
) -> None:  # fmt: skip
    library = linked(device, storages)
    sources = kernels_of(library)
    assert len(sources) >= 2 + 6 * len(storages)  # the host chooses among several kernels of a multiplication
    assert {name: found for name, source in sources.items() if (found := problems(source))} == {}
    assert read_architecture(tmp_path / "kernels.dylib") == machine
    assert b"\nmlc-device:metal\n" in library
    assert b"___tvm_ffi_kernel_0\0" in library
    with pytest.raises(ModelFileError, match=rf"was compiled for {machine}, this machine is .*--device auto`$"):
        Library.load(tmp_path / "kernels.dylib")


@needs_zig
@pytest.mark.slow
def test_every_kernel_of_a_model(llama_folder: Path, tmp_path: Path) -> None:
    library = compile_model(CompileOptions(str(llama_folder), device="metal", output=tmp_path / "out")).library
    assert library == tmp_path / "out/Tiny-Llama-q4f16_1-metal.dylib"
    sources = kernels_of(library.read_bytes())
    for part in ("decode_attention", "prefill_attention", "sample", "copy_page", "gemv", "gemm"):
        assert any(part in name for name in sources), part
    assert {name: found for name, source in sources.items() if (found := problems(source))} == {}
