"""CUDA targets: what their names mean, and the machine code that a library carries. No card is needed; where there is
no compiler of NVIDIA's, another one stands in for it."""

import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
import tvm
import tvm_ffi
from small_kernels import small_module

from mlc_llm.compiler.target import code_generation, cuda, cuda_compilers, resolve_target
from mlc_llm.compiler.target import target as target_module
from mlc_llm.runtime.devices.cuda_code import FAT_BINARY, MAGIC, CudaCode
from mlc_llm.runtime.errors import EngineError, UsageError

_KNOWN = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_110", "sm_120")


class FakeCompiler:
    """Knows the usual architectures, and keeps the source that it gets."""

    name = "fake"
    source = ""

    def architectures(self) -> tuple[str, ...]:
        return _KNOWN

    def compile(self, source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        type(self).source = source
        if "turned_rows" not in source:
            raise EngineError("fake does not compile the kernels: kernels.cu(1): error")
        return {name: f"code for {name}".encode() for name in (*architectures, ptx)}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeCompiler]:
    monkeypatch.setattr(cuda, "find_compiler", FakeCompiler)
    return FakeCompiler


@pytest.mark.parametrize(
    ("device", "architectures"),
    [
        ("cuda", "sm_75,sm_80,sm_90,sm_100,sm_120"),
        ("cuda:sm_80", "sm_80"),
        ("cuda:sm_100, sm_90,sm_90", "sm_90,sm_100"),
        ("cuda:sm_90a,sm_90", "sm_90,sm_90a"),
    ],
)
@pytest.mark.usefixtures("fake")
def test_architectures_of_a_name(device: str, architectures: str) -> None:
    target = resolve_target(device, "x86_64-linux-gnu")
    assert (target.device, target.attributes["mcpu"]) == ("cuda", architectures)
    assert target.attributes["arch"] == architectures.split(",")[0]
    assert target.gpu is not None
    assert (target.gpu.max_threads, target.gpu.shared_bytes, target.gpu.subgroup) == (1024, 49152, 32)
    assert str(target.tvm_target().kind) == "cuda"
    assert target.kv_dtype("float16") == "float16"


@pytest.mark.parametrize("name", ["sm_30", "sm_9", "ampere", "sm_90,", "sm_90b", "90", "compute_80"])
@pytest.mark.usefixtures("fake")
def test_an_unknown_architecture_is_refused_with_those_that_the_compiler_knows(name: str) -> None:
    with pytest.raises(UsageError, match=r"is no architecture that fake compiles for; it knows sm_75, .*, sm_120$"):
        resolve_target(f"cuda:{name}")


@pytest.mark.usefixtures("fake")
def test_native_means_the_cards_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda.cuda, "devices", lambda: [{"architecture": "sm_89"}, {"architecture": "sm_80"}])
    assert resolve_target("cuda:native").attributes["mcpu"] == "sm_80,sm_89"
    monkeypatch.setattr(cuda.cuda, "devices", list)
    monkeypatch.setattr(cuda.cuda, "problem", lambda: "no NVIDIA driver")
    with pytest.raises(
        UsageError, match=r"^--device cuda:native: no NVIDIA driver; name architectures, as cuda:sm_90$"
    ):
        resolve_target("cuda:native")


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_compilers, "_nvcc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "_nvrtc", lambda: None)
    with pytest.raises(
        EngineError, match=r"`pip install nvidia-cuda-nvrtc nvidia-cuda-runtime .*`, or put nvcc on PATH"
    ):
        resolve_target("cuda")


def test_nvrtc_without_its_headers_is_refused_before_anything_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("lib/libnvrtc.so.13", "include/cuda_fp16.h"):
        path = tmp_path / "cu13" / name
        path.parent.mkdir(parents=True)
        path.touch()
    monkeypatch.setattr(cuda_compilers, "_nvcc", lambda: None)
    monkeypatch.setattr(cuda_compilers, "_nvidia_folders", lambda: iter([tmp_path / "cu13"]))
    with pytest.raises(EngineError, match=r"header cuda/std/cstdint for NVRTC is missing: `pip install nvidia-cuda"):
        resolve_target("cuda")


def _exported(device: str, folder: Path, module: tvm.IRModule) -> bytes:
    """The bytes of a library of `module`."""
    target = resolve_target(device, "x86_64-linux-gnu")
    with code_generation(target):
        tvm.compile(module, target=target.tvm_target()).export_library(str(folder / "kernels.so"))
    return (folder / "kernels.so").read_bytes()


def _code(library: bytes) -> CudaCode:
    start = library.index(MAGIC)
    (size,) = struct.unpack_from("<Q", library, start - 8)  # TVM writes lengths before strings
    return CudaCode.unpacked(library[start : start + size])


def test_a_library_carries_what_the_compiler_makes(fake: type[FakeCompiler], tmp_path: Path) -> None:
    before = tvm_ffi.get_global_func("tvm_callback_cuda_postproc", allow_missing=True)
    code = _code(_exported("cuda:sm_80,sm_90", tmp_path, small_module()))
    assert code == CudaCode(
        ("sm_80", "sm_90"),
        "compute_80",
        {name: f"code for {name}".encode() for name in ("sm_80", "sm_90", "compute_80")},
    )
    assert "__global__" in fake.source
    after = tvm_ffi.get_global_func("tvm_callback_cuda_postproc", allow_missing=True)
    assert (before is None) == (after is None)


@pytest.mark.usefixtures("fake")
def test_what_the_compiler_rejects_is_told_in_its_words(tmp_path: Path) -> None:
    module = small_module()
    del module["turned_rows"]
    with pytest.raises(EngineError, match=r"^fake does not compile the kernels: kernels.cu\(1\): error$"):
        _exported("cuda:sm_80", tmp_path, module)


@pytest.fixture(params=["nvcc", "nvrtc"])
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each compiler of this machine."""
    finder = getattr(cuda_compilers, f"_{request.param}")
    try:
        reason = None if finder() else f"this machine has no {request.param}"
    except EngineError as error:
        reason = str(error)
    if reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(cuda, "find_compiler", finder)
    return str(request.param)


def _images_of(fat_binary: bytes) -> list[tuple[int, int]]:
    """(kind, architecture) of what a fat binary holds; kind 1 is PTX, 2 machine code."""
    magic, _, header, size = struct.unpack_from("<IHHQ", fat_binary)
    assert (magic, header + size) == (0xBA55ED50, len(fat_binary))
    found, at = [], header
    while at < len(fat_binary):
        kind, _, header, size = struct.unpack_from("<HHIQ", fat_binary, at)
        found.append((kind, struct.unpack_from("<I", fat_binary, at + 28)[0]))
        at += header + size
    return found


def test_kernels_are_compiled_for_each_architecture(compiler: str, tmp_path: Path) -> None:
    code = _code(_exported("cuda:sm_80,sm_90", tmp_path, small_module()))
    assert (code.architectures, code.ptx) == (("sm_80", "sm_90"), "compute_80")
    if compiler == "nvcc":
        assert sorted(_images_of(code.images[FAT_BINARY])) == [(1, 80), (2, 80), (2, 90)]
        return
    for name in code.architectures:
        image = code.images[name]
        assert image[:4] == b"\x7fELF"
        assert struct.unpack_from("<H", image, 18) == (190,)  # EM_CUDA
        assert b"turned_rows_kernel" in image
        assert b"shuffled_sums_kernel" in image
    assert b".target sm_80" in code.images["compute_80"]
    assert code.images["compute_80"].endswith(b"\0")


_TENSOR_CORES = """
#include <cuda_fp16.h>
#include <mma.h>
extern "C" __global__ void product(const half* a, const half* b, float* c) {
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_a, 16, 16, 16, half, nvcuda::wmma::row_major> left;
  nvcuda::wmma::fragment<nvcuda::wmma::matrix_b, 16, 16, 16, half, nvcuda::wmma::col_major> right;
  nvcuda::wmma::fragment<nvcuda::wmma::accumulator, 16, 16, 16, float> sum;
  nvcuda::wmma::fill_fragment(sum, 0.0f);
  nvcuda::wmma::load_matrix_sync(left, a, 16);
  nvcuda::wmma::load_matrix_sync(right, b, 16);
  nvcuda::wmma::mma_sync(sum, left, right, sum);
  nvcuda::wmma::store_matrix_sync(c, sum, 16, nvcuda::wmma::mem_row_major);
}
"""


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_tensor_cores_and_errors() -> None:
    found = cuda.find_compiler()
    assert all(found.compile(_TENSOR_CORES, ["sm_80"], "compute_80").values())
    with pytest.raises(EngineError, match=r"does not compile the kernels: .*kernels\.cu.*error") as raised:
        found.compile(_TENSOR_CORES.replace("left, a, 16", "left, a"), ["sm_80"], "compute_80")
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("fake")
def test_auto_compiles_for_the_cards_of_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(target_module, "resolve_device", lambda _: "cuda")
    monkeypatch.setattr(cuda.cuda, "devices", lambda: [{"architecture": "sm_89"}])
    assert resolve_target("auto").attributes["mcpu"] == "sm_89"
