"""Matrices of GGUF blocks, from the stored tensors through the packing kernels to what kernels read and multiply."""

import gguf
import numpy as np
import pytest
import tvm
from gguf_files import random_blocks, stored_weight
from numpy.typing import NDArray

from mlc_llm.compiler.kernels.cpu.layers import embedding
from mlc_llm.compiler.kernels.cpu.table import CpuKernels
from mlc_llm.compiler.kernels.operations import Matmul
from mlc_llm.compiler.kernels.storage import GroupStorage, rows_of_pieces
from mlc_llm.compiler.model.architecture import Weight
from mlc_llm.compiler.model.matrix import Matrix
from mlc_llm.compiler.quantization.blocks import FORMATS, joined_format, take_apart
from mlc_llm.compiler.quantization.kept import BlockScheme
from mlc_llm.compiler.target import resolve_target

ROWS, COLUMNS = 40, 512  # the last tiles are short, K types have two blocks a row
IDS = np.array([0, 39, 17, 17], np.int32)
NAME = "model.layers.0.mlp.down_proj.weight"


class Kernels:
    """A matrix of random blocks in a format, with kernels of it compiled for a processor."""

    def __init__(self, name: str, processor: str) -> None:
        form = joined_format(name.split("+"))
        own = name.split("+")[0]
        blocks = random_blocks(gguf.GGMLQuantizationType[own.upper()], ROWS, COLUMNS)
        self.stored = take_apart(blocks, own, form)
        self.weight = stored_weight(self.stored, form)
        self.target = resolve_target(f"cpu:{processor}")
        self.functions: dict[str, tvm.tirx.PrimFunc] = {}
        scheme = BlockScheme("mixture", {NAME: name})
        self.matrix = Matrix(self.functions, scheme, self.target, Weight(NAME, (), (ROWS, COLUMNS), "linear"))

    def run(self) -> "Run":
        """Compile `functions` and pack the matrix."""
        module = tvm.IRModule({name: f.with_attr("global_symbol", name) for name, f in self.functions.items()})
        return Run(tvm.compile(module, target=self.target.tvm_target()), self)


class Run:
    def __init__(self, compiled: tvm.runtime.Executable, kernels: Kernels) -> None:
        self.compiled = compiled
        self.packed = []
        for stored, parameter in zip(kernels.stored, kernels.matrix.parameters.values(), strict=True):
            (step,) = parameter.attrs["stored"].preprocs
            assert (list(stored.shape), str(stored.dtype)) == (step.in_shape, parameter.attrs["stored"].dtype)
            self.packed.append(tvm.runtime.empty(step.out_shape, step.out_dtype))
            compiled[step.func_name](tvm.runtime.tensor(stored), self.packed[-1])

    def __call__(self, name: str, x: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32]:
        y = tvm.runtime.empty(shape, "float32")
        self.compiled[name](tvm.runtime.tensor(x), *self.packed, y)
        result: NDArray[np.float32] = y.numpy()
        return result


@pytest.mark.parametrize("name", [*FORMATS, "q4_k+q6_k", "q5_0+q8_0", "q4_k+q8_0"])
def test_kernels_read_exactly_the_weights_of_the_blocks(name: str) -> None:
    kernels = Kernels(name, "native")
    kernels.functions["rows"] = embedding(ROWS, COLUMNS, kernels.matrix.storage)
    read = kernels.run()("rows", IDS, (len(IDS), COLUMNS))
    np.testing.assert_array_equal(read, kernels.weight[IDS])


@pytest.mark.parametrize("name", ["q4_1", "q6_k"])
def test_a_processor_without_float16_reads_the_same(name: str) -> None:
    kernels = Kernels(name, "x86-64")
    kernels.functions["rows"] = embedding(ROWS, COLUMNS, kernels.matrix.storage)
    assert "float16" not in {parameter.dtype for parameter in kernels.matrix.parameters.values()}
    np.testing.assert_array_equal(kernels.run()("rows", IDS, (len(IDS), COLUMNS)), kernels.weight[IDS])


@pytest.mark.parametrize(
    ("rows", "largest", "pieces"),
    [
        (128256, 128 << 20, (64128, 64128)),
        (128256, 263 << 20, (128256,)),
        (49, 4096, (49,)),
        (100, 8191, (64, 36)),
        (100, 1, (32, 32, 32, 4)),  # two tiles are the least
    ],
)
def test_a_matrix_is_cut_into_few_tensors_of_about_the_same_size(
    rows: int, largest: int, pieces: tuple[int, ...]
) -> None:
    storage, columns = GroupStorage(4, 32, "float16", 7), 4096 if rows > 1000 else 128
    assert rows_of_pieces(storage, rows, columns, largest) == pieces


@pytest.mark.parametrize("name", ["q4_1", "q8_0", "q2_k", "q4_k", "q4_k+q6_k"])
@pytest.mark.parametrize("activation_bits", [16, 32])
def test_products_equal_numpy(name: str, activation_bits: int) -> None:
    kernels = Kernels(name, "native")
    table = CpuKernels(kernels.target, activation_bits)
    operation = Matmul(ROWS, COLUMNS, kernels.matrix.storage)
    kernels.functions |= {name: table.function(operation, single=name == "one") for name in ("one", "many")}
    run = kernels.run()
    x = np.random.default_rng(0).standard_normal((1, 13, COLUMNS)).astype(np.float32)
    expected = x.astype(np.float64) @ kernels.weight.T
    tolerance = 1e-4 * np.abs(expected).max()
    np.testing.assert_allclose(run("many", x, (1, 13, ROWS)), expected, rtol=0, atol=tolerance)
    np.testing.assert_allclose(run("one", x[:, :1], (1, 1, ROWS)), expected[:, :1], rtol=0, atol=tolerance)
