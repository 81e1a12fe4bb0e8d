"""Tensors of intermediate results: as many as there are places and shapes, however many layers there are."""

import numpy as np
import pytest
import tvm
from tvm import relax
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor, op

from mlc_llm.compiler.passes.reuse_tensors import ReuseTensors
from mlc_llm.compiler.target import resolve_target


class Layers(nn.Module):
    """Layers that widen their input, take its square and make it narrow again, with residuals."""

    def __init__(self, count: int) -> None:
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        """[batch, 8] -> the same."""
        for _ in range(self.count):
            wide = op.concat([x, x * x], dim=1)
            x = x + op.sum(op.reshape(wide * wide, (x.shape[0], 8, 2)), axis=2) * 0.01
        return x


def lowered(layers: int, batch: int | str) -> tvm.IRModule:
    spec = {"forward": {"x": nn.spec.Tensor([batch, 8], "float32"), "$": {"effect_mode": "none", "param_mode": "none"}}}
    module, _ = Layers(layers).export_tvm(spec=spec)
    passes = [
        relax.transform.LegalizeOps(),
        relax.transform.RewriteDataflowReshape(),
        relax.transform.ToNonDataflow(),
        relax.transform.RemovePurityChecking(),
        relax.transform.CallTIRRewrite(),
        relax.transform.StaticPlanBlockMemory(),
        relax.transform.LowerAllocTensor(),
        relax.transform.LowerRuntimeBuiltin(),
        ReuseTensors(),
    ]
    result: tvm.IRModule = tvm.transform.Sequential(passes)(module)
    return result


def tensors(module: tvm.IRModule) -> int:
    """How many tensors the function makes."""
    bindings = [binding for block in module["forward"].body.blocks for binding in block.bindings]
    ops = [binding.value.op for binding in bindings if isinstance(binding.value, relax.Call)]
    return ops.count(tvm.ir.Op.get("relax.vm.alloc_tensor"))


@pytest.mark.parametrize("batch", [3, "batch"])
def test_layers_share_the_tensors_of_their_results(batch: int | str) -> None:
    few, many = lowered(4, batch), lowered(9, batch)
    assert 3 < tensors(few) == tensors(many) < 12
    passes = [relax.transform.ComputePrimValue(), relax.transform.VMShapeLower(), relax.transform.AttachGlobalSymbol()]
    target = resolve_target("cpu").tvm_target()
    executable = relax.build(tvm.transform.Sequential(passes)(many), target, relax_pipeline=None)
    machine = relax.VirtualMachine(executable, tvm.cpu())
    x = expected = np.random.default_rng(0).random((3, 8), np.float32)
    for _ in range(9):
        wide = np.concatenate([expected, expected * expected], 1) ** 2
        expected = expected + wide.reshape(3, 8, 2).sum(2) * 0.01
    np.testing.assert_allclose(machine["forward"](tvm.runtime.tensor(x)).numpy(), expected, rtol=1e-5)
