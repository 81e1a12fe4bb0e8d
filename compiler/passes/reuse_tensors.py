"""Intermediate results that lie at the same place and have the same shape share one tensor.

Memory planning gives all layers the same few storages, but each result a tensor of its own, which the virtual machine
makes and frees in every pass: a decode step of a small model takes a twentieth longer for it.
"""
# mypy: disable-error-code="misc"

import tvm
import tvm_ffi
from tvm import relax

_ALLOC_TENSOR = tvm.ir.Op.get("relax.vm.alloc_tensor")


@tvm.transform.module_pass(opt_level=0, name="ReuseTensors")
class ReuseTensors:
    """Binds the result of every `vm.alloc_tensor` that says the same as an earlier one of its function to that one's.

    The results of a storage are never in use at the same time, so it does not matter which tensor a kernel gets.
    """

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The module with its Relax functions rewritten."""
        for name, function in list(module.functions_items()):
            if isinstance(function, relax.Function):
                made: list[relax.VarBinding] = []
                blocks = [
                    relax.BindingBlock([_shared(b, made) for b in block.bindings]) for block in function.body.blocks
                ]
                body = relax.SeqExpr(blocks, function.body.body)
                module[name] = relax.Function(function.params, body, function.ret_ty, function.is_pure, function.attrs)
        return module


def _shared(binding: relax.Binding, made: list[relax.VarBinding]) -> relax.Binding:
    """The binding, to an earlier variable where that is the same tensor; `made` are those that there are."""
    value = binding.value
    if not (isinstance(value, relax.Call) and value.op == _ALLOC_TENSOR):
        return binding
    for other in made:
        if all(map(tvm_ffi.structural_equal, value.args, other.value.args)):
            return relax.VarBinding(binding.var, other.var)
    made.append(binding)
    return binding
