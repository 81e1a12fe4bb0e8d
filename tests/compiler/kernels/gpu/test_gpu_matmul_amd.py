"""Multiplications by AMD's matrix units: where lanes think that numbers lie is where AMD's tables have them, kernels
that run on this machine's processor with the instruction of these tables equal numpy, and code has the instruction."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tvm
from amd_matrix_units import INSTRUCTIONS, places
from code_objects import code_objects, instructions

from mlc_llm.compiler.kernels.gpu.table import matmul
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import GroupStorage
from mlc_llm.compiler.target import code_generation, resolve_target

_PROGRAM = """
import sys
from dataclasses import replace
from pathlib import Path
import amd_matrix_units, cuda_on_cpu, device_kernels, matmul_checks
from mlc_llm.compiler.kernels.gpu import table
from mlc_llm.compiler.kernels.operations import Matmul
units = amd_matrix_units.emulated(sys.argv[2])
cuda_on_cpu.install(Path(sys.argv[1]), units.lanes)
table.matrix_units = lambda traits: units()
target = device_kernels.device_target("cuda")
traits = replace(target.gpu, max_threads=256, shared_bytes=64 << 10, subgroup=units.lanes)
matmul_checks.device_target = device_kernels.device_target = lambda kind: replace(target, gpu=traits)
table.unit_rows = lambda traits, units: [ROWS]
op = Matmul(2 * 16, 73, matmul_checks.stored("q4", "cuda"), bias=True, residual=ROWS == 128, swiglu=ROWS == 64)
matmul_checks.check(op, matmul_checks.kernels_of(op, "cuda", units=True), [20], units=True)
"""


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_numbers_lie_where_the_instruction_takes_them(instruction: str) -> None:
    units: Any = INSTRUCTIONS[instruction]
    random = np.random.default_rng(0)
    left, right = random.integers(-9, 9, (2, 16, 16))
    lanes = np.arange(units.lanes)
    ks = np.broadcast_to(units.first_k(lanes), lanes.shape)[:, None] + np.arange(units.factors)
    of_left, of_right = left[lanes[:, None] % 16, ks], right[ks, lanes[:, None] % 16]  # [lane, number]
    a, b, d = (places(instruction, matrix) for matrix in "ABD")
    for taken, matrix in ((of_left[a[..., 0], a[..., 1]], left), (of_right[b[..., 0], b[..., 1]], right)):
        np.testing.assert_array_equal(taken, np.broadcast_to(matrix[..., None], taken.shape))  # each copy of it
    assert d.shape[2] == 1
    sums = np.zeros((units.lanes, units.results), int)
    sums[d[..., 0, 0], d[..., 0, 1]] = left @ right
    found = np.zeros((16, 16), int)
    for n in range(units.results):
        found[units.row(lanes, n), lanes % 16] = sums[:, n]
    np.testing.assert_array_equal(found, left @ right)


@pytest.mark.skipif(shutil.which("g++") is None, reason="devices' languages are compiled for processors by g++")
@pytest.mark.slow
@pytest.mark.parametrize(("instruction", "rows"), list(zip(INSTRUCTIONS, (128, 64), strict=True)))
def test_products_equal_numpy(instruction: str, rows: int, tmp_path: Path) -> None:
    packages = [str(Path(__file__).parents[3] / "helpers"), *filter(None, sys.path)]
    environment = {"PYTHONPATH": ":".join(packages), "PATH": "/usr/bin:/bin"}
    command = [sys.executable, "-c", _PROGRAM.replace("ROWS", str(rows)), str(tmp_path), instruction]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("device", "names"),
    [
        ("gfx90a,gfx942", {"gfx90a": "v_mfma_f32_16x16x16f16", "gfx942": "v_mfma_f32_16x16x16_f16"}),
        ("gfx1100", {"gfx1100": "v_wmma_f32_16x16x16_f16"}),
        pytest.param("gfx1100,gfx942", {"gfx1100": "", "gfx942": ""}, marks=pytest.mark.slow),
    ],
)
def test_code_has_the_instruction(device: str, names: dict[str, str], tmp_path: Path) -> None:
    target = resolve_target(f"rocm:{device}", "x86_64-linux-gnu")
    assert target.gpu is not None
    function = matmul(Matmul(160, 96, GroupStorage(4, 32, "float16", 7), norm_eps=1e-5), target.gpu, units=True)
    module = tvm.IRModule({"gemm": function.with_attr("global_symbol", "gemm")})
    with code_generation(target):
        tvm.compile(module, target=target.tvm_target()).export_library(str(tmp_path / "kernels.so"))
    for architecture, code in code_objects((tmp_path / "kernels.so").read_bytes()).items():
        text = instructions(code, architecture, tmp_path)
        if text is None:
            pytest.skip("there is no llvm-objdump")
        if not names[architecture]:  # what one of the cards lacks, the library does without
            assert "mfma" not in text
            assert "wmma" not in text
            continue
        assert f"\t{names[architecture]} " in text
        assert "scratch_" not in text  # registers hold everything
        assert "<unknown>" not in text
