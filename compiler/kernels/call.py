"""Calling a kernel while a model is traced."""
# mypy: disable-error-code="misc,no-any-return"

from collections.abc import Sequence
from typing import Any

from tvm import ir, relax, tirx
from tvm.relax.frontend.nn import Tensor
from tvm.relax.frontend.nn.core import wrap_nested


class KernelCalls:
    """What `nn.op.tensor_ir_op` does, but each kernel is added to a module once: to add one takes a hash of all of it,
    which for a large one takes longer than to trace a layer."""

    def __init__(self) -> None:
        self._builder: relax.BlockBuilder | None = None  # of the module that is made
        self._added: dict[int, tuple[tirx.PrimFunc, ir.GlobalVar]] = {}  # by the identity of a kernel, which it keeps

    def __call__(self, kernel: tirx.PrimFunc, name: str, arguments: Sequence[Any], out: Tensor) -> Tensor:
        """The result of a kernel called with tensors and numbers; it is of the shape and type of `out`."""
        builder = relax.BlockBuilder.current()
        if builder is not self._builder:
            self._builder, self._added = builder, {}
        if id(kernel) not in self._added:
            self._added[id(kernel)] = kernel, builder.add_func(kernel, name)
        values = [argument._expr if isinstance(argument, Tensor) else argument for argument in arguments]
        call = relax.call_tir(self._added[id(kernel)][1], values, [out._expr.ty])
        result: Tensor = wrap_nested(builder.emit(call), name=name)
        return result


call_kernel = KernelCalls()
