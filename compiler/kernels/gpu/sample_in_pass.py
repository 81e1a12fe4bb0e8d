"""Choosing tokens on a device: within the pass of a model, or after it."""
# mypy: disable-error-code="misc,no-any-return"

from tvm.relax.frontend.nn import Tensor, op

from ....runtime.artifact import SAMPLING_BLOCK
from ...target.target import CompileTarget
from .sample_adjust import adjust_logits
from .sample_token import FOUND, sample_token


def sample(_: CompileTarget, logits: Tensor, settings: Tensor, uniforms: Tensor, tokens: Tensor) -> Tensor:
    """See `families.Family`. Settings and uniforms are float32."""
    rows, *_one, vocab = logits.shape
    blocks = -(-vocab // SAMPLING_BLOCK)
    scratch = [((rows, blocks), "int32"), ((rows, blocks), "float32"), ((rows, vocab), "int32"),
               ((rows, FOUND), "int32")]  # fmt: skip
    logits = op.reshape(logits, (rows, vocab))
    arguments, out = [logits, settings, uniforms, tokens], [logits, *(Tensor.placeholder(*one) for one in scratch)]
    same: Tensor
    same, *_others = op.tensor_ir_inplace_op(sample_token(vocab), "sample_in_pass", arguments, [0, -1, -1, -1, -1], out)
    return same


def adjust(logits: Tensor, words: Tensor) -> Tensor:
    """See `families.Family`."""
    kernel = adjust_logits(int(logits.shape[1]))
    same: Tensor = op.tensor_ir_inplace_op(kernel, "adjust_logits", [logits, words], [0], logits)
    return same
