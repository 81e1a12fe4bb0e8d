"""Norms and activations become part of the multiplications beside them: fewer kernels, fewer trips through memory.

rms_norm -> matmul          matmul that norms the rows it reads
matmul -> swiglu            matmul of gate and up together that writes only the activated product
"""
# mypy: disable-error-code="no-any-return,misc"

from dataclasses import replace
from typing import Any

import tvm
from tvm import relax

from ..kernels.operations import Matmul, RMSNorm, Specification, SwiGLU
from ..kernels.storage import TILE
from ..kernels.table import KernelTable

_CALL_TIR = tvm.ir.Op.get("relax.call_tir")


@tvm.transform.module_pass(opt_level=0, name="FuseMatmul")
class FuseMatmul:
    """Rewrites the calls of kernels that come from `table`; those that lose their last user are left for
    DeadCodeElimination."""

    def __init__(self, table: KernelTable) -> None:
        self.table = table

    def transform_module(self, module: tvm.IRModule, _: tvm.transform.PassContext) -> tvm.IRModule:
        """The module with its Relax functions rewritten."""
        mutator = _Fuser(module, self.table)
        for name, function in list(module.functions_items()):
            if isinstance(function, relax.Function):
                mutator.builder_.update_func(name, mutator.visit_expr(function))
        return mutator.builder_.get()


@relax.expr_functor.mutator
class _Fuser(relax.PyExprMutator):
    def __init__(self, module: tvm.IRModule, table: KernelTable) -> None:
        super().__init__(module)
        self.table = table
        self.kernels: dict[tuple[Matmul, bool], tvm.ir.GlobalVar] = {}  # those that were added

    def visit_call_(self, call: relax.Call) -> relax.Expr:
        """One call of a kernel, fused with the calls that made its inputs."""
        call = super().visit_call_(call)
        specification = self._specification(call)
        if specification is None:
            return call
        if isinstance(specification.operation, SwiGLU):
            return self._fuse_swiglu(call, specification)
        if isinstance(specification.operation, Matmul):
            return self._fuse_norm(call, specification)
        return call

    def _fuse_norm(self, call: relax.Call, specification: Specification) -> relax.Call:
        matmul = specification.operation
        assert isinstance(matmul, Matmul)
        x, *others = call.args[1]
        norm = self._producer(x)
        if norm is None or matmul.norm_eps is not None or not self.table.fuses(matmul):
            return call
        made_by = self._specification(norm)
        if made_by is None or not isinstance(made_by.operation, RMSNorm):
            return call
        fused = replace(matmul, norm_eps=made_by.operation.eps)
        return self._call(fused, specification.single, [norm.args[1][0], norm.args[1][1], *others], call)

    def _fuse_swiglu(self, call: relax.Call, specification: Specification) -> relax.Call:
        swiglu = specification.operation
        assert isinstance(swiglu, SwiGLU)
        (x,) = call.args[1]
        product = self._producer(x)
        made_by = self._specification(product)
        if product is None or made_by is None or not isinstance(made_by.operation, Matmul):
            return call
        matmul = made_by.operation
        whole_tiles = swiglu.features % TILE == 0
        if not self.table.fuses(matmul) or matmul.residual or matmul.pieces or not whole_tiles:
            return call
        return self._call(replace(matmul, swiglu=True), made_by.single, list(product.args[1]), call)

    def _call(self, operation: Matmul, single: bool, arguments: list[Any], old: relax.Call) -> relax.Call:
        """A call of the kernel for `operation` with the result type of `old`."""
        key = operation, single
        if key not in self.kernels:  # to add one takes a hash of all of it
            function = self.table.function(operation, single=single)
            self.kernels[key] = self.builder_.add_func(function, self.table.name(operation, single=single))
        return relax.call_tir(self.kernels[key], relax.Tuple(arguments), old.ty)

    def _producer(self, expr: Any) -> relax.Call | None:
        """The call of a kernel that a variable is bound to, if nothing else stands between."""
        value = self.lookup_binding(expr) if isinstance(expr, relax.Var) else None
        return value if isinstance(value, relax.Call) and value.op == _CALL_TIR else None

    def _specification(self, call: Any) -> Specification | None:
        if not isinstance(call, relax.Call) or call.op != _CALL_TIR:
            return None
        function = self.builder_.get()[call.args[0]]
        return self.table.specification(function) if isinstance(function, tvm.tirx.PrimFunc) else None
