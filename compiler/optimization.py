"""`--opt`: how a library trades accuracy for speed, as a level, as single choices, or as upstream's flags."""

from dataclasses import dataclass, replace

from ..runtime.errors import UsageError
from .overrides import pairs


@dataclass(frozen=True)
class Optimization:
    """What `--opt` asks for.

    passes: the level of TVM's own passes, 0 to 3.
    activation_bits: what the inputs of quantized matrices, and queries, keys and values of prompts, are rounded to: 16
        (indistinguishable from float32), 8 (twice as fast where arithmetic is the limit: long prompts and batches; on
        the processor alone) or 32 (float32 arithmetic, the reference).
    cuda_graph: whether CUDA records what decoding launches between two layers' attention, and launches it at once from
        the second time on. Other devices have no such graphs.
    """

    passes: int = 2
    activation_bits: int = 16
    cuda_graph: bool = False


LEVELS = {
    "O0": Optimization(passes=0),
    "O1": Optimization(passes=1),
    "O2": Optimization(),
    "O3": Optimization(passes=3, activation_bits=8, cuda_graph=True),
}
_ACTIVATION_BITS = ("8", "16", "32")
_SWITCH = {"0": False, "1": True}
# upstream's other flags -> the value that asks for nothing
_UPSTREAM = {
    "flashinfer": "0",
    "cublas_gemm": "0",
    "faster_transformer": "0",
    "cutlass": "0",
    "ipc_allreduce_strategy": "NONE",
}


def parse_opt(text: str, device: str) -> Optimization:
    """Parse `--opt`: a level, then perhaps choices, as "O2;activation_bits=32".

    Upstream's other flags name CUDA libraries, so their "off" values are accepted and anything else is refused. What a
    level asks for beyond what the device has is left out. Raises UsageError.
    """
    level, separator, rest = text.partition(";")
    if level in LEVELS:
        optimization, text = LEVELS[level], rest
    elif "=" not in text or (separator and "=" not in level):
        raise UsageError(f"--opt {text!r:.80} is unknown: expected {', '.join(LEVELS)}")
    else:
        optimization = LEVELS["O2"]
    if device != "cuda":
        optimization = replace(optimization, cuda_graph=False)
    if device != "cpu":
        optimization = replace(optimization, activation_bits=max(16, optimization.activation_bits))
    for key, value in pairs(text, "--opt", {"activation_bits": None, "cudagraph": None, **_UPSTREAM}):
        if key == "activation_bits":
            possible = _ACTIVATION_BITS if device == "cpu" else _ACTIVATION_BITS[1:]
            if value not in possible:
                raise UsageError(f"--opt activation_bits={value:.60}: expected {', '.join(possible)} on {device}")
            optimization = replace(optimization, activation_bits=int(value))
        elif key == "cudagraph":
            if value not in _SWITCH or (_SWITCH[value] and device != "cuda"):
                where = "expected 0 or 1" if device == "cuda" else f"has no meaning on {device}: expected cudagraph=0"
                raise UsageError(f"--opt cudagraph={value:.60}: {where}")
            optimization = replace(optimization, cuda_graph=_SWITCH[value])
        elif value != _UPSTREAM[key]:
            raise UsageError(f"--opt {key}={value} has no meaning on {device}: "
                             f"expected {key}={_UPSTREAM[key]}, or a level as --opt O2")  # fmt: skip
    return optimization
