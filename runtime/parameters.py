"""The parameters of a model in memory, in the layout that the kernels read: packed before, or packed now."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from . import derived, ffi
from .artifact import ParamMetadata, TensorRecord
from .devices.drivers import largest_buffer
from .errors import EngineError, ModelFileError
from .ffi_tensor import Tensor, copy, empty
from .ffi_tensor import tensor as tensor_at
from .library import MODEL_FOLDER, Library
from .tvm_runtime import Arena, nbytes_of, numpy_dtype, one_line, tensor

if TYPE_CHECKING:
    import numpy as np

Progress = Callable[[int, int], None]  # parameters done, parameters in all


class TensorSource(Protocol):
    """Where stored parameters come from: the folder's weight shards."""

    @property
    def records(self) -> Mapping[str, TensorRecord]: ...

    def read(self, name: str) -> "np.ndarray[Any, Any]": ...
    def read_into(self, name: str, out: "np.ndarray[Any, Any]") -> None: ...


def load_parameters(
    library: Library, folder: Path, progress: Progress | None = None, reading: derived.Reading | None = None
) -> ffi.Array:
    """The array of tensors that the library's functions take as their last argument, in the metadata's order.

    They are those of `reading`, what `derived.start_reading` has begun, where it is what this library needs. Else the
    folder's weights are packed, and kept for the next time. Raises ModelFileError when the folder lacks a parameter
    or has it in another shape or type, EngineError when a layout function fails.
    """
    params = library.metadata.params
    forms = [_forms(param)[-1] for param in params]
    nbytes = sum(Arena.room(nbytes_of(*form)) for form in forms)
    arena = None if reading is None else reading.finish(library.path, library.fingerprint, nbytes)
    if arena is None:
        from .weights import WeightStore  # checks and converts with numpy

        store = WeightStore(folder)
        files = None
        if any(param.preprocs for param in params):
            files = derived.inputs(folder, library.path, store.index, store.shards)
        arena, tensors = pack_parameters(library, store, folder, progress)
        if files is not None:
            derived.write(arena, nbytes, library.fingerprint, files, folder, library.path)
    else:
        tensors = [arena.tensor(*form) for form in forms]
        if progress is not None:
            progress(len(params), len(params))
    tensors = [piece for param, whole in zip(params, tensors, strict=True) for piece in cut(param, whole)]
    if not library.device.is_host:
        tensors = _moved(tensors, library.device)
    return ffi.array(tensors)


def cut(param: ParamMetadata, whole: Tensor) -> list[Tensor]:
    """The pieces of a parameter, over the same memory. Raises ModelFileError where they are not all of it."""
    if not param.pieces:
        return [whole]
    length, *others = whole.shape
    if min(param.pieces) < 1 or sum(param.pieces) != length:
        raise ModelFileError(f"pieces of {param.pieces} do not make parameter {param.name!r}, which has {length}")
    row = whole.nbytes // length
    starts = accumulate(param.pieces[:-1], initial=0)
    return [
        tensor_at(whole.address + row * start, whole.dtype, (count, *others), whole)
        for start, count in zip(starts, param.pieces, strict=True)
    ]


def _moved(tensors: list[Tensor], device: ffi.Device) -> list[Tensor]:
    """The parameters in a device's memory. Raises EngineError when it has too little, or takes no tensor as large."""
    wanted, largest = max((one.nbytes for one in tensors), default=0), largest_buffer(device)
    if wanted > largest:
        advice = (
            f'run `mlc compile {MODEL_FOLDER} --device \'{{"kind": "{device.kind}", "largest_buffer": {largest}}}\'`'
        )
        raise EngineError(f"device {device} takes tensors of at most {largest} bytes, a weight has {wanted}: {advice}")
    moved = []
    for parameter in tensors:
        try:
            moved.append(empty(parameter.shape, parameter.dtype, device))
            copy(parameter, moved[-1])
        except ffi.FFIError as error:
            total, done = (sum(one.nbytes for one in some) >> 20 for some in (tensors, moved))
            raise EngineError(
                f"the weights of {total} MiB do not fit on device {device}: after {done} MiB: {one_line(error)}"
            ) from None
    return moved


def pack_parameters(
    library: Library, source: TensorSource, folder: Path, progress: Progress | None = None
) -> tuple[Arena, list[Tensor]]:
    """Read stored parameters and run their layout functions; the packed ones lie one after another in the arena.

    Only one stored parameter is in memory beside its packed form. Raises as `load_parameters`.
    """
    params = library.metadata.params
    for param in params:
        _check_stored(param, source, folder)
    arena = Arena(sum(Arena.room(nbytes_of(*_forms(param)[-1])) for param in params))
    tensors = []
    for index, param in enumerate(params):
        tensors.append(_pack(library, source, param, arena))
        if progress is not None:
            progress(index + 1, len(params))
    return arena, tensors


def _forms(param: ParamMetadata) -> list[tuple[Sequence[int], str]]:
    """Shape and type of a parameter as stored and after each of its layout functions."""
    return [(param.shape, param.dtype), *((step.out_shape, step.out_dtype) for step in param.preprocs)]


def _check_stored(param: ParamMetadata, source: TensorSource, folder: Path) -> None:
    record = source.records.get(param.name)
    if record is None:
        raise ModelFileError(f"{folder} has no parameter {param.name!r}, which the library needs: compile them again")
    if (record.shape, record.dtype) != (param.shape, param.dtype):
        raise ModelFileError(
            f"{folder}: parameter {param.name!r} is {record.dtype} {record.shape}, "
            f"the library needs {param.dtype} {param.shape}: compile them again"
        )


def _pack(library: Library, source: TensorSource, param: ParamMetadata, arena: Arena) -> Tensor:
    """One parameter, its last form in `arena`; the forms before it live only as long as they are read."""
    forms = _forms(param)
    if not param.preprocs:
        array = arena.array(param.shape, numpy_dtype(param.dtype))
        source.read_into(param.name, array)
        return tensor(array, param.dtype)
    current = tensor(source.read(param.name))  # types that numpy lacks come to layout functions as their bits
    for step, form in zip(param.preprocs, forms[1:], strict=True):
        home = arena if form is forms[-1] else Arena(nbytes_of(*form))
        packed = home.tensor(*form)
        try:
            library[step.func_name](current, packed)
        except Exception as error:
            raise EngineError(f"{step.func_name} failed on parameter {param.name!r}: {one_line(error)}") from None
        current = packed
    return current
