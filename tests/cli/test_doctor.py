"""`mlc doctor`: on this machine's processor, and on machines that are made up."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mlc_llm.cli import diagnosis
from mlc_llm.runtime.devices import detect, self_test
from mlc_llm.runtime.devices.detect import DriverProblem, Driving, FoundDevice
from mlc_llm.runtime.errors import EngineError

Run = Callable[..., tuple[int, str, str]]
DEVICES = {
    "cuda": [FoundDevice("cuda", 0, "NVIDIA H100", 80 << 30, "CUDA 13.0", "sm_90"),
             FoundDevice("cuda", 1, "NVIDIA H100", 80 << 30, "CUDA 13.0", "sm_90")],
    "opencl": [FoundDevice("opencl", 0, "pthread-EPYC", 16 << 30, "PoCL 3.1", is_processor=True)],
    "cpu": [FoundDevice("cpu", 0, "AMD EPYC", 20 << 30, arch="x86_64", is_processor=True)],
}  # fmt: skip

TRANSCRIPT = """\
device  name                         memory    driver           self-test
cuda    NVIDIA H100                  80.0 GiB  CUDA 13.0 sm_90  passed
cuda:1  NVIDIA H100                  80.0 GiB  CUDA 13.0 sm_90  failed
opencl  pthread-EPYC (on the processor)  16.0 GiB  PoCL 3.1         memory only
cpu     AMD EPYC                     20.0 GiB  x86_64           passed

kind    runs here            compiles here
cuda    TVM's own            yes
rocm    no                   yes
metal   no                   yes
vulkan  no                   yes
opencl  plug-in, built here  no
cpu     TVM's own            yes

rocm does not run: no rocm: install its driver
metal does not run: no metal: install its driver
vulkan does not run: no vulkan: install its driver
opencl does not compile: no compiler for opencl: install one
cuda:1: failed: its driver ended the process with signal 11: install another version of it
opencl: memory only: no compiler for opencl: install one

auto is  cuda
mlc      1.2
TVM      0.27
lld      /usr/bin/ld.lld
"""


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two cards, of which one has a driver that crashes, and OpenCL on the processor, for which nothing compiles."""

    def found(kind: str) -> list[FoundDevice]:
        if kind not in DEVICES:
            raise DriverProblem(f"no {kind}: install its driver")
        return DEVICES[kind]

    def require(kind: str) -> None:
        if kind == "opencl":
            raise EngineError("no compiler for opencl: install one")

    def problem(device: str, library: Path | None) -> str:
        assert (library is None) == (device == "opencl")
        return "its driver ended the process with signal 11: install another version of it" * (device == "cuda:1")

    monkeypatch.setattr(detect, "found", found)
    monkeypatch.setattr(detect, "best", lambda: "cuda")
    hows = {"opencl": "plug-in, built here"}
    monkeypatch.setattr(detect, "driving", lambda kind: Driving(hows.get(kind, "TVM's own")))
    monkeypatch.setattr(diagnosis, "_require_compiler", require)
    monkeypatch.setattr(diagnosis, "_build", lambda device, library: None)
    monkeypatch.setattr(diagnosis, "_versions", lambda: {"mlc": "1.2", "tvm": "0.27"})
    monkeypatch.setattr(diagnosis, "_tools", lambda: {"lld": "/usr/bin/ld.lld"})
    monkeypatch.setattr(self_test, "problem", problem)


@pytest.mark.usefixtures("machine")
def test_everything_that_is_here(mlc: Run) -> None:
    code, out, err = mlc("doctor")
    assert (code, out.splitlines()) == (0, aligned(TRANSCRIPT))
    assert err.splitlines()[:2] == ["looking at cuda", "testing cuda, cuda:1"]


def aligned(text: str) -> list[str]:
    """The table of devices is as wide as its widest name."""
    head, *rest = text.split("\n\n")
    lines = [line.split("  ") for line in head.splitlines()]
    cells = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    widths = [max(len(line[i]) for line in cells) for i in range(5)]
    rows = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    return "\n\n".join(["\n".join(rows), *rest]).splitlines()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("device", "code"), [("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("cuda:2", 1), ("vulkan", 1), ("opencl", 0)]
)
def test_the_exit_code_tells_whether_a_device_works(mlc: Run, device: str, code: int) -> None:
    found, out, _ = mlc("doctor", "--device", device)
    assert found == code
    kind = device.partition(":")[0]
    assert kind in out
    assert ("is not there" in out) == (device in ("cuda:2", "vulkan"))


@pytest.mark.usefixtures("machine")
def test_as_json(mlc: Run) -> None:
    code, out, _ = mlc("doctor", "--json")
    answer = json.loads(out)
    assert (code, answer["auto"], answer["versions"]["tvm"]) == (0, "cuda", "0.27")
    assert [(one["device"], one["works"]) for one in answer["devices"]] == [
        ("cuda", True), ("cuda:1", False), ("opencl", True), ("cpu", True),
    ]  # fmt: skip
    runs = {kind["kind"]: (kind["runs"], kind["compiles"]) for kind in answer["kinds"]}
    assert runs["opencl"] == (True, False)
    assert runs["vulkan"] == (False, True)


def test_what_is_no_device_is_refused(mlc: Run) -> None:
    code, out, err = mlc("doctor", "--device", "gpu")
    assert (code, out) == (2, "")
    assert err.startswith("Error: device 'gpu' is unknown: expected auto, cpu, cuda, ")


def test_the_processor_of_this_machine_works(mlc: Run) -> None:
    code, out, _ = mlc("doctor", "--device", "cpu")
    assert code == 0
    assert out.splitlines()[1].startswith("cpu ")
    assert out.splitlines()[1].endswith("passed")
    assert "LLVM" in out
