"""Source tensors to quantized shards, one tensor at a time: peak memory stays near the largest tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..runtime.errors import ModelFileError
from .quantization.blocks import BlockFormat, take_apart
from .quantization.group import quantize
from .quantization.kept import BlockScheme
from .quantization.rows import BLOCK_ELEMENTS, for_blocks, numpy_dtype
from .shards import ShardWriter
from .source.source import BlockSource

if TYPE_CHECKING:
    from .model.architecture import Weight
    from .quantization.choice import AnyScheme
    from .quantization.scheme import Scheme
    from .source.source import Source

Array = npt.NDArray[Any]
Progress = Callable[[int, int, str], None]

_LARGEST_BF16 = np.array([0x7F7F0000], np.uint32).view(np.float32)[0]


@dataclass(frozen=True)
class WeightSummary:
    """What a model's weights amount to. `bytes` is their size in memory, `file_bytes` that of the shards on disk."""

    parameters: int
    bytes: int
    file_bytes: int
    records: int

    @property
    def bits_per_parameter(self) -> float:
        return self.bytes * 8.0 / self.parameters


def plan_weights(weights: list[Weight], scheme: AnyScheme) -> WeightSummary:
    """The summary that `convert_weights` will return, from shapes alone."""
    stored = [record for weight in weights for record in scheme.stored(weight)]
    sizes = [(math.prod(record.shape), record.dtype) for record in stored]
    return WeightSummary(
        parameters=sum(math.prod(weight.shape) for weight in weights),
        bytes=sum(count * numpy_dtype(dtype).itemsize for count, dtype in sizes),
        file_bytes=sum(count * _file_itemsize(dtype, scheme) for count, dtype in sizes),
        records=len(stored),
    )


def _file_itemsize(dtype: str, scheme: AnyScheme) -> int:
    narrowed = dtype == "float32" and scheme.record_format == "f32-to-bf16"
    return 2 if narrowed else numpy_dtype(dtype).itemsize


def convert_weights(
    source: Source, weights: list[Weight], scheme: AnyScheme, folder: Path, *, progress: Progress | None = None
) -> WeightSummary:
    """Write `weights` in `scheme` to `folder`; what was there before is replaced only when all is written.

    `progress(done, total, name)` counts bytes of the shards. Raises ModelFileError that names the tensor when one is
    missing, has the wrong shape, is not finite or belongs to nothing; EngineError when the folder cannot be written.
    """
    order = _conversion_order(source, weights)
    summary = plan_weights(weights, scheme)
    done = 0
    with ShardWriter(folder, summary.file_bytes, record_format=scheme.record_format) as writer:
        for weight in order:
            for record, data in zip(scheme.stored(weight), _at_rest(source, weight, scheme), strict=True):
                writer.add(record, data)
                done += data.nbytes
            if progress is not None:
                progress(done, summary.file_bytes, weight.name)
        # MLC's fields: the number of records and, as a float, their bytes before float32 is stored as bfloat16.
        writer.finish(
            {
                "ParamSize": summary.records,
                "ParamBytes": float(summary.bytes),
                "BitsPerParam": summary.bits_per_parameter,
            }
        )
    return summary


def _conversion_order(source: Source, weights: list[Weight]) -> list[Weight]:
    """The weights in MLC's order: each where the first of its source tensors stands in the source's files.

    Everything that names and shapes can tell is checked here, before any tensor is read.
    """
    users: dict[str, list[Weight]] = {}
    for weight in weights:
        _check_shapes(source, weight)
        for name in weight.sources:
            users.setdefault(name, []).append(weight)
    unused = [name for name in source.tensors if name not in users and not _is_derived(name)]
    if unused:
        more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
        raise ModelFileError(
            f"{source.name}: the model has no use for {', '.join(unused[:3])}{more}: "
            "its architecture is not the one that config.json names, or is not fully supported"
        )
    ordered = {weight.name: weight for name in source.tensors for weight in users.get(name, [])}
    return list(ordered.values())


def _is_derived(name: str) -> bool:
    """Tensors that hold nothing of their own: tables of RoPE, and the head of a model whose embedding serves as it."""
    return name.endswith("rotary_emb.inv_freq") or name == "lm_head.weight"


def _check_shapes(source: Source, weight: Weight) -> None:
    shapes = []
    for name in weight.sources:
        if name not in source.tensors:
            raise ModelFileError(
                f"{source.name}: tensor {name} is missing: {weight.name} is made of it: the files are "
                "incomplete, or belong to another configuration"
            )
        shapes.append(tuple(source.tensors[name].shape))
    if weight.transform is not None:
        return  # the shape is known once it has run
    joined = (sum(shape[0] for shape in shapes if shape), *shapes[0][1:])
    if any(shape[1:] != joined[1:] or not shape for shape in shapes) or joined != weight.shape:
        given = ", ".join(f"{name} {list(shape)}" for name, shape in zip(weight.sources, shapes, strict=True))
        raise ModelFileError(
            f"{source.name}: wrong shape: {given}: expected {list(weight.shape)} for {weight.name}: "
            "the files belong to another configuration"
        )


def _at_rest(source: Source, weight: Weight, scheme: AnyScheme) -> Iterator[Array]:
    """The arrays that are written for one weight, in the order of `scheme.stored`."""
    axis = 0
    if isinstance(scheme, BlockScheme):
        parts = list(_kept(source, weight, scheme))
    else:
        named = ((f"{source.name}: tensor {name}", part) for name, part in _parts(source, weight))
        parts = [_encode(name, part, weight, scheme) for name, part in named]
        axis = 1 if scheme.is_transposed(weight.kind) else 0  # codes and scales [inputs, outputs]: outputs are joined
    for pieces in zip(*parts, strict=True):
        yield pieces[0] if len(pieces) == 1 else np.concatenate(pieces, axis=axis)


def _kept(source: Source, weight: Weight, scheme: BlockScheme) -> Iterator[tuple[Array, ...]]:
    """The source tensors of a weight, one by one: their blocks taken apart, or the values of plain numbers."""
    form = scheme.format_of(weight)
    if not isinstance(form, BlockFormat):
        for name, part in _parts(source, weight):
            yield (_plain(f"{source.name}: tensor {name}", part, form, narrowed=False),)
        return
    assert isinstance(source, BlockSource)
    for name in weight.sources:
        tensors = take_apart(source.read_blocks(name), source.block_types[name], form)
        if not all(np.isfinite(tensor).all() for tensor in tensors if tensor.dtype.kind == "f"):
            raise _damaged(f"{source.name}: tensor {name}")
        yield tensors


def _parts(source: Source, weight: Weight) -> Iterator[tuple[str, Array]]:
    """The source tensors of a weight, one by one; a transform needs them together and works in float32."""
    if weight.transform is None:
        for name in weight.sources:
            yield name, _read(source, name)
        return
    whole = np.concatenate([_read(source, name).astype(np.float32) for name in weight.sources], axis=0)
    result = weight.transform(whole)
    if result.shape != weight.shape:
        raise ModelFileError(
            f"{source.name}: wrong shape: {weight.sources[0]} gives {list(result.shape)}: "
            f"expected {list(weight.shape)} for {weight.name}"
        )
    yield weight.sources[0], result


def _read(source: Source, name: str) -> Array:
    tensor = source.read(name)
    if tensor.shape != tuple(source.tensors[name].shape):
        raise ModelFileError(
            f"{source.name}: tensor {name} has shape {list(tensor.shape)}: expected {list(source.tensors[name].shape)}"
        )
    return tensor


def _encode(name: str, tensor: Array, weight: Weight, scheme: Scheme) -> tuple[Array, ...]:
    """One source tensor as it is stored: codes and scales, or the values in the model's dtype."""
    if not scheme.is_quantized(weight.kind):
        narrowed = scheme.model_dtype == "float32" and scheme.record_format == "f32-to-bf16"
        return (_plain(name, tensor, scheme.model_dtype, narrowed=narrowed),)
    q_weight, q_scale = quantize(tensor, scheme, transposed=scheme.is_transposed(weight.kind))
    if not np.isfinite(q_scale).all():  # the scale of a group is finite where all of its weights are
        raise _not_finite(name, tensor, scheme.model_dtype)
    return q_weight, bfloat16_bits(q_scale) if q_scale.dtype == np.float32 else q_scale


def _plain(name: str, tensor: Array, dtype: str, *, narrowed: bool) -> Array:
    values = tensor.reshape(-1)
    out = np.empty(values.shape, np.uint16 if narrowed else numpy_dtype(dtype))

    def work(start: int, stop: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are reported below
            block = values[start:stop].astype(numpy_dtype(dtype), copy=False)
            finite = np.isfinite(block).all()
        if not finite:
            raise _not_finite(name, tensor, dtype)
        out[start:stop] = bfloat16_bits(block) if narrowed else block

    for_blocks(values.size, BLOCK_ELEMENTS, work)
    return out.reshape(tensor.shape)


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Float32 as the format stores it: rounded to bfloat16, half to even; beyond bfloat16's range cut off, so that
    finite stays finite."""
    bits = values.view(np.uint32)
    rounding = np.where(np.abs(values) < _LARGEST_BF16, ((bits >> 16) & 1) + np.uint32(0x7FFF), np.uint32(0))
    upper: npt.NDArray[np.uint16] = ((bits + rounding) >> 16).astype(np.uint16)
    return upper


def _not_finite(name: str, tensor: Array, dtype: str) -> ModelFileError:
    with np.errstate(invalid="ignore"):
        finite = np.isfinite(tensor).all()
    if finite:
        advice = "use q4f32_1, or q4bf16_1 where the model was trained in bfloat16"
        return ModelFileError(f"{name} has values beyond the range of {dtype}: {advice}")
    return _damaged(name)


def _damaged(name: str) -> ModelFileError:
    return ModelFileError(f"{name} has NaN or infinite values: its file is damaged, download it again")
