"""Processors that this machine or qemu can run code for, and compiled attention kernels."""

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from compiled_kernels import AARCH64, aarch64_target, compile_kernel, needs_qemu

from mlc_llm.compiler.kernels.cpu.vector import VectorUnit
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.processor import cpu_features

UNITS = {
    "x86-64-v4": VectorUnit(lanes=16, registers=32),
    "x86-64-v3": VectorUnit(lanes=8),
    "x86-64": VectorUnit(lanes=4, converts_float16=False),
    "cortex-a76": VectorUnit(lanes=4, registers=32),
}
NEEDS = {"x86-64-v4": "avx512vl", "x86-64-v3": "avx2", "x86-64": "sse2"}


@cache
def _compile(build: Callable[..., Any], arguments: tuple[Any, ...], processor: str) -> Any:
    target = aarch64_target(processor) if processor in AARCH64 else resolve_target(f"cpu:{processor}")
    return compile_kernel(build(*arguments, UNITS[processor]), target)


PRESENT = [processor for processor, flag in NEEDS.items() if flag in cpu_features()]
NARROW = [pytest.param(processor, marks=pytest.mark.slow) for processor in PRESENT[1:-1]]


EMULATED = [pytest.param("cortex-a76", marks=needs_qemu)]


@pytest.fixture(params=[*PRESENT[:1], *NARROW, *PRESENT[1:][-1:], *EMULATED])
def processor(request: pytest.FixtureRequest) -> str:
    """Each processor that kernels are shaped for and that this machine is, and one that is emulated; those between the
    widest and the narrowest vectors are slow tests."""
    return str(request.param)


@pytest.fixture
def unit(processor: str) -> VectorUnit:
    """The processor's vector registers."""
    return UNITS[processor]


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
