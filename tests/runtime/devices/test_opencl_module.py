"""The kernels of a library as OpenCL's plug-in reads them: nothing beyond the end, and what is damaged is refused.

No device is needed: kernels are built when they first run.
"""

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tvm_ffi

from mlc_llm.runtime.devices import plugin

HANDLE, INT64 = (3, 64, 1), (0, 64, 1)  # DLPack: code, bits, lanes
TAGS = ("blockIdx.x", "threadIdx.x")
DECLARATION = "__kernel __attribute__((reqd_work_group_size(64, 1, 1))) void double()"
CODE = f"// Function: double\n{DECLARATION}"


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def items(values: Sequence[bytes]) -> bytes:
    return struct.pack("<Q", len(values)) + b"".join(values)


def saved(name: str = "double", tags: Sequence[str] = TAGS, code: str = CODE) -> bytes:
    """TVM's saved layout of a module with one kernel."""
    types = items([struct.pack("<BBH", *kind) for kind in (HANDLE, HANDLE, INT64)])
    kernel = text(name) + text(name) + types + items([text(tag) for tag in tags]) + items([struct.pack("<i", 0)] * 3)
    return text("cl") + items([kernel]) + text(code)


@pytest.fixture
def load(plugins: None) -> Callable[[bytes], Any]:
    plugin.load("opencl")
    function: Callable[[bytes], Any] = tvm_ffi.get_global_func("ffi.Module.load_from_bytes.opencl")
    return function


def refusal(load: Callable[[bytes], Any], content: bytes) -> str:
    with pytest.raises(RuntimeError) as refused:
        load(content)
    message = str(refused.value)
    assert "\n" not in message
    return message


def test_a_module_has_its_kernels_and_shows_their_text(load: Callable[[bytes], Any]) -> None:
    module = load(saved())
    assert module.kind == "opencl"
    assert module.implements_function("double")
    assert not module.implements_function("triple")
    assert DECLARATION in module.inspect_source()


def test_a_module_that_ends_too_early_or_too_late_is_refused(load: Callable[[bytes], Any]) -> None:
    whole = saved()
    for length in range(len(whole)):
        assert refusal(load, whole[:length]) == "the library's opencl module is damaged: compile the library again"
    assert "is damaged" in refusal(load, whole + b"\0")


def test_a_changed_byte_is_refused_or_leaves_a_module(load: Callable[[bytes], Any]) -> None:
    whole, messages = saved(), []
    for place in range(len(whole)):
        for value in (0, 1, 0x7F, 0xFF):
            try:
                load(whole[:place] + bytes([value]) + whole[place + 1 :])
            except RuntimeError as error:
                messages.append(str(error))
    assert len(messages) > len(whole)
    assert not any("\n" in message for message in messages)


def test_what_does_not_fit_is_named(load: Callable[[bytes], Any]) -> None:
    assert "launch parameter warp is unknown" in refusal(load, saved(tags=(*TAGS, "warp")))
    assert "has no text of kernel double" in refusal(load, saved(code=CODE.replace("double", "triple")))
    assert "has no text of kernel double" in refusal(load, saved(code=""))


@pytest.mark.parametrize(
    "threads", ["64", "64, 1", "64, 1, 0", "64, 1, -1", "64, 1, 1, 1", "9999999999, 1, 1", "x, 1, 1"]
)
def test_a_kernel_has_to_say_how_many_threads_it_is_for(load: Callable[[bytes], Any], threads: str) -> None:
    message = "does not say how many threads kernel double is for: compile the library again"
    assert message in refusal(load, saved(code=CODE.replace("64, 1, 1", threads)))
    assert message in refusal(load, saved(code=CODE.replace("__attribute__", "__other__")[:40]))


def test_a_call_with_other_arguments_than_the_kernel_has_is_refused(load: Callable[[bytes], Any]) -> None:
    double = load(saved()).get_function("double")
    with pytest.raises(RuntimeError, match=r"^kernel double: called with 1 arguments, it has 5$"):
        double(1)
    with pytest.raises(RuntimeError, match=r"^kernel double: threadIdx.x is -1$"):
        double(1, 2, 3, 4, -1)
    with pytest.raises(
        RuntimeError, match=r"^kernel double: called with groups of 32 threads, it was compiled for 64$"
    ):
        double(1, 2, 3, 1, 32)
    double(1, 2, 3, 0, 1)  # no groups: nothing to do
