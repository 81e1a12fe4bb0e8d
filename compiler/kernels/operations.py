"""What kernels compute, whatever the device: descriptions by which a table finds a kernel."""
# mypy: ignore-errors

from collections.abc import Iterator
from dataclasses import dataclass, replace

from .builder import Kernel
from .storage import TILE, DenseStorage, PackedWeight, Storage, declare_pieces, tiles


@dataclass(frozen=True)
class Matmul:
    """One multiplication: x [batch, seq, in_features] -> y [batch, seq, out_features], in float32.

    `norm_eps`: x passes RMS norm first, whose weight is an argument. `swiglu`: the matrix is [gate | up], and
    y = silu(gate x) * (up x) has half of its rows.
    """

    out_features: int
    in_features: int
    storage: Storage
    bias: bool = False
    residual: bool = False
    norm_eps: float | None = None
    swiglu: bool = False
    pieces: tuple[int, ...] = ()  # rows of the matrix in each of the tensors that it consists of; empty: one has all

    @property
    def padded_columns(self) -> int:
        """in_features rounded up to whole groups; the codes there meet zeros of x."""
        if isinstance(self.storage, DenseStorage):
            return self.in_features
        return self.storage.groups(self.in_features) * self.storage.group_size

    @property
    def result_features(self) -> int:
        """Columns of y."""
        return self.out_features // 2 if self.swiglu else self.out_features

    @property
    def tiles_in_set(self) -> int:
        """Tiles that are computed together: two neighbours, or the gate's and the up's of the same outputs."""
        return 2

    @property
    def tile_sets(self) -> int:
        return self.result_features // TILE if self.swiglu else tiles(self.out_features) // self.tiles_in_set

    def tile(self, tile_set, j: int):
        """The number of tile j of a set."""
        return tile_set + j * (self.result_features // TILE) if self.swiglu else tile_set * self.tiles_in_set + j

    def declare(self, k: Kernel, batch, seq) -> "Arguments":
        """The arguments in their order."""
        x = k.input("x", (batch, seq, self.in_features), "float32")
        norm = k.input("norm", (self.in_features,), "float32") if self.norm_eps is not None else None
        weights = declare_pieces(k, self.storage, self.pieces or (self.out_features,), self.in_features)
        bias = k.input("bias", (self.out_features,), "float32") if self.bias else None
        residual = k.input("residual", (batch, seq, self.out_features), "float32") if self.residual else None
        y = k.input("y", (batch, seq, self.result_features), "float32")
        return Arguments(x, norm, tuple(weights), bias, residual, y)

    def split(self, arguments: "Arguments") -> "Iterator[tuple[Matmul, Arguments]]":
        """A multiplication by each piece of the matrix, which gives some columns of y."""
        if not self.pieces:
            yield self, arguments
            return
        first = 0
        for rows, weight in zip(self.pieces, arguments.weights, strict=True):
            others = (arguments.bias, arguments.residual, arguments.y)
            others = [None if tensor is None else Columns(tensor, first) for tensor in others]
            piece = replace(self, out_features=rows, pieces=())
            yield piece, Arguments(arguments.x, arguments.norm, (weight,), *others)
            first += rows


@dataclass(frozen=True)
class Arguments:
    """The buffers of a multiplication; None stands for those that it does not take."""

    x: object
    norm: object | None
    weights: tuple[PackedWeight, ...]
    bias: object | None
    residual: object | None
    y: object

    @property
    def weight(self) -> PackedWeight:
        """The matrix, where it is in one piece."""
        (weight,) = self.weights
        return weight


@dataclass(frozen=True)
class Columns:
    """The columns of a tensor from one of them on."""

    tensor: object
    first: int

    def __getitem__(self, column):
        return self.tensor[column + self.first]


@dataclass(frozen=True)
class RMSNorm:
    """x [batch, seq, features] -> x / sqrt(mean(x^2) + eps) * weight."""

    features: int
    eps: float


@dataclass(frozen=True)
class SwiGLU:
    """[batch, seq, 2 x features] (gate | up) -> silu(gate) * up."""

    features: int


Operation = Matmul | RMSNorm | SwiGLU


@dataclass(frozen=True)
class Specification:
    """What a kernel computes. `single`: for exactly one row of x, where others take any number."""

    operation: Operation
    single: bool


SETTINGS = ("scale", "top_k", "top_p", "min_p", "least", "count")  # of each row that a token is chosen from
