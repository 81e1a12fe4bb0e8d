"""Decoding steps as CUDA graphs: what a step launches is recorded when it first runs, and launched at once later.

What can be recorded depends on tensors alone that are the same in every step: intermediate results, for which a step
then has memory of its own, and weights. So the kernels from the output of one layer's attention to the input of the
next one's are a graph each, and attention, which reads the tables of the KV cache, is launched between them. A batch
has its graphs for each number of sequences.
"""
# mypy: disable-error-code="misc"

import tvm
from tvm import relax

_DECODING = ("decode", "batch_decode")
_WEIGHTS = 1  # the last parameter
_SYMBOLIC = "relax.rewrite_cuda_graph.capture_symbolic_vars"


@tvm.transform.module_pass(opt_level=0, name="CaptureDecoding")
class CaptureDecoding:
    """TVM's pass, over the functions that decode: others would keep memory for their largest call for good."""

    def transform_module(self, module: tvm.IRModule, context: tvm.transform.PassContext) -> tvm.IRModule:
        """The module with functions for what is recorded."""
        others = {name: function for name, function in module.functions_items()
                  if isinstance(function, relax.Function) and name.name_hint not in _DECODING}  # fmt: skip
        for name in others:
            del module[name]
        for name, function in module.functions_items():
            if isinstance(function, relax.Function):
                inputs = len(function.params) - _WEIGHTS
                module[name] = function.with_attrs({"num_input": inputs, _SYMBOLIC: ["batch_size"]})
        config = {**context.config, "relax.backend.use_cuda_graph": True}  # without it the pass does nothing
        with tvm.transform.PassContext(opt_level=context.opt_level, config=config):
            module = relax.transform.RewriteCUDAGraph()(module)
        for name, function in others.items():
            module[name] = function
        return module
