"""What code generators write of kernels is kept where somebody asks for it."""

from pathlib import Path

import pytest
import tvm

from mlc_llm.compiler.kernels.gpu.layers import last_row, silu_mul
from mlc_llm.compiler.target import code_generation, resolve_target
from mlc_llm.compiler.target.sources import sources_kept


def compiled(device: str, folder: Path | None) -> None:
    target = resolve_target(device)
    functions = {"silu": silu_mul(64, single=True), "last": last_row(64)}
    module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in functions.items()})
    with code_generation(target), sources_kept(folder):
        tvm.compile(module, target=target.tvm_target())


@pytest.mark.parametrize(
    ("device", "suffix", "part"),
    [
        ("opencl", ".cl", b"__attribute__((reqd_work_group_size(128, 1, 1))) void silu_kernel("),
        ("vulkan", ".spv", (0x07230203).to_bytes(4, "little")),
        ("metal", ".metal", b"kernel void silu_kernel("),
        ("webgpu", ".wgsl", b"fn silu_kernel("),
    ],
)
def test_each_kernel_has_a_file(device: str, suffix: str, part: bytes, tmp_path: Path) -> None:
    compiled(device, tmp_path)
    kept = tmp_path / "kernels"
    assert sorted(path.name for path in kept.iterdir()) == [f"last_kernel{suffix}", f"silu_kernel{suffix}"]
    assert part in (kept / f"silu_kernel{suffix}").read_bytes()


def test_nothing_is_kept_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    compiled("opencl", None)
    assert not list(tmp_path.iterdir())
