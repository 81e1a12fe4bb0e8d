"""Vulkan's code generator: lowered TIR -> SPIR-V, in Python.

Read `kernel.py` first: it sets up what the others do. `module.py` holds declarations, `code.py` instructions and their
blocks; `values.py` calculates with vectors, `indexing.py` with addresses, `memory.py` loads and stores;
`expressions.py`, `intrinsics.py` and `statements.py` walk over TIR; `assembly.py` and `blob.py` write the result.
"""

from .blob import module_bytes
from .kernel import Kernel, emit_kernel

__all__ = ["Kernel", "emit_kernel", "module_bytes"]
