"""What only some devices have of the multiplications, exchanges within a warp and matrix units: their CUDA and Metal
sources run on this machine's processor. What Vulkan's do with cooperative matrices is CUDA's there."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msl import has_clang

_PROGRAM = """
import sys
from pathlib import Path
import {kind}_on_cpu
{kind}_on_cpu.install(Path(sys.argv[1]))
from matmul_checks import check, kernels_of, stored
from mlc_llm.compiler.kernels.gpu import table
from mlc_llm.compiler.kernels.operations import Matmul
"""
_PLAIN = """
op = Matmul(41, 73, stored("q4", "{kind}"), bias=True, residual=True)
check(op, kernels_of(op, "{kind}", units=True), [1, 3, 7, 70], units=True)
"""
_COOPERATIVE = """
from dataclasses import replace
import device_kernels
target = device_kernels.device_target("cuda")
cooperative = replace(target, gpu=device_kernels.resolve_target("vulkan:cooperative").gpu)
device_kernels.device_target = lambda kind: cooperative
import matmul_checks
matmul_checks.device_target = device_kernels.device_target
op = Matmul(2 * 80, 73, stored("q4", "cuda"), norm_eps=1e-5, swiglu=True)
check(op, kernels_of(op, "cuda", units=True), [70], units=True)
"""
_ALL = """
table._MANY_ROWS = 64  # 70 rows are many: the larger workgroups of matrix units, where there are some
op = Matmul(2 * 80, 300, stored("q4 with minimum", "{kind}"), bias=True, norm_eps=1e-5, swiglu=True)
check(op, kernels_of(op, "{kind}", units=True), [1, 3, 7, 17, 70, 140], units=True)
for storage in ("float16", "bfloat16", "q8 of two levels", "q4 group 40"):
    op = Matmul(144, 100, stored(storage, "{kind}"), norm_eps=1e-5)
    check(op, kernels_of(op, "{kind}", units=True), [1, 3, 7, 70], units=True)
op = Matmul(41, 73, stored("float32", "{kind}"))
check(op, kernels_of(op, "{kind}"), [1, 3, 7, 70])
"""


@pytest.mark.skipif(shutil.which("g++") is None, reason="devices' languages are compiled for processors by g++")
@pytest.mark.parametrize(
    ("kind", "program"),
    [
        pytest.param("cuda", _PLAIN, id="cuda"),
        pytest.param("metal", _PLAIN, id="metal"),
        pytest.param("cuda", _COOPERATIVE, id="cooperative"),
        pytest.param("cuda", _ALL, id="all of cuda", marks=pytest.mark.slow),
        pytest.param("metal", _ALL, id="all of metal", marks=pytest.mark.slow),
    ],
)
def test_products_equal_numpy(kind: str, program: str, tmp_path: Path) -> None:
    if kind == "metal" and not has_clang():
        pytest.skip("Metal's language is compiled by clang: pip install ziglang")
    packages = [str(Path(__file__).parents[3] / "helpers"), *filter(None, sys.path)]
    environment = {"PYTHONPATH": ":".join(packages), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", (_PROGRAM + program).replace("{kind}", kind), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
