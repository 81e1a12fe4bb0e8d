"""Kernels are built while the weights are read: by whom, how an error looks, and what the user is told."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.runtime.devices import build_ahead
from mlc_llm.runtime.devices.build_ahead import kernels_built
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.ffi import HOST, Device, FFIError
from mlc_llm.runtime.processor import num_threads

CARD = Device("vulkan", 1)


class FakeLibrary:
    """A library whose module is asked for a function that builds its kernels."""

    path = Path("x.so")

    def __init__(self, build: Callable[[int, int], None] | None, device: Device) -> None:
        self.build, self.device = build, device

    def get(self, name: str) -> Any:
        assert name == "mlc.build_kernels"
        return self.build


def open_library(build: Callable[[int, int], None] | None, device: Device = CARD) -> Any:
    return FakeLibrary(build, device)


@pytest.fixture(autouse=True)
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """Devices are no processors; a build may take long."""
    monkeypatch.delenv("MLC_BUILD_KERNELS", raising=False)
    monkeypatch.setattr(build_ahead, "computes_on_processor", lambda device: False)
    monkeypatch.setattr(build_ahead, "_PATIENCE", 1000)


def test_kernels_are_built_beside_what_the_block_does() -> None:
    calls, in_block = [], threading.Event()

    def build(device: int, threads: int) -> None:
        assert in_block.wait(60)
        calls.append((device, threads))

    with kernels_built(open_library(build)):
        assert not calls
        in_block.set()
    assert calls == [(1, num_threads())]


def test_a_kernel_that_is_refused_is_one_line() -> None:
    def build(device: int, threads: int) -> None:
        raise FFIError("kernel gemv: the driver rejects it: error\nand more")

    with (
        pytest.raises(
            EngineError, match=r"^device vulkan:1 does not run x\.so: kernel gemv: the driver rejects it: err"
        ),
        kernels_built(open_library(build)),
    ):
        pass


def test_what_goes_wrong_in_the_block_comes_first() -> None:
    def build(device: int, threads: int) -> None:
        raise FFIError("kernel gemv: no")

    with pytest.raises(EngineError, match=r"^no memory$"), kernels_built(open_library(build)):
        raise EngineError("no memory")


def test_a_line_tells_of_a_build_that_takes_long(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    told = threading.Event()
    monkeypatch.setattr(build_ahead, "_PATIENCE", 0)

    def tell(line: str, **options: Any) -> None:
        print(line, **options)
        told.set()

    monkeypatch.setattr(build_ahead, "print", tell, raising=False)
    with kernels_built(open_library(lambda device, threads: print(told.wait(60)))):
        pass
    assert capsys.readouterr().err == "vulkan:1: its driver compiles the kernels, which it keeps for the next start\n"


@pytest.mark.parametrize(("wish", "processor", "built"), [("", True, 0), ("1", True, 1), ("0", False, 0)])
def test_processors_build_what_runs_unless_asked(
    monkeypatch: pytest.MonkeyPatch, wish: str, processor: bool, built: int
) -> None:
    monkeypatch.setenv("MLC_BUILD_KERNELS", wish)
    monkeypatch.setattr(build_ahead, "computes_on_processor", lambda device: processor)
    calls = []
    with kernels_built(open_library(lambda *given: calls.append(given))):
        pass
    assert len(calls) == built


def test_libraries_that_have_nothing_to_build() -> None:
    with kernels_built(open_library(None)), kernels_built(open_library(None, HOST)):
        pass
