"""The library's description of itself, as a function that returns JSON."""

import tvm
from tvm import relax

from ...runtime.artifact import LibraryMetadata


def AttachMetadata(metadata: LibraryMetadata) -> tvm.transform.Pass:  # noqa: N802 - passes are named as classes
    """Add `_metadata() -> str`; memory use of each function is read off the planned storage."""

    @tvm.transform.module_pass(opt_level=0, name="AttachMetadata")
    def attach(module: tvm.IRModule, _context: tvm.transform.PassContext) -> tvm.IRModule:
        for variable, function in module.functions_items():
            if isinstance(function, relax.Function):
                metadata.memory_usage[variable.name_hint] = _planned_bytes(function)
        metadata.memory_usage = dict(sorted(metadata.memory_usage.items()))
        builder = relax.BlockBuilder()
        with builder.function("_metadata", params=[]):
            builder.emit_func_output(tvm.ir.StringImm(metadata.model_dump_json()))
        for variable, function in builder.finalize().functions_items():
            module[variable] = function
        return module

    return attach


def _planned_bytes(function: relax.Function) -> int:
    """Bytes of the storages that StaticPlanBlockMemory gave a function."""
    total = 0

    def visit(expression: relax.Expr) -> None:
        nonlocal total
        if isinstance(expression, relax.Call) and expression.op == tvm.ir.Op.get("relax.memory.alloc_storage"):
            size = expression.args[0]
            if isinstance(size, relax.ShapeExpr) and isinstance(size.values[0], tvm.tirx.IntImm):
                total += int(size.values[0])

    relax.analysis.post_order_visit(function, visit)
    return total
