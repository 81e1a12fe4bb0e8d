"""From (operation, storage of the weights) to a PrimFunc: what the tables of all devices have in common."""
# mypy: disable-error-code="misc,no-any-return"

from abc import ABC, abstractmethod
from typing import Any

from tvm import tirx

from ..target.target import CompileTarget
from .operations import Matmul, Operation, Specification
from .storage import Storage

_SPECIFICATION = "mlc.specification"  # attribute of a PrimFunc: which entry of the table it is


class KernelTable(ABC):
    """Makes the kernels of one library, each once, and knows what each of them computes."""

    def __init__(self, target: CompileTarget, activation_bits: int = 16) -> None:
        """`activation_bits`: what products may round their inputs to; 32 is float32 arithmetic."""
        self.target, self.activation_bits = target, activation_bits
        self._specifications: list[Specification] = []
        self._functions: dict[Specification, tirx.PrimFunc] = {}
        self._others: dict[object, tirx.PrimFunc] = {}

    def function(self, operation: Operation, *, single: bool) -> tirx.PrimFunc:
        """The kernel of an operation."""
        specification = Specification(operation, single)
        if specification not in self._functions:
            function = self._make(operation, single).with_attr(_SPECIFICATION, len(self._specifications))
            self._specifications.append(specification)
            self._functions[specification] = function
        return self._functions[specification]

    def specification(self, function: tirx.PrimFunc) -> Specification | None:
        """What a PrimFunc computes, if it came from this table."""
        number = function.attrs.get(_SPECIFICATION) if function.attrs else None
        return None if number is None else self._specifications[int(number)]

    def name(self, operation: Operation, *, single: bool) -> str:
        """The name of a kernel in dumps and profiles."""
        rows = "gemv" if single else "gemm"
        if isinstance(operation, Matmul):
            parts = ["norm"] * (operation.norm_eps is not None) + [
                f"matmul_{operation.out_features}x{operation.in_features}"
            ]
            parts += ["swiglu"] * operation.swiglu + ["add"] * operation.residual
            return "_".join([*parts, rows])
        return f"{type(operation).__name__.lower()}_{operation.features}"

    def embedding(self, pieces: tuple[int, ...], columns: int, storage: Storage) -> tirx.PrimFunc:
        """The kernel that looks token ids up: int32 [seq], the packed table -> float32 [seq, columns]. `pieces`: rows
        of the table in each of the tensors that it consists of."""
        return self._once(("embedding", pieces, columns, storage), self._embedding, pieces, columns, storage)

    def last_row(self, columns: int) -> tirx.PrimFunc:
        """The kernel x [1, seq, columns] -> its last row [1, 1, columns], float32."""
        return self._once(("last_row", columns), self._last_row, columns)

    def _once(self, key: object, make: Any, *args: object) -> tirx.PrimFunc:
        if key not in self._others:
            self._others[key] = make(*args)
        return self._others[key]

    @abstractmethod
    def fuses(self, operation: Matmul) -> bool:
        """Whether the kernel of a multiplication can norm its input and activate its output."""

    @abstractmethod
    def _make(self, operation: Operation, single: bool) -> tirx.PrimFunc: ...
    @abstractmethod
    def _embedding(self, pieces: tuple[int, ...], columns: int, storage: Storage) -> tirx.PrimFunc: ...
    @abstractmethod
    def _last_row(self, columns: int) -> tirx.PrimFunc: ...
