"""The table of quantization schemes: MLC's names, and what each one stores for a weight.

MLC's `GroupQuantize` has 8-bit codes but its table no scheme of them: `q8f16_1` is named by the same rule.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

from ...runtime.artifact import ParamMetadata
from ...runtime.errors import UsageError
from ..model.architecture import Weight, WeightKind

ModelDtype = Literal["float16", "bfloat16", "float32"]


@dataclass(frozen=True)
class Scheme:
    """How the weights of a model are stored.

    kind "none": every weight in `model_dtype`. kind "group": linear, embedding and head weights as integer codes, with
    one scale per `group_size` inputs (`group.py`); everything else in `model_dtype`.
    `transposed`: codes and scales of linear and head weights are stored input-major (MLC's KN layout, the `_0` family).
    """

    name: str
    kind: Literal["none", "group"]
    model_dtype: ModelDtype
    bits: int = 16
    group_size: int = 0
    transposed: bool = False
    quantize_embedding: bool = True
    quantize_head: bool = True

    @property
    def codes_per_word(self) -> int:
        """Codes in one uint32; the bits left over (two, for 3-bit codes) are zero."""
        return 32 // self.bits

    @property
    def words_per_group(self) -> int:
        return self.group_size // self.codes_per_word

    @property
    def offset(self) -> int:
        """What is subtracted from a code before scaling: codes are 0..2*offset, weights -offset..offset scales."""
        return (1 << (self.bits - 1)) - 1

    @property
    def record_format(self) -> str:
        """`format` of the records of a folder. MLC's writer stores float32 tensors as bfloat16, whatever the scheme;
        a scheme that is chosen for its precision keeps them whole, in the other format that MLC reads."""
        return "raw" if self.kind == "none" and self.model_dtype == "float32" else "f32-to-bf16"

    def is_quantized(self, kind: WeightKind) -> bool:
        """Whether weights of this kind become codes and scales."""
        if self.kind == "none" or kind == "plain":
            return False
        return {"linear": True, "embedding": self.quantize_embedding, "head": self.quantize_head}[kind]

    def is_transposed(self, kind: WeightKind) -> bool:
        """Whether codes and scales of this kind are stored input-major. Embeddings never are: rows are looked up."""
        return self.transposed and self.is_quantized(kind) and kind != "embedding"

    def code_shapes(self, rows: int, columns: int, *, transposed: bool) -> tuple[tuple[int, int], tuple[int, int]]:
        """Shapes of q_weight (uint32) and q_scale of a weight of shape [rows, columns], columns being the inputs."""
        groups = -(-columns // self.group_size)
        words = groups * self.words_per_group
        return ((words, rows), (groups, rows)) if transposed else ((rows, words), (rows, groups))

    def stored(self, weight: Weight) -> list[ParamMetadata]:
        """The records that one weight becomes at rest: `x.q_weight` and `x.q_scale`, or `x.weight` itself."""
        if not self.is_quantized(weight.kind):
            return [ParamMetadata(name=weight.name, shape=list(weight.shape), dtype=self.model_dtype)]
        stem = weight.name.removesuffix("weight")
        rows, columns = weight.shape
        codes, scales = self.code_shapes(rows, columns, transposed=self.is_transposed(weight.kind))
        return [
            ParamMetadata(name=f"{stem}q_weight", shape=list(codes), dtype="uint32"),
            ParamMetadata(name=f"{stem}q_scale", shape=list(scales), dtype=self.model_dtype),
        ]


def _table(schemes: Iterable[Scheme]) -> dict[str, Scheme]:
    return {scheme.name: scheme for scheme in schemes}


SCHEMES = _table(
    [
        Scheme("q0f16", "none", "float16"),
        Scheme("q0bf16", "none", "bfloat16"),
        Scheme("q0f32", "none", "float32", bits=32),
        Scheme("q3f16_0", "group", "float16", bits=3, group_size=40, transposed=True),
        Scheme("q3f16_1", "group", "float16", bits=3, group_size=40),
        Scheme("q4f16_0", "group", "float16", bits=4, group_size=32, transposed=True),
        Scheme("q4f16_1", "group", "float16", bits=4, group_size=32),
        Scheme("q4f16_2", "group", "float16", bits=4, group_size=32, quantize_embedding=False, quantize_head=False),
        Scheme("q4bf16_0", "group", "bfloat16", bits=4, group_size=32, transposed=True),
        Scheme("q4bf16_1", "group", "bfloat16", bits=4, group_size=32),
        Scheme("q4f32_1", "group", "float32", bits=4, group_size=32),
        Scheme("q8f16_1", "group", "float16", bits=8, group_size=32),
    ]
)


def get_scheme(name: str) -> Scheme:
    """The scheme of that name. Raises UsageError that lists the names, the nearest one first."""
    scheme = SCHEMES.get(name)
    if scheme is None:
        near = get_close_matches(name, SCHEMES, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UsageError(f"unknown quantization {name!r}: {hint}known are {', '.join(SCHEMES)}")
    return scheme
