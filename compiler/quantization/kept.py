"""The scheme of a model that keeps the blocks of its GGUF file: every matrix in a format of its own.

Such files mix types, within a layer too. The folder's configuration says which weight has which format, and the hash
that ties a library to its folder covers it:

    "quantization": "q4_k_m",
    "weight_formats": {"model.layers.*.self_attn.qkv_proj.weight": "q4_k",
                       "model.layers.2.self_attn.qkv_proj.weight": "q4_k+q6_k", ...}
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from ...runtime.artifact import ParamMetadata
from ...runtime.errors import ModelFileError
from ..model.architecture import Weight
from ..source.source import BlockSource
from .blocks import FORMATS, BlockFormat, joined_format

DenseDtype = Literal["float16", "bfloat16", "float32"]

_DENSE: dict[str, DenseDtype] = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
_VARIANTS = ("q2_k_s", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m")  # of llama.cpp's mixtures
KEPT_NAMES = (*FORMATS, *_VARIANTS)
_LAYER = re.compile(r"\.\d+\.")


@dataclass(frozen=True)
class BlockScheme:
    """How the weights of a model are stored whose matrices were quantized before.

    `name` is that of the file's mixture. `formats`: of each matrix by name, or by name with `*` in place of the layer's
    number; a key of `blocks.FORMATS`, several joined with `+`, or the dtype of plain numbers. All else is float32.
    """

    name: str
    formats: Mapping[str, str]
    model_dtype: Literal["float16"] = "float16"
    record_format: Literal["raw"] = "raw"

    def format_of(self, weight: Weight) -> BlockFormat | DenseDtype:
        """How a weight is stored. Raises ModelFileError where the formats, which come from a file, do not say."""
        if weight.kind == "plain":
            return "float32"
        name = self.formats.get(weight.name) or self.formats.get(_pattern(weight.name))
        for dtype in _DENSE.values():
            if name == dtype:
                return dtype
        try:
            return joined_format((name or "").split("+"))
        except KeyError:
            known = ", ".join((*FORMATS, *_DENSE.values()))
            raise ModelFileError(f"weight_formats has {name!r:.100} for {weight.name}: expected {known}") from None

    def stored(self, weight: Weight) -> list[ParamMetadata]:
        """The records that one weight becomes at rest: those of its format, or `x.weight` itself."""
        form = self.format_of(weight)
        if not isinstance(form, BlockFormat):
            return [ParamMetadata(name=weight.name, shape=list(weight.shape), dtype=form)]
        stem = weight.name.removesuffix("weight")
        rows, columns = weight.shape
        return [
            ParamMetadata(name=f"{stem}{name}", shape=list(shape), dtype=dtype)
            for name, (shape, dtype) in form.records(rows, columns).items()
        ]


def kept_scheme(source: BlockSource, weights: Sequence[Weight]) -> BlockScheme:
    """The scheme that keeps the blocks of a source, for an architecture's weights."""
    formats = {weight.name: _format_name(source, weight) for weight in weights if weight.kind != "plain"}
    return BlockScheme(source.file_type, _with_patterns(formats))


def _format_name(source: BlockSource, weight: Weight) -> str:
    """Dense parts of one type stay as they are; what no block format holds becomes float32, which is exact."""
    types = {source.block_types.get(name, "f32") for name in weight.sources}
    if weight.transform is None and types <= set(FORMATS):
        return joined_format(sorted(types)).name
    return _DENSE[types.pop()] if len(types) == 1 and types <= set(_DENSE) else "float32"


def _pattern(name: str) -> str:
    return _LAYER.sub(".*.", name)


def _with_patterns(formats: Mapping[str, str]) -> dict[str, str]:
    """The same table, where the most common format of each matrix over the layers stands once, under its pattern."""
    by_pattern: dict[str, Counter[str]] = {}
    for name, form in formats.items():
        by_pattern.setdefault(_pattern(name), Counter())[form] += 1
    common = {pattern: counts.most_common(1)[0][0] for pattern, counts in by_pattern.items()}
    return common | {name: form for name, form in formats.items() if form != common[_pattern(name)]}
