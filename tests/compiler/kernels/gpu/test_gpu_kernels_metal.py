"""Kernels in Metal's language on this machine's processor, shuffles included: what the tests beside this one ask of
OpenCL's and Vulkan's. Multiplications: test_gpu_matmul_units.py."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msl import has_clang

_START = """
import sys
from pathlib import Path
import metal_on_cpu
metal_on_cpu.install(Path(sys.argv[1]))
"""
_ATTENTION = """
import test_gpu_attention as tests
for geometry in (tests.WHOLE, tests.WINDOW):
    for past in ([0], [63], [17, 0, 64, 3, 300]):
        tests.check("metal", geometry, past)
    tests.check("metal", geometry, [7, 0, 64, 33], [64, 3, 1, 100])
"""
_SAMPLING = """
import test_gpu_sampling as tests
tests.test_draws_are_those_of_a_full_sort("metal", 0)
tests.test_draws_are_those_of_a_full_sort("metal", 1)
tests.test_the_most_likely_is_the_first_of_equals_and_nan_is_above_all("metal", None)
"""
_NORM = """
import numpy as np
from device_kernels import compile_kernel, device_target
from mlc_llm.compiler.kernels.gpu import layers
norm = compile_kernel(layers.rms_norm(300, 1e-5, device_target("metal").gpu, single=False), "metal")
x, weight = (np.random.default_rng(0).standard_normal(shape).astype("float32") for shape in ((2, 3, 300), 300))
y = np.zeros_like(x)
norm(x, weight, y)
expected = x / np.sqrt(np.mean(x.astype("float64") ** 2, axis=-1, keepdims=True) + 1e-5) * weight
np.testing.assert_allclose(y, expected, rtol=2e-6)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None or not has_clang(), reason="needs g++ and clang: pip install ziglang")
@pytest.mark.parametrize("program", [_ATTENTION, _SAMPLING, _NORM], ids=["attention", "sampling", "norm"])
def test_kernels_in_metals_language_equal_numpy(program: str, tmp_path: Path) -> None:
    here = Path(__file__).parent
    packages = [str(here), str(here.parents[2] / "helpers"), *filter(None, sys.path)]
    environment = {"PYTHONPATH": ":".join(packages), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-c", _START + program, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
