"""CUDA without a card: TVM's stock CUDA runtime in the thin runtime, against a driver that only takes notes."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tvm
from small_kernels import small_module
from stub_driver import build_stub

from mlc_llm.compiler.target import code_generation, cuda, resolve_target
from mlc_llm.runtime.devices.cuda_code import FAT_BINARY


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a driver (libcuda.so.1) and a CUDA runtime (libcudart.so.13)."""
    folder = tmp_path_factory.mktemp("stubs")
    versions = folder / "versions"
    versions.write_text("libcudart.so.13 { global: *; };")
    build_stub("stub_cuda.c", folder, "libcuda.so.1", "-DDRIVER")
    build_stub("stub_cuda.c", folder, "libcudart.so.13", f"-Wl,--version-script={versions}")
    return folder


def _library(path: Path, compile_images: Callable[[Sequence[str], str], dict[str, bytes]]) -> Path:
    """A library for sm_80 and sm_90 with images that are none: what there is of it is seen in the stub's notes."""
    compiler = SimpleNamespace(
        name="fake",
        architectures=lambda: ("sm_80", "sm_90"),
        compile=lambda source, architectures, ptx: compile_images(architectures, ptx),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "find_compiler", lambda: compiler)
        target = resolve_target("cuda:sm_80,sm_90")
        with code_generation(target):
            tvm.compile(small_module(), target=target.tvm_target()).export_library(str(path))
    return path


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with an image for each architecture; an image begins with its name."""
    path = tmp_path_factory.mktemp("images") / "kernels.so"
    return _library(path, lambda architectures, ptx: {name: name.encode() for name in (*architectures, ptx)})


@pytest.fixture(scope="module")
def fat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with one fat binary."""
    path = tmp_path_factory.mktemp("fat") / "kernels.so"
    return _library(path, lambda *_: {FAT_BINARY: b"\x50\xed\x55\xba and the rest"})


_USE = """
import json, sys
from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime.devices import cuda
import numpy as np
cuda._packaged = lambda: iter(())  # a real libcudart of pip's wants a real driver

def use(path):
    cuda.load()
    cuda.load()
    run = ffi.load_module(path)["turned_rows"]
    card = ffi.Device("cuda")
    given = np.arange(384, dtype="float16").reshape(3, 128)
    x, y = ffi_tensor.empty((3, 128), "float16", card), ffi_tensor.empty((3, 128), "float32", card)
    ffi_tensor.copy(ffi_tensor.tensor(given.ctypes.data, "float16", given.shape, given), x)
    run(x, y, 2.0)
    assert (x.to_host().numpy() == given).all()
"""


def _run(stubs: Path, log: Path, program: str, *arguments: object, **settings: str) -> Any:
    """What a program prints as JSON, in a process whose CUDA is the stub."""
    environment = {"LD_LIBRARY_PATH": str(stubs), "STUB_LOG": str(log), "PATH": "/usr/bin:/bin", **settings}
    packages = [path for path in sys.path if path]
    environment["PYTHONPATH"] = ":".join(packages)
    command = [sys.executable, "-c", _USE + program, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


_LOAD_AND_RUN = """
use(sys.argv[1])
print(json.dumps([name for name in sys.modules if name.split(".")[0] in ("tvm", "tvm_ffi")]))
"""


def test_a_kernel_is_launched_without_importing_tvm(stubs: Path, fat: Path, tmp_path: Path) -> None:
    assert _run(stubs, tmp_path / "log", _LOAD_AND_RUN, fat) == []
    assert (tmp_path / "log").read_text().splitlines() == [
        "copy 768 1",
        "load 50ed55ba",
        "function turned_rows_kernel",
        "launch turned_rows_kernel 3,1,1 128,1,1",
        "copy 768 2",
    ]


@pytest.mark.parametrize(("cards", "image"), [("90", "sm_90"), ("86,90", "compute_80"), ("121", "compute_80")])
def test_the_image_of_the_cards_is_loaded(stubs: Path, images: Path, tmp_path: Path, cards: str, image: str) -> None:
    _run(stubs, tmp_path / "log", _LOAD_AND_RUN, images, STUB_CARDS=cards)
    assert f"load {image[:4].encode().hex()}" in (tmp_path / "log").read_text().splitlines()


_BESIDE_TVM = """
import tvm
from tvm.support import nvcc
use(sys.argv[1])
print("true")
"""
_BEFORE_TVM = """
use(sys.argv[1])
import tvm
from tvm.support import nvcc
print("true")
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [_BESIDE_TVM, _BEFORE_TVM], ids=["before", "after"])
def test_tvm_itself_may_be_imported_before_or_after(stubs: Path, fat: Path, tmp_path: Path, program: str) -> None:
    assert _run(stubs, tmp_path / "log", program, fat)


_DEVICES = "print(json.dumps([cuda.devices(), cuda.problem()]))"


def test_cards_are_described_as_the_driver_does(stubs: Path, tmp_path: Path) -> None:
    cards, problem = _run(stubs, tmp_path / "log", _DEVICES, STUB_CARDS="90,120")
    assert problem == ""
    assert [card["architecture"] for card in cards] == ["sm_90", "sm_120"]
    assert cards[1] == {
        "name": "Stub 1",
        "driver": "CUDA 13.0",
        "architecture": "sm_120",
        "memory": 2 << 33,
        "max_buffer": 2 << 33,
        "max_threads": 1024,
        "shared_memory": 49152,
        "subgroup": 32,
        "processors": 132,
        "float16": True,
    }


_PROBLEM = """
from mlc_llm.runtime.errors import EngineError
try:
    cuda.load()
except EngineError as error:
    print(json.dumps([cuda.problem(), str(error)]))
"""


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"STUB_CARDS": ""}, "no CUDA device: NVIDIA's driver sees no card"),
        (
            {"STUB_CARDS": "", "CUDA_VISIBLE_DEVICES": "7"},
            "no CUDA device: NVIDIA's driver sees no card (CUDA_VISIBLE_DEVICES is '7')",
        ),
        (
            {"STUB_VERSION": "12040"},
            "NVIDIA's driver is for CUDA 12.4, TVM's runtime needs 13.0: install driver 580 or newer",
        ),
        (
            {"LD_LIBRARY_PATH": "/nowhere"},
            "no NVIDIA driver: libcuda.so.1 is not there; install driver 580 or newer",
        ),
    ],
)
def test_what_is_missing_is_said_in_one_line(
    stubs: Path, tmp_path: Path, settings: dict[str, str], problem: str
) -> None:
    if "LD_LIBRARY_PATH" in settings and _has_driver():
        pytest.skip("this machine has NVIDIA's driver")
    said, raised = _run(stubs, tmp_path / "log", _PROBLEM, **settings)
    assert said == problem
    assert raised == f"CUDA does not work here: {problem}"


def _has_driver() -> bool:
    program = "import ctypes\nctypes.CDLL('libcuda.so.1')"
    return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


_REFUSED = """
try:
    use(sys.argv[1])
except ffi.FFIError as error:
    print(json.dumps(str(error)))
"""


def test_a_library_for_other_cards_is_refused(stubs: Path, fat: Path, tmp_path: Path) -> None:
    message = _run(stubs, tmp_path / "log", _REFUSED, fat, STUB_CARDS="75")
    assert message == "it has CUDA code for sm_80, sm_90 and PTX of compute_80, the card here is sm_75"


def test_a_launch_that_fails_is_an_error(stubs: Path, fat: Path, tmp_path: Path) -> None:
    message = _run(stubs, tmp_path / "log", _REFUSED, fat, STUB_LAUNCH="1")
    assert message.startswith("CUDALaunch Error: CUDA_ERROR_INVALID_VALUE")
    assert len(message) < 200


_OPENED = """
from mlc_llm.runtime.devices.drivers import open_device
from mlc_llm.runtime.errors import EngineError
open_device(ffi.Device("cuda", 1))
try:
    open_device(ffi.Device("cuda", 2))
except EngineError as error:
    print(json.dumps(str(error)))
"""


def test_a_card_is_opened_by_its_number(stubs: Path, tmp_path: Path) -> None:
    message = _run(stubs, tmp_path / "log", _OPENED, STUB_CARDS="90,86")
    assert message == "device cuda:2 is not there: `mlc doctor` lists the devices that cuda sees"
