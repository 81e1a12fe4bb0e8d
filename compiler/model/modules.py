"""The layers that architectures are built from: each knows how its weights are stored and which kernel reads them.

A parameter of these modules has the shape that the target's kernels read (`packed`). What the model folder holds, and
the kernel that brings it into the packed form at load, are kept in the parameter's `attrs` for the library's metadata.
"""
# mypy: disable-error-code="misc,no-any-return"

from __future__ import annotations

from tvm import tirx
from tvm.relax.frontend import nn
from tvm.relax.frontend.nn import Tensor

from ..kernels import operations
from ..kernels.call import call_kernel
from ..kernels.families import family
from ..kernels.operations import Matmul
from ..quantization.choice import AnyScheme
from ..target import CompileTarget
from .architecture import Weight, WeightKind
from .matrix import Matrix, stored_vector


class Layers:
    """Makes layers for one quantization scheme and one target, and collects the kernels that loading needs."""

    def __init__(self, scheme: AnyScheme, target: CompileTarget, activation_bits: int = 16) -> None:
        self.scheme, self.target = scheme, target
        self.family = family(target)
        self.table = self.family.table(target, activation_bits)
        self.preprocs: dict[str, tirx.PrimFunc] = {}

    def linear(self, in_features: int, out_features: int, *, bias: bool = False) -> Linear:
        """y = x W^T (+ bias)."""
        return Linear(self, out_features, in_features, "linear", bias=bias)

    def head(self, in_features: int, vocab_size: int) -> Linear:
        """The projection to logits."""
        return Linear(self, vocab_size, in_features, "head")

    def embedding(self, vocab_size: int, features: int) -> Embedding:
        """The table of token embeddings; `lm_head` multiplies by the same table where embeddings are tied."""
        return Embedding(self, vocab_size, features, "embedding")

    def rms_norm(self, features: int, eps: float) -> RMSNorm:
        """Root mean square norm."""
        return RMSNorm(self, features, eps)

    def silu_mul(self, features: int) -> SiluMul:
        """silu(gate) * up on a fused [gate | up]."""
        return SiluMul(self, features)

    def matrix(self, name: str, rows: int, columns: int, kind: WeightKind) -> Matrix:
        """The weight matrix called `name` as it is stored and as kernels read it."""
        return Matrix(self.preprocs, self.scheme, self.target, Weight(name, (), (rows, columns), kind))

    def vector(self, length: int) -> nn.Parameter:
        """A float32 vector in kernels (norm weight, bias), stored in the scheme's dtype."""
        return stored_vector(self.preprocs, self.scheme, length)


class _MatrixModule(nn.Module):
    """A module whose parameters are a matrix: `weight`, or `q_weight`, `q_scale` and what else the scheme stores."""

    matrix: Matrix

    def __init__(self, layers: Layers, rows: int, columns: int, kind: WeightKind) -> None:
        self.layers_, self.rows, self.columns, self.kind = layers, rows, columns, kind

    def assign(self, name: str) -> None:
        """Become the weight called `name`: a scheme may store each one in its own way."""
        self.matrix = self.layers_.matrix(name, self.rows, self.columns, self.kind)
        for part, parameter in self.matrix.parameters.items():
            setattr(self, part, parameter)

    def multiply(self, x: Tensor, bias: nn.Parameter | None = None, residual: Tensor | None = None) -> Tensor:
        matrix, layers = self.matrix, self.layers_
        key = Matmul(
            matrix.rows,
            matrix.columns,
            matrix.storage,
            bias=bias is not None,
            residual=residual is not None,
            pieces=matrix.pieces if len(matrix.pieces) > 1 else (),
        )
        batch, seq, _ = x.shape
        single = is_single(batch, seq)
        kernel = layers.table.function(key, single=single)
        name = layers.table.name(key, single=single)
        arguments = [x, *matrix.arguments] + [a for a in (bias, residual) if a is not None]
        return call_kernel(kernel, name, arguments, Tensor.placeholder((batch, seq, matrix.rows), "float32"))


def assign_weights(module: nn.Module, prefix: str = "") -> None:
    """Give every matrix below `module` its weight, which is called by its place in the tree, as parameters are."""
    if isinstance(module, _MatrixModule):
        module.assign(f"{prefix}weight")
        return
    children = enumerate(module) if isinstance(module, nn.ModuleList) else vars(module).items()
    for name, child in children:
        if isinstance(child, nn.Module | nn.ModuleList):
            assign_weights(child, f"{prefix}{name}.")


def is_single(batch: object, seq: object) -> bool:
    """Whether a [batch, seq, ...] tensor is known to have one row."""
    return all(isinstance(n, int | tirx.IntImm) and int(n) == 1 for n in (batch, seq))


class Linear(_MatrixModule):
    """y = x W^T (+ bias) (+ residual)."""

    def __init__(self, layers: Layers, rows: int, columns: int, kind: WeightKind, *, bias: bool = False) -> None:
        super().__init__(layers, rows, columns, kind)
        self.bias = layers.vector(rows) if bias else None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """[batch, seq, in_features] -> [batch, seq, out_features]."""
        return self.multiply(x, self.bias, residual)


class Embedding(_MatrixModule):
    """Token embeddings, and the tied projection to logits."""

    def forward(self, ids: Tensor) -> Tensor:
        """int32 [seq] -> float32 [seq, features]."""
        matrix = self.matrix
        kernel = self.layers_.table.embedding(matrix.pieces, matrix.columns, matrix.storage)
        out = Tensor.placeholder((ids.shape[0], matrix.columns), "float32")
        return call_kernel(kernel, "embedding", [ids, *matrix.arguments], out)

    def lm_head(self, x: Tensor) -> Tensor:
        """[batch, seq, features] -> float32 logits [batch, seq, vocab]."""
        return self.multiply(x)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight."""

    def __init__(self, layers: Layers, features: int, eps: float) -> None:
        self.layers_, self.features, self.eps = layers, features, eps
        self.weight = layers.vector(features)

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, seq, features] -> the same."""
        operation, single = operations.RMSNorm(self.features, self.eps), is_single(*x.shape[:2])
        kernel = self.layers_.table.function(operation, single=single)
        return call_kernel(kernel, "rms_norm", [x, self.weight], Tensor.placeholder(x.shape, "float32"))


class SiluMul(nn.Module):
    """silu(gate) * up."""

    def __init__(self, layers: Layers, features: int) -> None:
        self.layers_, self.features = layers, features

    def forward(self, x: Tensor) -> Tensor:
        """float32 [batch, seq, 2 x features] -> [batch, seq, features]."""
        batch, seq, _ = x.shape
        operation, single = operations.SwiGLU(self.features), is_single(batch, seq)
        kernel = self.layers_.table.function(operation, single=single)
        return call_kernel(kernel, "silu_mul", [x], Tensor.placeholder((batch, seq, self.features), "float32"))
