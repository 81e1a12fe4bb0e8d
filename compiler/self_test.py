"""A small library of kernels with known answers, which runtime/devices/self_test.py runs on a device."""

from pathlib import Path

import tvm

from ..runtime.devices.known_answers import FEATURES, VOCAB
from .kernels.families import family
from .kernels.operations import RMSNorm, SwiGLU
from .link import find_linker, link
from .preflight import workspace
from .target import code_generation, resolve_target


def build_self_test(device: str, output: Path) -> None:
    """Compile the kernels for a device, as `--device` of `mlc compile` takes it; `output` appears whole or not at all.

    Raises UsageError, EngineError as compiling a model would.
    """
    target = resolve_target(device)
    linker = find_linker(target.host_triple)
    table = family(target).table(target, 16)
    functions = {
        "rms_norm": table.function(RMSNorm(FEATURES, 1e-5), single=True),
        "silu_mul": table.function(SwiGLU(FEATURES), single=True),
    }
    if target.gpu is not None:
        from .kernels.gpu.sample_token import sample_token

        functions["sample_token"] = sample_token(VOCAB)
    module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in functions.items()})
    with workspace(output) as folder, code_generation(target):
        executable = tvm.compile(module, target=target.tvm_target())
        link(executable, linker, folder, output, target.runtime_device)
