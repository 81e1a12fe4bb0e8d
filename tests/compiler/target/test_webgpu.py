"""Kernels in WGSL, as wgpu's validator reads them."""

import re
import struct
from pathlib import Path
from typing import Any

import pytest
import tvm

from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.compiler.kernels.gpu.table import GpuKernels
from mlc_llm.compiler.kernels.operations import Matmul, RMSNorm, SwiGLU
from mlc_llm.compiler.kernels.storage import DenseStorage, GroupStorage, Storage
from mlc_llm.compiler.target import code_generation, resolve_target
from mlc_llm.runtime.errors import UsageError

_START = "// Function: "
_RULE = b"//----------------------------------------\n"  # begins the text of a kernel, after its length


@pytest.fixture(scope="module")
def validator() -> Any:
    """A device of wgpu, whose shader modules are validated when they are made."""
    wgpu = pytest.importorskip("wgpu", reason="validates with wgpu: pip install wgpu")
    try:
        adapter = wgpu.gpu.request_adapter_sync()
        return adapter.request_device_sync(
            required_features=["shader-f16"],
            required_limits={
                "max-compute-workgroup-storage-size": 32 << 10,
                "max-storage-buffers-per-shader-stage": 10,
            },
        )
    except RuntimeError as error:
        pytest.skip(f"wgpu finds no device ({error}): apt install mesa-vulkan-drivers")


def sources(storage: Storage) -> dict[str, str]:
    """The kernels that a model multiplies and norms with: name -> text."""
    target = resolve_target("webgpu")
    table = GpuKernels(target)
    functions = {
        "norm": table.function(RMSNorm(100, 1e-5), single=False),
        "silu": table.function(SwiGLU(40), single=False),
        "gemv": table.function(Matmul(48, 96, storage, bias=True, norm_eps=1e-5), single=True),
        "gemm": table.function(Matmul(48, 96, storage, residual=True), single=False),
        "embedding": table.embedding((272,), 64, storage),
    }
    module = tvm.IRModule({name: function.with_attr("global_symbol", name) for name, function in functions.items()})
    with code_generation(target):
        (built,) = tvm.compile(module, target=target.tvm_target()).mod.imports
    # TVM writes each name twice
    parts = [part.partition("\n") for part in built.inspect_source("").split(_START)[1:]]
    return {name: text for name, _, text in parts if "@compute" in text}


@pytest.mark.parametrize(
    "storage",
    [
        GroupStorage(4, 32, "float16", 7),
        pytest.param(GroupStorage(8, 32, "float32", 128), marks=pytest.mark.slow),
        pytest.param(DenseStorage("float16"), marks=pytest.mark.slow),
    ],
)
def test_kernels_are_valid(storage: Storage, validator: Any) -> None:
    kernels = sources(storage)
    assert {re.sub(r"_kernel.*", "", name) for name in kernels} == {"norm", "silu", "gemv", "gemm", "embedding"}
    for text in kernels.values():
        validator.create_shader_module(code=text)


@pytest.mark.slow
def test_every_kernel_of_a_model(llama_folder: Path, tmp_path: Path, validator: Any) -> None:
    output = compile_model(CompileOptions(str(llama_folder), device="webgpu", output=tmp_path / "out")).library
    library, names = output.read_bytes(), []
    position = library.find(_RULE)
    while position >= 0:
        (length,) = struct.unpack_from("<Q", library, position - 8)
        text = library[position : position + length].decode()
        names += re.findall(r"^fn (\w+)\(", text, re.MULTILINE)
        module = validator.create_shader_module(code=text)
        validator.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": names[-1]})
        position = library.find(_RULE, position + length)
    for part in ("decode_attention", "prefill_attention", "sample", "copy_page", "gemv", "gemm"):
        assert any(part in name for name in names), part


def test_the_validator_finds_mistakes(validator: Any) -> None:
    with pytest.raises(Exception, match="no definition in scope for identifier"):
        validator.create_shader_module(code="@compute @workgroup_size(1) fn f() { missing(); }")


@pytest.mark.parametrize(
    ("storage", "bits"),
    [(GroupStorage(8, 32, "uint16", 128), 16),
     (GroupStorage(4, 32, "int8", 0, minimum=True, super_size=256, super_dtype="float32"), 8)],
)  # fmt: skip
def test_types_that_wgsl_lacks_are_refused(storage: Storage, bits: int) -> None:
    with pytest.raises(
        UsageError, match=rf"^--device webgpu: WGSL has no integers of {bits} bits, in which .*: choose"
    ):
        sources(storage)


def test_webgpu_has_no_variants() -> None:
    with pytest.raises(UsageError, match=r"^--device webgpu:chrome is unknown: expected webgpu$"):
        resolve_target("webgpu:chrome")
    assert resolve_target("webgpu").runtime_device == "webgpu"
