"""The kernels of the sampler, compiled for this machine and called as the runtime calls them."""

import tempfile
from functools import cache
from pathlib import Path

import tvm

from mlc_llm.compiler.kernels.cpu.sample_token import sampling_kernels
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime import ffi
from mlc_llm.runtime.sampling_kernels import LibrarySampling
from mlc_llm.runtime.tvm_runtime import load_runtime


@cache
def compiled_sampling() -> LibrarySampling:
    """For at most 8 rows of at most 50 000 tokens; made once per test run."""
    functions = {name: function.with_attr("global_symbol", name) for name, function in sampling_kernels().items()}
    load_runtime()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sampling.so"
        tvm.compile(tvm.IRModule(functions), target=resolve_target().tvm_target()).export_library(str(path))
        return LibrarySampling(ffi.load_module(str(path)), 50_000, 8)
