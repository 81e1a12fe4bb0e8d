"""`--device` as a target in JSON, as TVM writes them: what of it is taken, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import tvm

from mlc_llm.compiler.target import CompileTarget, resolve_target
from mlc_llm.compiler.target.target import GpuTraits
from mlc_llm.runtime.errors import UsageError


def resolved(asked: str = "auto", /, **description: Any) -> CompileTarget:
    """The target of a description and of what `--host` asks for."""
    return resolve_target(json.dumps(description), asked)


def test_a_processor() -> None:
    given = {"mcpu": "znver4", "mtriple": "x86_64-linux-gnu"}
    assert resolved(kind="llvm", **given) == resolve_target("cpu:znver4", "x86_64-linux-gnu")
    assert resolved(kind="llvm", **given).lanes == 16
    narrow = resolved(kind="llvm", mattr=["-avx512f"], **given)
    assert narrow.lanes == 8
    assert narrow.attributes["mattr"] == ["-avx512f"]
    assert "avx512f" not in narrow.cpu_features
    assert resolved(kind="llvm") == resolve_target("cpu")


@pytest.mark.parametrize("kind", ["metal", "opencl", "vulkan", "webgpu"])
def test_a_device_that_has_a_name(kind: str) -> None:
    target = resolved(kind=kind)
    assert target == resolve_target(kind)
    # what TVM makes of a target means the same, as long as its limits are high enough
    described = tvm.target.Target({**target.attributes, "max_shared_memory_per_block": 32768}).export()
    described = {name: list(value) if name == "keys" else value for name, value in described.items()}
    again = resolved(**described)
    assert (again.gpu, again.device, again.host_triple) == (target.gpu, target.device, target.host_triple)


def test_variants_hosts_and_families() -> None:
    assert resolved(kind="opencl", device="mali") == resolve_target("opencl:mali")
    phone = resolved(kind="metal", host={"kind": "llvm", "mtriple": "arm64-apple-ios16.0"})
    assert phone == resolve_target("iphone", "arm64-apple-ios16.0")
    assert resolved(kind="opencl", host="aarch64-linux-gnu") == resolve_target("opencl", "aarch64-linux-gnu")
    assert resolved("aarch64-linux-gnu", kind="opencl") == resolve_target("opencl", "aarch64-linux-gnu")


def test_limits_can_be_lowered_and_not_raised() -> None:
    limits = {"max_num_threads": 4096, "max_threads_per_block": 256, "max_shared_memory_per_block": 1 << 20}
    target = resolved(kind="vulkan", **limits, supports_16bit_buffer=False)
    assert target.gpu == GpuTraits(max_threads=256, shared_bytes=32 << 10)
    assert target.attributes["max_num_threads"] == 256
    assert not target.converts_float16
    assert target.attributes["supports_16bit_buffer"] is False


def test_the_largest_tensor_can_be_stated() -> None:
    target = resolved(kind="opencl", largest_buffer=64 << 20)
    assert target.gpu == GpuTraits(largest_buffer=64 << 20)
    assert target.attributes == resolve_target("opencl").attributes


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "phone.json"
    path.write_text(json.dumps({"kind": "opencl", "device": "adreno"}))
    assert resolve_target(str(path)) == resolve_target("opencl:adreno")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"kind": "cuda"', "--device is not valid JSON (Expecting ',' delimiter: line 1 column 16 (char 15)): "
         'expected a target like {"kind": "cuda", "arch": "sm_90"}'),
        ("{}", '--device: a target in JSON is an object that names its kind, like {"kind": "cuda"}'),
        ('{"kind": 3}', '--device: a target in JSON is an object that names its kind, like {"kind": "cuda"}'),
        ('{"kind": "opencl", "device": 3}', '--device opencl: "device" is 3: expected text'),
        ('{"kind": "metal", "host": [1]}', '--device metal: its host is [1]: expected {"mtriple": "aarch64-linux-'),
        ('{"kind": "metal", "warps": 2}', "--device metal: Unknown config option 'warps'. Known options: "),
        ('{"kind": "metal", "thread_warp_size": "x"}', "--device metal: Option 'thread_warp_size': expected "),
        ('{"kind": "opencl", "max_threads_per_block": 64}',
         '--device opencl: "max_threads_per_block" is 64: the kernels need 256'),
        ('{"kind": "opencl", "max_shared_memory_per_block": true}',
         '--device opencl: "max_shared_memory_per_block" is True: the kernels need 32768'),
        ('{"kind": "opencl", "largest_buffer": 4096}',
         '--device opencl: "largest_buffer" is 4096: expected at least 1048576 bytes'),
        ('{"kind": "llvm", "mattr": "avx2"}',
         "--device llvm: \"mattr\" is 'avx2': expected a list like [\"-avx512f\", \"+dotprod\"]"),
        ('{"kind": "llvm", "mcpu": "nonsense"}', "--device cpu:nonsense: LLVM knows no such processor for "),
        ("[" * 100000 + "{.json", "--device [["),
        ("none.json", "--device none.json cannot be read: No such file or directory: expected a file with a target"),
    ],
)  # fmt: skip
def test_what_is_no_target_is_refused(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve_target(text)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_an_unknown_kind_and_two_hosts_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^--device 'hexagon' is unknown: expected auto, cpu, "):
        resolved(kind="hexagon")
    with pytest.raises(
        UsageError, match=r"^--host x86_64-linux-gnu: the target in --device names another host, arm64-a"
    ):
        resolved("x86_64-linux-gnu", kind="metal", host="arm64-apple-macos")


@pytest.mark.parametrize("content", [b"\xff", b"[" * 50000, b" " * (1 << 17)])
def test_files_that_are_no_targets(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.json(: a target| is not valid JSON| cannot be read)"):
        resolve_target(str(path))
