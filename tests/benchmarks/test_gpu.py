"""The measurements of cards: what they count by, and the whole of them on a device of this machine or on none."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from stub_driver import build_stub
from thin_process import require_device

from benchmarks.gpu import pack, roofline
from benchmarks.gpu.shapes import SHAPES, weight_count
from mlc_llm.compiler.target import cuda


def test_products_of_a_token() -> None:
    # Llama 3 8B has 8 030 261 248 parameters; of these 266 240 are of norms and 525 336 576 only looked up
    assert weight_count(SHAPES["llama-3-8b"]) == 8_030_261_248 - 266_240 - 525_336_576


def test_the_roofline_of_the_page_is_up_to_date(root: Path) -> None:
    assert f"{roofline.decode_bytes() / 1e9:.2f} {roofline.prefill_flops() / 1e9:.1f}" == "4.36 14.0"
    assert f"\n{roofline.table()}\n" in (root / "docs/devices.md").read_text()


def _measured(folder: Path, libraries: Path, **environment: str) -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    """What the script measures of the shape "tiny"."""
    command = [sys.executable, "-m", "mlc_llm.benchmarks.gpu.measure", "--libraries", str(libraries), "--no-torch"]
    command += ["--batch", "1", "3", "--prefill", "40", "--output", str(folder / "results.json")]
    subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, timeout=600)
    found: dict[str, dict[str, dict[str, dict[str, float]]]] = json.loads((folder / "results.json").read_text())["tiny"]
    return found


@pytest.mark.slow
@pytest.mark.usefixtures("plugins")
def test_a_device_computes_as_the_processor(tmp_path: Path) -> None:
    require_device("opencl")
    pack.compile_shape("tiny", "opencl", "x86-64-v3", tmp_path)
    (tmp_path / "device.json").write_text('"opencl"')
    result = _measured(tmp_path, tmp_path)
    assert result["logits"]["largest"] < 0.01  # type: ignore[operator]
    assert result["decode"]["3"]["tokens_per_second"] > 0


@pytest.mark.slow
def test_the_archive_runs_where_the_package_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CUDA driver that runs nothing: a step is launches, and one copy of the tokens to the host."""
    build_stub("stub_cuda.c", tmp_path, "libcuda.so.1", "-DDRIVER")
    (tmp_path / "versions").write_text("libcudart.so.13 { global: *; };")
    build_stub("stub_cuda.c", tmp_path, "libcudart.so.13", f"-Wl,--version-script={tmp_path}/versions")

    def images(source: str, architectures: Sequence[str], ptx: str) -> dict[str, bytes]:
        return {"fatbin": b"none"}

    compiler = SimpleNamespace(name="fake", architectures=lambda: ("sm_90",), compile=images)
    monkeypatch.setattr(cuda, "find_compiler", lambda: compiler)
    monkeypatch.setattr(pack.cuda, "_cuda_runtime", lambda: str(tmp_path / "libcudart.so.13"))
    monkeypatch.setattr(sys, "argv", ["pack.py", "--shape", "tiny", "--output", str(tmp_path / "gpu.tar.gz")])
    pack.main()
    subprocess.run(["tar", "xzf", "gpu.tar.gz"], cwd=tmp_path, check=True)
    environment = {
        "LD_LIBRARY_PATH": str(tmp_path),
        "STUB_LOG": str(tmp_path / "log"),
        "PYTHONPATH": str(tmp_path / "gpu"),
    }
    result = _measured(tmp_path, tmp_path / "gpu/libraries", **environment)
    assert result["decode"]["1"]["seconds"] > 0
    notes = (tmp_path / "log").read_text().splitlines()
    step = notes[: _last_copy_of(notes, 4)]
    launched = step[_last_copy_of(step, 4) + 1 :]
    assert all(note.startswith(("launch", "copy")) for note in launched)
    assert not [note for note in launched if note.endswith(" 2")]  # no other copy to the host


def _last_copy_of(notes: list[str], size: int) -> int:
    """Where the last copy of `size` bytes to the host is."""
    return max(index for index, note in enumerate(notes) if note == f"copy {size} 2")
