"""Which devices there are: as the drivers of this machine say, and on machines that are made up."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlc_llm.runtime import processor
from mlc_llm.runtime.devices import detect, query_opencl, query_rocm, query_vulkan
from mlc_llm.runtime.devices.detect import DriverProblem, Driving, FoundDevice
from mlc_llm.runtime.devices.device import resolve_device
from mlc_llm.runtime.errors import UsageError

LOADERS = {"vulkan": ("VK_ICD_FILENAMES", "libvulkan.so.1"), "opencl": ("OCL_ICD_VENDORS", "libOpenCL.so.1")}


def in_a_process(kind: str, **environment: str) -> tuple[list[dict[str, object]], str]:
    """The devices of a kind, or the problem, in an environment; drivers read it once for a process."""
    code = f"""if True:
        import dataclasses, json, sys
        from mlc_llm.runtime.devices.detect import DriverProblem, found
        try:
            print(json.dumps([[dataclasses.asdict(one) for one in found({kind!r})], ""]))
        except DriverProblem as problem:
            print(json.dumps([[], str(problem)]))
        assert not {{"tvm", "tvm_ffi", "numpy"}} & set(sys.modules)"""
    command, variables = [sys.executable, "-c", code], {**os.environ, **environment}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=True)
    devices, problem = json.loads(done.stdout)
    return devices, problem


@pytest.mark.parametrize("kind", ["vulkan", "opencl"])
def test_devices_of_this_machine(kind: str) -> None:
    devices, problem = in_a_process(kind)
    if problem:
        pytest.skip(problem)
    for index, device in enumerate(devices):
        assert (device["kind"], device["index"]) == (kind, index)
        assert device["name"]
        assert device["driver"]
        assert isinstance(device["memory"], int)
        assert 1 << 26 < device["memory"] < 1 << 50
    assert [device["is_processor"] for device in devices] == sorted(device["is_processor"] for device in devices)


@pytest.mark.parametrize("kind", LOADERS)
def test_without_a_driver_there_is_a_reason(kind: str, tmp_path: Path) -> None:
    variable, library = LOADERS[kind]
    devices, problem = in_a_process(kind, **{variable: str(tmp_path / "none")})
    assert devices == []
    assert f"{library} is not there" in problem or "driver" in problem
    assert "\n" not in problem


@pytest.mark.parametrize("module", [query_vulkan, query_opencl, query_rocm])
def test_without_a_loader_the_reason_names_it(module: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LIBRARIES", ("libnothere.so.1",))
    monkeypatch.setattr("mlc_llm.runtime.devices.rocm.architectures", lambda: ["gfx1100"])
    with pytest.raises(DriverProblem, match=r"lib\w+\.so(\.1)? is not there; install "):
        module.devices()  # type: ignore[attr-defined]


def test_the_processor() -> None:
    (device,) = detect.found("cpu")
    assert (str(device), device.arch, device.is_processor) == ("cpu", processor.host_architecture(), True)


CARD = FoundDevice("vulkan", 0, "Radeon RX 7900 XTX", 24 << 30, "radv")
TWO = [CARD, FoundDevice("vulkan", 1, "Intel Graphics", 8 << 30)]
SOFTWARE = FoundDevice("vulkan", 0, "llvmpipe", 2 << 30, is_processor=True)


class Machine:
    """A machine that is made up."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.devices: dict[str, list[FoundDevice]] = {}
        self.problems: dict[str, str] = {}
        (tmp_path / "dri").mkdir()
        (tmp_path / "dri" / "renderD128").touch()
        monkeypatch.setattr(detect, "_DEV", tmp_path)
        monkeypatch.setattr(detect, "found", self._found)
        monkeypatch.setattr(detect, "driving", lambda kind: Driving("somehow", self.problems.get(kind, "")))

    def _found(self, kind: str) -> list[FoundDevice]:
        if kind not in self.devices:
            raise DriverProblem(f"no {kind}: install its driver")
        return self.devices[kind]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


def test_auto_is_the_first_kind_that_works(machine: Machine) -> None:
    assert resolve_device("auto") == "cpu"
    machine.devices["opencl"] = [FoundDevice("opencl", 0, "Mali-G710")]
    assert resolve_device("auto") == "opencl"
    machine.devices["vulkan"] = TWO
    assert resolve_device("auto") == "vulkan"
    machine.devices["cuda"] = [FoundDevice("cuda", 0, "NVIDIA H100", 80 << 30, "CUDA 13.0", "sm_90")]
    assert resolve_device("auto") == "cuda"
    machine.problems["cuda"] = "the CUDA runtime is missing"
    assert resolve_device("auto") == "vulkan"


def test_auto_is_no_device_that_computes_on_the_processor(machine: Machine) -> None:
    machine.devices["vulkan"] = [SOFTWARE]
    assert resolve_device("auto") == "cpu"
    assert resolve_device("vulkan") == "vulkan"


def test_auto_opens_no_driver_where_there_is_no_card(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    machine.devices["vulkan"] = TWO
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(detect, "_DEV", tmp_path / "dri")
    assert resolve_device("auto") == "cpu"


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("vulkan:2", "device vulkan:2 is not there: this machine has vulkan:0 (Radeon RX 7900 XTX), vulkan:1 (Intel "
                     "Graphics)"),
        ("opencl:1", "device opencl:1 is not there: no opencl: install its driver"),
        ("vulcan", "device 'vulcan' is unknown: expected auto, cpu, cuda, opencl, vulkan, metal, rocm, perhaps with a "
                   "number, as cuda:0"),
    ],
)  # fmt: skip
def test_a_device_that_is_not_there_is_refused(machine: Machine, name: str, reason: str) -> None:
    machine.devices["vulkan"] = TWO
    with pytest.raises(UsageError) as raised:
        resolve_device(name)
    assert str(raised.value) == reason
    assert resolve_device("vulkan:1") == "vulkan:1"
