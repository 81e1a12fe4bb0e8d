"""The plug-in for ROCm without a card: against a HIP that takes notes of what it is asked for and runs nothing."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import tvm
from small_kernels import small_module
from stub_driver import build_stub
from thin_process import run_python

from mlc_llm.compiler.target import code_generation, resolve_target, rocm

pytestmark = pytest.mark.usefixtures("plugins")

_GFX1100, _GFX90A, _GFX1201 = "65", "63", "78"  # EF_AMDGPU_MACH


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with HIP's library."""
    folder = tmp_path_factory.mktemp("stub")
    build_stub("stub_hip.c", folder, "libamdhip64.so.7")
    return folder


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library with code for gfx90a and gfx1100, not linked: the stub reads no more of it than the architecture."""
    path = tmp_path_factory.mktemp("library") / "kernels.so"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rocm, "find_lld", lambda: ("none",))
        patch.setattr(rocm, "link", lambda compiled, _: compiled.read_bytes())
        target = resolve_target("rocm:gfx90a,gfx1100")
        with code_generation(target):
            tvm.compile(small_module(), target=target.tvm_target()).export_library(str(path))
    return path


_PROGRAM = """
import json, sys
import numpy as np
from mlc_llm.runtime import ffi, ffi_tensor, tvm_runtime
from mlc_llm.runtime.devices import plugin

ROCM = ffi.Device("rocm", 0)

def run(path, device=ROCM, rows=3):
    module = ffi.load_module(path)
    given = np.arange(rows * 128, dtype="float16").reshape(rows, 128)
    x, y = (ffi_tensor.empty((rows, 128), dtype, device) for dtype in ("float16", "float32"))
    ffi_tensor.copy(tvm_runtime.tensor(given), x)
    module["turned_rows"](x, y, 2.0)
    assert (x.to_host().numpy() == given).all()
    return module, x, y

def error(action):
    try:
        action()
    except Exception as error:
        return str(error)

plugin.load("rocm")
"""


def _run(stub: Path, log: Path, program: str, *arguments: object, **settings: str) -> Any:
    """What a program prints as JSON, where HIP is the stub."""
    environment = {"LD_LIBRARY_PATH": str(stub), "STUB_LOG": str(log), **settings}
    return json.loads(run_python(_PROGRAM + program, *map(str, arguments), environment=environment))


_LAUNCH = """
module, x, y = run(sys.argv[1])
imported = [name for name in sys.modules if name.split(".")[0] in ("tvm", "tvm_ffi")]
print(json.dumps([x.address, y.address, imported]), flush=True)
"""


def test_a_kernel_gets_its_arguments_as_its_code_object_lays_them_out(
    stub: Path, library: Path, tmp_path: Path
) -> None:
    x, y, imported = _run(stub, tmp_path / "log", _LAUNCH, library)
    assert imported == []
    notes = (tmp_path / "log").read_text().splitlines()
    packed = struct.pack("<QQfxxxxq", x, y, 2.0, 3)  # x, y at 0 and 8, the factor at 16, n at 24: see its metadata
    assert notes[2:8] == [
        "copy 0 768 1",
        f"load 0 {_GFX90A}",  # HIP refuses what is not its card's
        f"load 0 {_GFX1100}",
        f"launch 0 turned_rows_kernel 3,1,1 128,1,1 0 {packed.hex()}",
        "copy 0 768 2",
        "wait 0",
    ]
    assert [line.split()[:2] for line in notes[:2]] == [["malloc", "0"]] * 2


_REUSE = """
sizes = []
for size in (1000, 900, 1000, 5000):
    tensor = ffi_tensor.empty((size,), "float32", ROCM)
    sizes.append(tensor.address)
    del tensor
many = np.arange(70000, dtype="float32")
tensor = ffi_tensor.empty(many.shape, "float32", ROCM)
ffi_tensor.copy(tvm_runtime.tensor(many), tensor)
for i in range(40):
    few = np.full(10000, i, "float32")
    part = tensor.view((10000,))
    ffi_tensor.copy(tvm_runtime.tensor(few), part)
    few[:] = -1  # at once
assert (part.to_host().numpy() == 39).all()
rest = tensor.to_host().numpy()
assert (rest[:10000] == 39).all() and (rest[10000:] == many[10000:]).all()
print(json.dumps(sizes[0] == sizes[2]))
"""


def test_memory_is_kept_for_the_next_request_and_small_writes_are_staged(stub: Path, tmp_path: Path) -> None:
    assert _run(stub, tmp_path / "log", _REUSE)
    notes = (tmp_path / "log").read_text().splitlines()
    assert sum(line.startswith("malloc") for line in notes) <= 4
    # 40 writes of 40000 bytes fill the two halves of 512 KiB several times
    assert notes.count("record") == notes.count("wait for event") == 3
    assert notes.count("copy 0 280000 1") == 1
    assert "without a stream" not in "".join(notes)


_FULL = """
kept = [ffi_tensor.empty((8 << 20,), "int8", ROCM) for _ in range(6)]
del kept[3:]
kept.append(ffi_tensor.empty((40 << 20,), "int8", ROCM))
print(json.dumps(error(lambda: ffi_tensor.empty((9 << 20,), "int8", ROCM))))
"""


def test_what_is_kept_is_given_back_before_memory_runs_out(stub: Path, tmp_path: Path) -> None:
    message = _run(stub, tmp_path / "log", _FULL, STUB_MEMORY="64")
    assert message == (
        "ROCm device Stub 0: too little memory: 9216 KiB more are wanted, 64 MiB of 64 MiB are in use "
        "(hipErrorOutOfMemory)"
    )


_TWO = """
second = ffi.Device("rocm", 1)
run(sys.argv[1], second)
one = np.arange(100, dtype="float32")
x, y = ffi_tensor.empty(one.shape, "float32", ROCM), ffi_tensor.empty(one.shape, "float32", second)
ffi_tensor.copy(tvm_runtime.tensor(one), x)
ffi_tensor.copy(x, y)
print(json.dumps((y.to_host().numpy() == one).all().item()))
"""


def test_each_card_has_its_own_code_and_memory(stub: Path, library: Path, tmp_path: Path) -> None:
    assert _run(stub, tmp_path / "log", _TWO, library, STUB_CARDS=f"{_GFX1100},{_GFX90A}")
    notes = (tmp_path / "log").read_text()
    assert f"load 1 {_GFX90A}\n" in notes
    assert "load 0" not in notes
    assert "launch 1 turned_rows_kernel" in notes


_DEVICES = 'print(json.dumps([plugin.devices("rocm"), plugin.problem("rocm")]))'


def test_cards_are_described(stub: Path, tmp_path: Path) -> None:
    (first, second), problem = _run(stub, tmp_path / "log", _DEVICES, STUB_CARDS=f"{_GFX1100},{_GFX90A}")
    assert problem == ""
    assert (first["name"], second["name"]) == ("Stub 0", "Stub 1")
    assert first == {
        "name": "Stub 0",
        "driver": "HIP 6.3.42134",
        "architecture": "",  # where the stub's card is on the bus, there is none
        "memory": 1 << 30,
        "max_buffer": 1 << 30,
        "max_threads": 1024,
        "shared_memory": 65536,
        "compute_units": 48,
        "subgroup": 32,
        "float16": True,
    }


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"STUB_CARDS": ""}, "no ROCm device: AMD's driver sees no card (is the user in the groups render and video? "
                             "rocminfo tells)"),
        ({"STUB_INIT": "3"}, "AMD's driver does not start: hipErrorInvalidValue; does rocminfo work?"),
        ({"LD_LIBRARY_PATH": "/nowhere"}, "no ROCm: libamdhip64.so is not there; install AMD's ROCm 6 or newer "
                                          "(its HIP runtime is enough)"),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(
    stub: Path, tmp_path: Path, settings: dict[str, str], problem: str
) -> None:
    if "LD_LIBRARY_PATH" in settings and Path("/opt/rocm").exists():
        pytest.skip("this machine has ROCm")
    wanted = _DEVICES + '\nprint(json.dumps(error(lambda: ffi_tensor.empty((1,), "int8", ROCM))))'
    environment = {"LD_LIBRARY_PATH": str(stub), "STUB_LOG": str(tmp_path / "log"), **settings}
    lines = run_python(_PROGRAM + wanted, environment=environment).splitlines()
    assert json.loads(lines[0]) == [[], problem]
    assert problem in json.loads(lines[1])


_REFUSED = """
import os
messages = []
for settings in json.loads(sys.argv[2]):
    os.environ.update(settings)
    messages.append(error(lambda: run(sys.argv[1])))
    for name in settings:
        del os.environ[name]
print(json.dumps(messages))
"""


def test_what_a_card_refuses_is_said_with_the_kernel(stub: Path, library: Path, tmp_path: Path) -> None:
    cases = {
        "STUB_LAUNCH": ("719", "cannot run on Stub 0: hipErrorLaunchFailure (3x1x1 groups of 128 threads)"),
        "STUB_MAX_THREADS": ("64", "wants groups of 128 threads, Stub 0 runs at most 64 of this kernel"),
        "STUB_SHARED": ("70000", "wants 70000 bytes of shared memory, Stub 0 has 65536"),
        "STUB_NO_FUNCTIONS": ("1", "not found: hipErrorNotFound"),
    }
    settings = json.dumps([{name: value} for name, (value, _) in cases.items()])
    messages = _run(stub, tmp_path / "log", _REFUSED, library, settings)
    assert messages == [f"kernel turned_rows_kernel: {message}" for _, message in cases.values()]


def test_a_library_for_other_cards_is_refused(stub: Path, library: Path, tmp_path: Path) -> None:
    (message,) = _run(stub, tmp_path / "log", _REFUSED, library, "[{}]", STUB_CARDS=_GFX1201)
    assert message == "the library has ROCm code for gfx90a, gfx1100, the card here is Stub 0 (hipErrorNoBinaryForGpu)"


_DAMAGED = "print(json.dumps([error(lambda: run(path)) for path in sys.argv[1:]]))"


def test_a_damaged_library_is_refused(stub: Path, library: Path, tmp_path: Path) -> None:
    content = library.read_bytes()
    (tmp_path / "other.so").write_bytes(content.replace(rocm.MAGIC, b"MLCHIP9\n"))
    # a code object that says that it goes on beyond the end
    at = content.index(rocm.MAGIC) + len(rocm.MAGIC) + 8 + 8 + len("gfx90a")
    (tmp_path / "long.so").write_bytes(content[: at + 4] + b"\xff" + content[at + 5 :])
    other, long = _run(stub, tmp_path / "log", _DAMAGED, tmp_path / "other.so", tmp_path / "long.so")
    assert "the library's hip module is of another format: compile the library again" in other
    assert "the library's hip module is damaged: compile the library again" in long
