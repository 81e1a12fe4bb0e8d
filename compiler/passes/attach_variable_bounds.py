"""Upper bounds of symbolic shapes, so that memory is planned once for the largest call."""

from collections.abc import Mapping

import tvm
from tvm import relax


def AttachVariableBounds(bounds: Mapping[str, int]) -> tvm.transform.Pass:
    """Attach `tir_var_upper_bound` to every Relax function."""

    @tvm.transform.module_pass(opt_level=0, name="AttachVariableBounds")
    def attach(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                module[variable] = function.with_attr("tir_var_upper_bound", dict(bounds))
        return module

    return attach
