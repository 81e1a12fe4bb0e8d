"""Multiplications by cooperative matrices, which lavapipe lacks: their modules are valid, ask for a device that has
them, and are refused by others. What they compute: tests/compiler/kernels/gpu/test_gpu_matmul_units.py."""

import device_kernels
import numpy as np
import pytest
from device_kernels import compile_kernels
from packed_weights import random_weights
from vulkan_kernels import recorded, tool, validator, vulkan_device_or_skip  # noqa: F401

from mlc_llm.compiler.kernels.gpu.table import matmul, matmul_single
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import GroupStorage
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime.devices import plugin
from mlc_llm.runtime.errors import UsageError

pytestmark = pytest.mark.usefixtures("vulkan_device")

OP = Matmul(160, 96, GroupStorage(4, 32, "float16", 7), bias=True, residual=True, norm_eps=1e-5)


def test_matrices_are_for_devices_that_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    target = resolve_target("vulkan:cooperative")
    assert target.gpu is not None
    monkeypatch.setattr(device_kernels, "device_target", lambda kind: target)
    functions = {"single": matmul_single(OP, target.gpu), "many": matmul(OP, target.gpu, units=True)}
    with recorded() as launches:
        kernels = compile_kernels(functions, "vulkan")
    command = validator()
    for launch in launches:
        tool(command, launch.spirv, "--target-env", "vulkan1.1")
    (matrices,) = (launch for launch in launches if launch.features & 1 << 8)
    text = tool(command.replace("spirv-val", "spirv-dis"), matrices.spirv)
    for part in ("OpCapability VulkanMemoryModel", "OpMemoryModel Logical Vulkan", "BuiltIn SubgroupId"):
        assert part in text
    # 2 steps of 16 columns, 2 x 2 fragments; 4 fragments of sums go to memory
    assert text.count("OpCooperativeMatrixMulAddKHR") == 2 * 4
    assert text.count("OpCooperativeMatrixLoadKHR") == 2 * 4
    assert text.count("OpCooperativeMatrixStoreKHR") == 4

    (found, *_) = plugin.devices("vulkan")
    if found["cooperative_matrix"]:
        pytest.skip(f"{found['name']} has cooperative matrices")
    packed, _ = random_weights(OP.storage, OP.out_features, OP.in_features)
    x, norm, bias, y = (np.zeros(shape, np.float32) for shape in ((1, 1, 96), 96, 160, (1, 1, 160)))
    with pytest.raises(Exception, match="the library multiplies with cooperative matrices") as caught:
        kernels["single"](x, norm, *packed, bias, y, y)
    message = str(caught.value).splitlines()[-1]
    assert message.endswith(f"{found['name']} lacks them: compile it for --device vulkan")


def test_a_target_says_whether_there_are_matrices() -> None:
    for device, matrix in {
        "vulkan": "",
        "vulkan:cooperative": "cooperative",
        '{"kind": "vulkan", "supports_cooperative_matrix": true}': "cooperative",
        '{"kind": "vulkan", "supports_cooperative_matrix": false}': "",
    }.items():
        target = resolve_target(device)
        assert target.device == "vulkan"
        assert target.gpu is not None
        assert target.gpu.matrix == matrix
        assert target.attributes.get("supports_cooperative_matrix", False) == bool(matrix)
    with pytest.raises(UsageError, match="vulkan:fast is unknown: expected vulkan or vulkan:cooperative"):
        resolve_target("vulkan:fast")
