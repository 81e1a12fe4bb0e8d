"""Kernels with known answers, which runtime/devices/self_test.py runs on a device: every library for a device has them,
and there is a small one of their own."""

from pathlib import Path

import tvm
from tvm import tirx

from ..runtime.devices.known_answers import (
    FEATURES,
    GROUP,
    HEAD_DIM,
    HEADS,
    INPUTS,
    KV_HEADS,
    OUTPUTS,
    TOKENS,
    VOCAB,
    ZERO_POINT,
)
from .kernels.cache_kernels import CacheShape
from .kernels.families import family
from .kernels.operations import Matmul, RMSNorm, SwiGLU
from .kernels.storage import GroupStorage
from .link import find_linker, link
from .model.rope import parse_rope
from .preflight import workspace
from .target import CompileTarget, code_generation, resolve_target

_MATMUL = Matmul(OUTPUTS, INPUTS, GroupStorage(4, GROUP, "float32", ZERO_POINT))


def build_self_test(device: str, output: Path) -> None:
    """Compile the kernels for a device, as `--device` of `mlc compile` takes it; `output` appears whole or not at all.

    Raises UsageError, EngineError as compiling a model would.
    """
    target = resolve_target(device)
    linker = find_linker(target.host_triple)
    functions = self_test_kernels(target)
    if target.gpu is not None:
        from .kernels.gpu.sample_token import sample_token

        rope = parse_rope({"rope_theta": 1e4, "head_dim": HEAD_DIM, "max_position_embeddings": TOKENS})
        cache = CacheShape(1, HEADS, KV_HEADS, HEAD_DIM, rope, "float32")
        functions |= {
            "self_test_matmul_rows": family(target).table(target, 32).function(_MATMUL, single=False),
            "self_test_attention": family(target).cache_kernels(cache, target, 32).decode_attention,
            "self_test_sample_token": sample_token(VOCAB),
        }
    module = tvm.IRModule({name: one.with_attr("global_symbol", name) for name, one in functions.items()})
    with workspace(output) as folder, code_generation(target):
        executable = tvm.compile(module, target=target.tvm_target())
        link(executable, linker, folder, output, target.runtime_device)


def self_test_kernels(target: CompileTarget) -> dict[str, tirx.PrimFunc]:
    """Those that every library for a device has too: they run when it is loaded."""
    table = family(target).table(target, 32)
    return {
        "self_test_rms_norm": table.function(RMSNorm(FEATURES, 1e-5), single=True),
        "self_test_silu_mul": table.function(SwiGLU(FEATURES), single=True),
        "self_test_matmul": table.function(_MATMUL, single=True),
    }
