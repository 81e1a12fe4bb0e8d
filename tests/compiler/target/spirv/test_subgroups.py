"""Values that threads of a subgroup take from one another; lavapipe's subgroups have eight threads."""
# mypy: ignore-errors

import numpy as np
import pytest
from tvm.tirx.script.builder import ir as T
from vulkan_kernels import compiled, disassembled, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.builder import kernel
from mlc_llm.compiler.kernels.gpu.launch import launch
from mlc_llm.runtime.devices import plugin
from mlc_llm.runtime.errors import EngineError

pytestmark = pytest.mark.usefixtures("vulkan_device")

SHUFFLES = {
    "tvm_warp_shuffle": (lambda lane: 5, lambda lane: 5),
    "tvm_warp_shuffle_xor": (lambda lane: 3, lambda lane: lane ^ 3),
    "tvm_warp_shuffle_up": (lambda lane: 2, lambda lane: lane - 2),
    "tvm_warp_shuffle_down": (lambda lane: 3, lambda lane: lane + 3),
}


def exchanges(size: int, width: int):
    """A kernel with a row for each way to exchange."""
    with kernel("exchanges") as k:
        a, b = k.input("a", (size,), "float32"), k.input("b", (len(SHUFFLES), size), "float32")
        with k.body(), launch([1], size) as (_, (thread,)):
            mask = T.tvm_warp_activemask()
            for row, (name, (operand, _)) in enumerate(SHUFFLES.items()):
                value = getattr(T, name)(mask, a[thread], T.int32(operand(0)), width, size)
                T.buffer_store(b, value, [row, thread])
    return k.function


def test_threads_of_a_subgroup_exchange_values() -> None:
    size = plugin.devices("vulkan")[0]["subgroup"]
    a, b = np.random.default_rng(0).standard_normal(size).astype("float32"), np.zeros((len(SHUFFLES), size), "float32")
    compiled({"kernel": exchanges(size, size)}).calls["kernel"](a, b)
    for (name, (_, source)), row in zip(SHUFFLES.items(), b, strict=True):
        for lane in range(size):
            if 0 <= source(lane) < size:  # beyond the subgroup there is nothing to take
                assert row[lane] == a[source(lane)], name


def test_exchanges_ask_for_a_device_that_can() -> None:
    text, launched = disassembled(exchanges(8, 8))
    assert launched.features == 1 << 5
    assert "GroupNonUniformShuffleRelative" in text


def test_parts_of_a_subgroup_are_refused() -> None:
    with pytest.raises(EngineError, match="tvm_warp_shuffle among 4 of 8 threads"):
        compiled({"kernel": exchanges(8, 4)})
