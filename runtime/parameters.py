"""The parameters of a model in memory: read from the folder, brought into the layout that the kernels read."""

from collections.abc import Callable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .artifact import ParamMetadata, TensorRecord
from .errors import EngineError, ModelFileError
from .library import Library
from .tvm_runtime import Arena, numpy_dtype, one_line, tensor, tvm_ffi

Progress = Callable[[int, int], None]  # parameters done, parameters in all


class TensorSource(Protocol):
    """Where stored parameters come from: the folder's weight shards."""

    @property
    def records(self) -> Mapping[str, TensorRecord]: ...

    def read(self, name: str) -> np.ndarray[Any, Any]: ...
    def read_into(self, name: str, out: np.ndarray[Any, Any]) -> None: ...


def load_parameters(library: Library, source: TensorSource, folder: Path, progress: Progress | None = None) -> Any:
    """The array of tensors that the library's functions take as their last argument, in the metadata's order.

    Only one stored parameter is in memory beside its packed form. Raises ModelFileError when the folder lacks a
    parameter or has it in another shape or type, EngineError when a layout function fails.
    """
    params = library.metadata.params
    for param in params:
        _check_stored(param, source, folder)
    arena = Arena(sum(Arena.room(_nbytes(*form)) for param in params for form in _forms(param)[-1:]))
    tensors = []
    for index, param in enumerate(params):
        tensors.append(_load(library, source, param, arena))
        if progress is not None:
            progress(index + 1, len(params))
    return tvm_ffi().convert(tensors)


def _forms(param: ParamMetadata) -> list[tuple[Sequence[int], str]]:
    """Shape and type of a parameter as stored and after each of its layout functions."""
    return [(param.shape, param.dtype), *((step.out_shape, step.out_dtype) for step in param.preprocs)]


def _nbytes(shape: Sequence[int], dtype: str) -> int:
    return prod(shape) * numpy_dtype(dtype).itemsize


def _check_stored(param: ParamMetadata, source: TensorSource, folder: Path) -> None:
    record = source.records.get(param.name)
    if record is None:
        raise ModelFileError(f"{folder} has no parameter {param.name!r}, which the library needs: compile them again")
    if (record.shape, record.dtype) != (param.shape, param.dtype):
        raise ModelFileError(
            f"{folder}: parameter {param.name!r} is {record.dtype} {record.shape}, "
            f"the library needs {param.dtype} {param.shape}: compile them again"
        )


def _load(library: Library, source: TensorSource, param: ParamMetadata, arena: Arena) -> Any:
    """One parameter, its last form in `arena`; the forms before it live only as long as they are read."""
    forms = _forms(param)
    if not param.preprocs:
        array = arena.array(param.shape, numpy_dtype(param.dtype))
        source.read_into(param.name, array)
        return tensor(array, param.dtype)
    current = tensor(source.read(param.name))  # types that numpy lacks come to layout functions as their bits
    for step, form in zip(param.preprocs, forms[1:], strict=True):
        home = arena if form is forms[-1] else Arena(_nbytes(*form))
        packed = tensor(home.array(form[0], numpy_dtype(form[1])), form[1])
        try:
            library[step.func_name](current, packed)
        except Exception as error:
            raise EngineError(f"{step.func_name} failed on parameter {param.name!r}: {one_line(error)}") from None
        current = packed
    return current
