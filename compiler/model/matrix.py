"""Parameters: what the model folder holds, and the kernels that bring it into the form that the target's kernels read.

A parameter's shape is that of the packed form. The stored form and the packing kernel are kept in the parameter's
`attrs` for the library's metadata.
"""
# mypy: disable-error-code="misc,no-any-return"

from tvm import tirx
from tvm.relax.frontend import nn

from ...runtime.artifact import ParamMetadata, Preproc
from ..kernels.cpu.storage import (
    DenseStorage,
    GroupStorage,
    Storage,
    pack_codes,
    pack_rows,
    packed_dtype,
    storage_dtype,
    widen_vector,
)
from ..quantization.scheme import Scheme
from ..target import CompileTarget
from .architecture import Weight

Preprocs = dict[str, tirx.PrimFunc]  # the packing kernels of a library by name; many parameters share one


class Matrix:
    """The stored and packed form of one weight matrix [rows, columns]."""

    def __init__(self, preprocs: Preprocs, scheme: Scheme, target: CompileTarget, weight: Weight) -> None:
        self.rows, self.columns = weight.shape
        self._preprocs = preprocs
        self.parameters: dict[str, nn.Parameter] = {}
        transposed = scheme.is_transposed(weight.kind)
        records = scheme.stored(weight)
        if not scheme.is_quantized(weight.kind):
            (record,) = records
            self.storage: Storage = DenseStorage(packed_dtype(record.dtype, converts_float16=target.converts_float16))
            self.parameters["weight"] = self._tiled(record, "weight", transposed=False)
            return
        dtype = packed_dtype(scheme.model_dtype, converts_float16=target.converts_float16)
        self.storage = GroupStorage(8 if scheme.bits > 4 else 4, scheme.group_size, dtype, scheme.offset)
        words, scales = records
        if scheme.bits == self.storage.bits:
            self.parameters["q_weight"] = self._tiled(words, "words", transposed=transposed)
        else:
            self.parameters["q_weight"] = self._expanded(words, scheme, transposed=transposed)
        self.parameters["q_scale"] = self._tiled(scales, "scales", transposed=transposed)

    def _tiled(self, stored: ParamMetadata, part: str, *, transposed: bool) -> nn.Parameter:
        """A packed tensor of a stored one [rows, units], which is [units, rows] if transposed."""
        shape, dtype = self.storage.parts(self.rows, self.columns)[part]
        source_dtype = storage_dtype(stored.dtype)
        name = f"tile_{'kn' if transposed else 'nk'}_{source_dtype}_{self.rows}x{shape[1]}"
        if name not in self._preprocs:
            kernel = pack_rows(name, self.rows, shape[1], source_dtype, dtype, transposed=transposed)
            self._preprocs[name] = kernel
        return _parameter(stored, name, shape, dtype)

    def _expanded(self, stored: ParamMetadata, scheme: Scheme, *, transposed: bool) -> nn.Parameter:
        """The packed words of stored codes of fewer bits."""
        shape, dtype = self.storage.parts(self.rows, self.columns)["words"]
        groups = -(-self.columns // scheme.group_size)
        name = f"expand_{'kn' if transposed else 'nk'}_{scheme.bits}bit_{self.rows}x{groups}"
        if name not in self._preprocs:
            self._preprocs[name] = pack_codes(
                name, self.rows, groups, bits=scheme.bits, group_size=scheme.group_size, transposed=transposed
            )
        return _parameter(stored, name, shape, dtype)


def stored_vector(preprocs: Preprocs, scheme: Scheme, length: int) -> nn.Parameter:
    """A float32 vector in kernels (norm weight, bias), stored in the scheme's dtype."""
    dtype = scheme.model_dtype
    stored = ParamMetadata(name="", shape=[length], dtype=dtype)
    if dtype == "float32":
        parameter = nn.Parameter((length,), "float32")
        parameter.attrs["stored"] = stored
        return parameter
    name = f"widen_{dtype}_{length}"
    preprocs.setdefault(name, widen_vector(name, length, storage_dtype(dtype)))
    return _parameter(stored, name, (length,), "float32")


def _parameter(stored: ParamMetadata, preproc: str, shape: tuple[int, ...], dtype: str) -> nn.Parameter:
    step = Preproc(func_name=preproc, in_shape=stored.shape, out_shape=list(shape), out_dtype=dtype)
    parameter = nn.Parameter(shape, dtype)
    parameter.attrs["stored"] = stored.model_copy(update={"preprocs": [step]})
    return parameter
