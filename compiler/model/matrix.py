"""Parameters: what the model folder holds, and the kernels that bring it into the form that the target's kernels read.

A parameter's shape is that of the packed form. The stored form and the packing kernel are kept in the parameter's
`attrs` for the library's metadata.
"""
# mypy: disable-error-code="misc,no-any-return"

from tvm import tirx
from tvm.relax.frontend import nn

from ...runtime.artifact import ParamMetadata, Preproc
from ..kernels.storage import (
    DenseStorage,
    GroupStorage,
    Storage,
    pack_codes,
    pack_rows,
    packed_dtype,
    rows_of_pieces,
    storage_dtype,
    tiles,
    widen_vector,
)
from ..quantization.blocks import BlockFormat
from ..quantization.choice import AnyScheme
from ..quantization.scheme import Scheme
from ..target import CompileTarget
from ..target.target import NO_LIMIT
from .architecture import Weight

Preprocs = dict[str, tirx.PrimFunc]  # the packing kernels of a library by name; many parameters share one


# the last part of a record's name -> what kernels call it, in the order of `Storage.parts`
_PARTS = {
    "weight": "weight",
    "q_weight": "words",
    "q_scale": "scales",
    "q_min": "minima",
    "q_super_scale": "super_scales",
    "q_super_min": "super_minima",
}


class Matrix:
    """The stored and packed form of one weight matrix [rows, columns].

    Where a device has no tensors as large as the packed form, that is cut into `pieces` of so many rows. `parameters`
    are by the last part of the stored name, with "_1", "_2", ... for pieces after the first.
    """

    def __init__(self, preprocs: Preprocs, scheme: AnyScheme, target: CompileTarget, weight: Weight) -> None:
        self.rows, self.columns = weight.shape
        self._preprocs = preprocs
        self.storage = _storage(scheme, target, weight)
        largest = NO_LIMIT if target.gpu is None else target.gpu.largest_buffer
        self.pieces = rows_of_pieces(self.storage, self.rows, self.columns, largest)
        transposed = isinstance(scheme, Scheme) and scheme.is_transposed(weight.kind)
        stem = weight.name.removesuffix("weight")
        self.parameters: dict[str, nn.Parameter] = {}
        stored = {record.name.removeprefix(stem): record for record in scheme.stored(weight)}
        for name, record in stored.items():
            if name == "q_weight" and isinstance(scheme, Scheme) and scheme.bits < 4:
                made = self._expanded(record, scheme, transposed=transposed)
            else:
                made = self._tiled(record, _PARTS[name], transposed=transposed)
            self.parameters |= zip(_numbered(name, len(made)), made, strict=True)
        self._names = list(stored)

    @property
    def arguments(self) -> list[nn.Parameter]:
        """The parameters in the order of kernels' arguments: all of the first piece, of the second, and so on."""
        columns = [_numbered(name, len(self.pieces)) for name in self._names]
        return [self.parameters[name] for names in zip(*columns, strict=True) for name in names]

    def _tiled(self, stored: ParamMetadata, part: str, *, transposed: bool) -> list[nn.Parameter]:
        """The pieces of a packed tensor of a stored one [rows, units], which is [units, rows] if transposed."""
        shape, dtype = self.storage.parts(self.rows, self.columns)[part]
        source_dtype = storage_dtype(stored.dtype)
        name = f"tile_{'kn' if transposed else 'nk'}_{source_dtype}_{self.rows}x{shape[1]}"
        if name not in self._preprocs:
            kernel = pack_rows(name, self.rows, shape[1], source_dtype, dtype, transposed=transposed)
            self._preprocs[name] = kernel
        return self._cut(_parameter(stored, name, shape, dtype))

    def _expanded(self, stored: ParamMetadata, scheme: Scheme, *, transposed: bool) -> list[nn.Parameter]:
        """The pieces of the packed words of stored codes of fewer bits."""
        shape, dtype = self.storage.parts(self.rows, self.columns)["words"]
        groups = -(-self.columns // scheme.group_size)
        name = f"expand_{'kn' if transposed else 'nk'}_{scheme.bits}bit_{self.rows}x{groups}"
        if name not in self._preprocs:
            self._preprocs[name] = pack_codes(
                name, self.rows, groups, bits=scheme.bits, group_size=scheme.group_size, transposed=transposed
            )
        return self._cut(_parameter(stored, name, shape, dtype))

    def _cut(self, whole: nn.Parameter) -> list[nn.Parameter]:
        """The pieces of a packed tensor; the first one says how it is stored and cut."""
        if len(self.pieces) == 1:
            return [whole]
        counts = [tiles(rows) for rows in self.pieces]
        cut = [nn.Parameter((count, *whole.shape[1:]), whole.dtype) for count in counts]
        cut[0].attrs["stored"] = whole.attrs["stored"].model_copy(update={"pieces": counts})
        return cut


def _numbered(name: str, count: int) -> list[str]:
    return [name, *(f"{name}_{i}" for i in range(1, count))]


def _storage(scheme: AnyScheme, target: CompileTarget, weight: Weight) -> Storage:
    """How kernels read a weight matrix that a scheme has stored."""

    def packed(dtype: str) -> str:
        return packed_dtype(dtype, converts_float16=target.converts_float16)

    if isinstance(scheme, Scheme):
        if not scheme.is_quantized(weight.kind):
            return DenseStorage(packed(scheme.model_dtype))
        return GroupStorage(max(4, scheme.bits), scheme.group_size, packed(scheme.model_dtype), scheme.offset)
    form = scheme.format_of(weight)
    if not isinstance(form, BlockFormat):
        return DenseStorage(packed(form))
    super_dtype = packed("float16") if form.super_size else ""
    return GroupStorage(form.bits, form.group_size, packed(form.scale_dtype), form.zero_point, form.minimum,
                        form.super_size, super_dtype)  # fmt: skip


def stored_vector(preprocs: Preprocs, scheme: AnyScheme, length: int) -> nn.Parameter:
    """A float32 vector in kernels (norm weight, bias), stored as the scheme stores such weights."""
    (stored,) = scheme.stored(Weight("", (), (length,)))
    dtype = stored.dtype
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
