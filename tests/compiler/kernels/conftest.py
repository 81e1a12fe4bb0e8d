"""Processors that this machine can run code for, and compiled attention kernels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tvm

from mlc_llm.compiler.kernels.cpu.vector import VectorUnit
from mlc_llm.runtime.devices import cpu_features

UNITS = {
    "x86-64-v4": VectorUnit(lanes=16, registers=32),
    "x86-64-v3": VectorUnit(lanes=8),
    "x86-64": VectorUnit(lanes=4, converts_float16=False),
}
NEEDS = {"x86-64-v4": "avx512vl", "x86-64-v3": "avx2", "x86-64": "sse2"}


@cache
def _compile(build: Callable[..., Any], arguments: tuple[Any, ...], processor: str) -> Any:
    target = tvm.target.Target({"kind": "llvm", "mcpu": processor, "num-cores": 2})
    kernel = build(*arguments, UNITS[processor]).with_attr("global_symbol", "kernel")
    return tvm.compile(tvm.IRModule({"kernel": kernel}), target=target)["kernel"]


PRESENT = [processor for processor, flag in NEEDS.items() if flag in cpu_features()]
NARROW = [pytest.param(processor, marks=pytest.mark.slow) for processor in PRESENT[1:-1]]


@pytest.fixture(params=[*PRESENT[:1], *NARROW, *PRESENT[1:][-1:]])
def processor(request: pytest.FixtureRequest) -> str:
    """Each processor that kernels are shaped for and that this machine is; those between the widest and the narrowest
    vectors are slow tests."""
    return str(request.param)


@pytest.fixture
def widest() -> str:
    """The processor with the widest vectors that this machine can run code for."""
    if not PRESENT:
        pytest.skip("this machine runs none of the processors that the tests compile for")
    return PRESENT[0]


@pytest.fixture
def compiled(processor: str) -> Callable[..., Any]:
    """compiled(build, *arguments) -> the callable of the PrimFunc `build(*arguments, unit)`; built once."""
    return lambda build, *arguments: _compile(build, arguments, processor)
