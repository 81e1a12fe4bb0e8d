"""Vulkan's plug-in: small kernels, written out as SPIR-V, compute as numpy does, and what goes wrong is one line.

The device is whatever this machine has; in CI it is lavapipe, on the processor.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vulkan_work
from spirv_kernels import TAGS, Kernel, axpby, idle, module
from stub_driver import build_stub
from thin_process import require_device, run_python
from vulkan_work import Raw, load, pointer, tensor

from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime.devices import plugin

pytestmark = pytest.mark.usefixtures("plugins")
HELPERS = str(Path(vulkan_work.__file__).parent)
FEATURES = {"float16": 1, "storage16": 2, "int64": 4, "storage8": 8, "int8": 16, "subgroup_operations": 32,
            "int16": 64, "float64": 128, "cooperative_matrix": 256}  # fmt: skip


@pytest.fixture
def vulkan(plugins: None) -> dict[str, Any]:
    """The first device's description."""
    require_device("vulkan")
    return plugin.devices("vulkan")[0]


@pytest.mark.parametrize("work", vulkan_work.WORK, ids=lambda work: work.__name__)
def test_a_device_does_its_work(vulkan: dict[str, Any], work: Callable[[], None]) -> None:
    work()


def test_memory_that_the_host_does_not_see_is_written_and_read_through_other(vulkan: dict[str, Any]) -> None:
    """As on a GPU with memory of its own."""
    program = "import runpy, sys; sys.path.insert(0, sys.argv[1]); runpy.run_module('vulkan_work', run_name='__main__')"
    assert run_python(program, HELPERS, environment={"MLC_VULKAN_UNIFIED": "0"}) == f"ok {len(vulkan_work.WORK)}\n"


def test_a_process_may_end_while_kernels_run(vulkan: dict[str, Any]) -> None:
    program = """
import sys; sys.path.insert(0, sys.argv[1])
from vulkan_work import *
x, y = tensor(np.ones(1 << 20, "float32")), tensor(np.ones(1 << 20, "float32"))
for _ in range(100): run(x, y, 1 << 20, 1.0, 1.0)
print(counters()["dispatches"])
"""
    assert run_python(program, HELPERS) == "100\n"


_TWO_DEVICES = """
import sys; sys.path.insert(0, sys.argv[1])
from vulkan_work import *
assert len(plugin.devices("vulkan")) == 2
array = np.arange(100_000, dtype="float32")
second = ffi.Device("vulkan", 1)
there = ffi_tensor.empty((100_000,), "float32", second)
ffi_tensor.copy(tensor(array), there)
assert np.array_equal(read(there), array)
ffi_tensor.copy(there, here := empty(100_000, "float32"))
assert np.array_equal(read(here), array)
run(here, here, 64, 0.0, 2.0)
ffi.global_function("__tvm_set_device")(7, 1)
run(there, there, 64, 0.0, 3.0)
assert read(here)[1] == 2
assert read(there)[1] == 3
try:
    run(here, there, 64, 1.0, 1.0)
except ffi.FFIError as error:
    print(error)
"""


def test_devices_beside_one_another_keep_their_own_memory(vulkan: dict[str, Any], tmp_path: Path) -> None:
    driver = Path("/usr/share/vulkan/icd.d/lvp_icd.x86_64.json")
    if not driver.exists():
        pytest.skip("lavapipe, the driver that can be there twice, is not installed: apt install mesa-vulkan-drivers")
    again = tmp_path / "again.json"
    again.write_text(driver.read_text())
    both = dict.fromkeys(("VK_DRIVER_FILES", "VK_ICD_FILENAMES"), f"{driver}:{again}")
    said = run_python(_TWO_DEVICES, HELPERS, environment=both)
    assert said.startswith("kernel axpby: argument 0 is no memory of ")


_SMALL_PROCESS = """
import resource, sys; sys.path.insert(0, sys.argv[1])
from vulkan_work import *
a_kernel_computes_as_numpy_does()
in_use = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (in_use + (1 << 30), -1))
held = []
try:
    while len(held) < 100: held.append(empty(100 << 20))
except ffi.FFIError as error:
    print(error)
held.clear()
print(len(empty(100 << 20).shape))
"""


def test_too_little_memory_is_one_line_and_what_is_freed_can_be_used(vulkan: dict[str, Any]) -> None:
    if vulkan["type"] != "cpu":
        pytest.skip("the memory of a GPU is not the process's")
    message, works = run_python(_SMALL_PROCESS, HELPERS).splitlines()
    assert message.startswith(f"Vulkan device {vulkan['name']}: ")
    assert "100 MiB" in message
    assert works == "1"


def refusal(call: Callable[[], object]) -> str:
    """The message of an error that has one line."""
    with pytest.raises(ffi.FFIError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    return message


def called(kernel: Kernel, grid: tuple[int, int, int] = (1, 1, 1), threads: tuple[int, ...] = ()) -> str:
    """Why a kernel that does nothing is refused."""
    buffers = [tensor(np.zeros(4, "float32")) for _ in range(kernel.arguments.count((3, 64)))]
    scalars = [0] * (len(kernel.arguments) - len(buffers))
    function = load(module(kernel))[kernel.name]
    return refusal(lambda: function(*map(pointer, buffers), *scalars, *grid, *(threads or kernel.workgroup)))


def test_a_kernel_that_is_too_large_is_refused_with_the_limit(vulkan: dict[str, Any]) -> None:
    name = vulkan["name"]
    many = vulkan["max_buffers"] + 1
    assert called(idle("many", many)) == (
        f"kernel many: {many} buffers, {name} allows {many - 1} (maxPerStageDescriptorStorageBuffers)"
    )
    scalars = vulkan["push_constants"] // 4 + 1
    assert called(idle("scalars", scalars=scalars)) == (
        f"kernel scalars: {4 * scalars} bytes of scalars, {name} allows {4 * scalars - 4} (maxPushConstantsSize)"
    )
    threads = vulkan["max_threads"]
    assert called(idle("wide", workgroup=(threads * 64, 1, 1))).endswith("(maxComputeWorkGroupSize)")
    assert called(idle("cube", workgroup=(threads // 2, 2, 2))) == (
        f"kernel cube: {threads * 2} threads in a workgroup, {name} allows {threads} (maxComputeWorkGroupInvocations)"
    )
    floats = vulkan["shared_memory"] // 4 + 1
    greedy = load(module(axpby("greedy", shared_floats=floats)))["greedy"]
    x = pointer(tensor(np.zeros(64, "float32")))
    assert refusal(lambda: greedy(x, x, 0, 0.0, 0.0, 1, 64)) == (
        f"kernel greedy: {floats * 4} bytes of shared memory, {name} allows {floats * 4 - 4} "
        "(maxComputeSharedMemorySize)"
    )


def test_a_kernel_that_is_refused_before_it_runs_is_named_too(vulkan: dict[str, Any]) -> None:
    greedy = axpby("greedy", shared_floats=vulkan["shared_memory"] // 4 + 1)
    kernels = load(module(axpby("modest"), greedy, axpby("humble")))
    message = refusal(lambda: kernels["mlc.build_kernels"](0, 2))
    assert message.startswith("kernel greedy: ")
    assert message.endswith("(maxComputeSharedMemorySize)")
    missing = refusal(lambda: kernels["mlc.build_kernels"](99, 2))
    assert "99" in missing


_REJECTED = """
import sys; sys.path.insert(0, sys.argv[1])
from vulkan_work import *
x = tensor(np.ones(64, "float32"))
for call in (lambda: run(x, x, 64, 1.0, 1.0), lambda: load(module(axpby("other")))["mlc.build_kernels"](0, 2)):
    try: call()
    except ffi.FFIError as error: print(error)
print(read(x)[0])
"""


def test_a_kernel_that_the_driver_rejects_is_one_line_that_names_it(vulkan: dict[str, Any], tmp_path: Path) -> None:
    """By a loader that passes all else on to this machine's."""
    loaders = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "libvulkan.so" in line}
    build_stub("stub_vulkan.c", tmp_path, "libvulkan.so.1", "-ldl")
    environment = {"LD_LIBRARY_PATH": str(tmp_path), "STUB_LOADER": loaders.pop(), "STUB_REFUSAL": "-1000012000"}
    answer = "{} refuses it (vkCreateComputePipelines): VK_ERROR_INVALID_SHADER_NV".format(vulkan["name"])
    assert run_python(_REJECTED, HELPERS, environment=environment).splitlines() == [
        f"kernel axpby: {answer}", f"kernel other: {answer}", "1.0"
    ]  # fmt: skip


def test_a_grid_that_is_too_large_is_refused_with_the_limit(vulkan: dict[str, Any]) -> None:
    groups = vulkan["max_groups"] + 1
    assert called(idle("grid"), grid=(groups, 1, 1)) == (
        f"kernel grid: {groups} workgroups in x, {vulkan['name']} allows {groups - 1} (maxComputeWorkGroupCount)"
    )


def test_threads_have_to_be_those_that_the_kernel_was_compiled_for(vulkan: dict[str, Any]) -> None:
    assert called(idle("some", workgroup=(8, 2, 1)), threads=(8, 4, 1)) == (
        "kernel some: called with 4 threads in y, it was compiled for 2"
    )


def test_an_empty_grid_does_nothing(vulkan: dict[str, Any]) -> None:
    load(module(idle("none")))["none"](pointer(tensor(np.zeros(1, "float32"))), 0, 1, 1, 1, 1, 1)


def test_what_is_no_tensor_of_the_device_is_refused(vulkan: dict[str, Any]) -> None:
    function = load(module(idle("one")))["one"]
    host = np.zeros(64, "float32")
    held = tensor(host)
    for argument in (pointer(held, held.nbytes + 4096), Raw(4, host.ctypes.data, host), None):
        assert refusal(lambda argument=argument: function(argument, 1, 1, 1, 1, 1, 1)) == (
            f"kernel one: argument 0 is no memory of {vulkan['name']}"
        )
    odd = refusal(lambda: function(pointer(held, 2), 1, 1, 1, 1, 1, 1))
    assert odd.startswith("kernel one: argument 0 begins 2 bytes into its memory, ")
    assert odd.endswith("(minStorageBufferOffsetAlignment)")


def test_a_tensor_beyond_what_a_kernel_can_reach_is_refused(vulkan: dict[str, Any]) -> None:
    if vulkan["max_buffer"] > 256 << 20:
        pytest.skip(f"{vulkan['name']} reaches {vulkan['max_buffer']} bytes, too many to allocate for a test")
    large = vulkan_work.empty(vulkan["max_buffer"] + 1)
    function = load(module(idle("reach")))["reach"]
    assert refusal(lambda: function(pointer(large), 1, 1, 1, 1, 1, 1)).endswith("(maxStorageBufferRange)")


def test_more_memory_than_a_device_has_is_refused_with_the_sizes(vulkan: dict[str, Any]) -> None:
    message = refusal(lambda: vulkan_work.empty(vulkan["max_allocation"] + 1))
    assert message.startswith(f"Vulkan device {vulkan['name']}: a tensor of ")
    assert message.endswith("allocates at once: use a smaller model or context")


def test_a_kernel_that_needs_what_the_device_lacks_is_refused(vulkan: dict[str, Any]) -> None:
    lacking = [bit for name, bit in FEATURES.items() if not vulkan[name]]
    if not lacking:
        pytest.skip(f"{vulkan['name']} has every feature")
    message = called(replace(idle("modern"), features=sum(lacking)))
    assert message.startswith(f"kernel modern: {vulkan['name']} lacks ")
    if lacking == [FEATURES["cooperative_matrix"]]:
        assert "lacks cooperative matrices: " in message


def test_every_truncation_of_a_module_is_refused() -> None:
    whole = module(axpby(), idle("second", 2, 3))
    assert load(whole).implements_function("second")
    for length in range(len(whole)):
        assert "compile" in refusal(lambda length=length: load(whole[:length]))
    assert "is damaged" in refusal(lambda: load(whole + b"\0"))


def test_a_damaged_module_is_refused_or_still_a_module() -> None:
    whole = module(axpby())
    messages = []
    for place in range(len(whole)):
        for value in (0, 0x7F, 0xFF):
            damaged = whole[:place] + bytes([value]) + whole[place + 1 :]
            try:
                load(damaged)
            except ffi.FFIError as error:
                messages.append(str(error))
    assert len(messages) > 300
    assert not any("\n" in message for message in messages)


def test_a_module_that_contradicts_itself_is_refused() -> None:
    kernel = idle("odd", 1, 2)
    misfit = "kernel odd: its description does not fit its code: compile the library again"
    for damaged in (
        replace(kernel, workgroup=(2, 1, 1)),
        replace(kernel, push_constants=4),
        replace(kernel, push_constants=64),
        replace(kernel, features=1 << 9),
    ):
        assert refusal(lambda damaged=damaged: load(module(damaged))) == misfit
    assert "launch parameter warp is unknown" in refusal(lambda: load(module(replace(kernel, tags=(*TAGS, "warp")))))
    assert "argument 0 is of a type" in refusal(lambda: load(module(replace(kernel, arguments=((2, 128),)))))
    assert "two kernels odd" in refusal(lambda: load(module(kernel, kernel)))
    few_buffers = replace(axpby("few"), arguments=axpby().arguments[1:])
    assert "SPIR-V is damaged" in refusal(lambda: load(module(few_buffers)))


_CACHED = """
import sys; sys.path.insert(0, sys.argv[1])
from vulkan_work import *
for _ in range(2): a_kernel_computes_as_numpy_does(), synchronize()
"""


def test_what_the_driver_made_of_kernels_is_kept_and_rebuilt_where_it_is_damaged(vulkan: dict[str, Any]) -> None:
    folder = Path(os.environ["MLC_LLM_HOME"], "kernels/vulkan")
    run_python(_CACHED, HELPERS)
    (file,) = folder.iterdir()
    whole = file.read_bytes()
    assert len(whole) > 32  # the least that Vulkan keeps
    for damaged in (whole[:-1], b"\xff" * len(whole)):
        file.write_bytes(damaged)
        run_python(_CACHED, HELPERS)
        assert len(file.read_bytes()) >= 32
        assert file.read_bytes() != damaged
        assert [*folder.iterdir()] == [file]


def test_a_device_says_what_it_can(vulkan: dict[str, Any]) -> None:
    order = ["discrete", "integrated", "virtual", "other", "cpu"]
    found = plugin.devices("vulkan")
    assert [device["type"] for device in found] == sorted((device["type"] for device in found), key=order.index)
    for device in found:
        assert device["name"]
        assert device["memory"] > 0
        assert device["max_buffer"] >= 1 << 27  # what Vulkan asks of every device, here and below
        assert device["max_threads"] >= 128
        assert device["shared_memory"] >= 16 << 10
        assert device["push_constants"] >= 128
        assert device["subgroup"] >= 1
        assert all(isinstance(device[name], bool) for name in FEATURES)


def test_devices_that_are_not_there_do_not_exist(vulkan: dict[str, Any]) -> None:
    count = len(plugin.devices("vulkan"))
    message = refusal(lambda: ffi_tensor.empty((1,), "int8", ffi.Device("vulkan", count)))
    assert message == f"there is no Vulkan device {count}: this machine has {count}"


_REPORT = """
import json
from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime.devices import plugin
devices, problem = plugin.devices("vulkan"), plugin.problem("vulkan")
try:
    ffi_tensor.empty((1,), "int8", ffi.Device("vulkan", 0))
except ffi.FFIError as error:
    print(json.dumps([devices, problem, str(error)]))
"""


def test_without_a_driver_there_are_no_devices_and_a_reason(tmp_path: Path) -> None:
    nothing = {name: str(tmp_path / "none.json") for name in ("VK_DRIVER_FILES", "VK_ICD_FILENAMES")}
    devices, problem, message = json.loads(run_python(_REPORT, environment=nothing))
    assert devices == []
    assert "install the driver" in problem
    assert "\n" not in problem
    assert message == f"there is no Vulkan device: {problem}"


def test_without_a_loader_there_are_no_devices_and_a_reason(tmp_path: Path) -> None:
    for name in ("libvulkan.so.1", "libvulkan.so"):
        (tmp_path / name).write_text("not a library")
    devices, problem, message = json.loads(run_python(_REPORT, environment={"LD_LIBRARY_PATH": str(tmp_path)}))
    assert devices == []
    assert problem.startswith("no Vulkan loader (")
    assert "libvulkan.so.1" in problem
    assert "install the driver" in problem
    assert "\n" not in problem
    assert message == f"there is no Vulkan device: {problem}"
