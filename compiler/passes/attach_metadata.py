"""The library's description of itself, as a function that returns JSON."""

import tvm
from tvm import relax

from ...runtime.artifact import LibraryMetadata


def AttachMetadata(metadata: LibraryMetadata) -> tvm.transform.Pass:
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
    alloc_storage = tvm.ir.Op.get("relax.memory.alloc_storage")
    total = 0
    for block in function.body.blocks:
        for binding in block.bindings:
            if isinstance(binding.value, relax.Call) and binding.value.op == alloc_storage:
                size = binding.value.args[0].values[0]
                total += int(size) if isinstance(size, tvm.tirx.IntImm) else 0
    return total
