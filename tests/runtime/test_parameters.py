"""Parameters are checked against the library's, brought into its layout, and aligned."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime import parameters, weights
from mlc_llm.runtime.artifact import ParamMetadata, Preproc, TensorRecord
from mlc_llm.runtime.errors import EngineError, ModelFileError
from mlc_llm.runtime.ffi import Device, FFIError
from mlc_llm.runtime.parameters import cut, load_parameters, pack_parameters
from mlc_llm.runtime.tvm_runtime import tensor

FOLDER = Path("folder")
STORED = {
    "bias": np.arange(5, dtype=np.float32),
    "weight": np.arange(12, dtype=np.uint32).reshape(3, 4),
    "scale": np.arange(6, dtype=np.uint16).reshape(2, 3),  # bfloat16 as its bits
}
TYPES = {"bias": "float32", "weight": "uint32", "scale": "bfloat16"}


class Store:
    """Weights in memory, as the folder's store gives them."""

    def __init__(self) -> None:
        self.records = {
            name: TensorRecord(name=name, shape=list(a.shape), dtype=TYPES[name], nbytes=a.nbytes, byteOffset=0)
            for name, a in STORED.items()
        }

    def read(self, name: str) -> np.ndarray[Any, Any]:
        return STORED[name].copy()

    def read_into(self, name: str, out: np.ndarray[Any, Any]) -> None:
        out[...] = STORED[name]


def step(name: str, before: tuple[int, ...], after: tuple[int, ...], dtype: str = "uint32") -> Preproc:
    return Preproc(func_name=name, in_shape=list(before), out_shape=list(after), out_dtype=dtype)


def param(name: str, *steps: Preproc) -> ParamMetadata:
    return ParamMetadata(name=name, shape=list(STORED[name].shape), dtype=TYPES[name], preprocs=list(steps))


class FakeLibrary(dict[str, Any]):
    """Layout functions written in numpy."""

    def __init__(self, *params: ParamMetadata) -> None:
        super().__init__(transpose=self._transpose, flatten=self._flatten, fail=self._fail)
        self.metadata = SimpleNamespace(params=list(params))

    @staticmethod
    def _transpose(stored: Any, packed: Any) -> None:
        np.from_dlpack(packed)[...] = np.from_dlpack(stored).T

    @staticmethod
    def _flatten(stored: Any, packed: Any) -> None:
        np.from_dlpack(packed)[...] = np.from_dlpack(stored).reshape(-1) * 2

    @staticmethod
    def _fail(stored: Any, packed: Any) -> None:
        raise RuntimeError("Check failed: something\n  0: in a C++ frame")


def load(*params: ParamMetadata, **options: Any) -> list[Any]:
    return pack_parameters(FakeLibrary(*params), Store(), FOLDER, **options)[1]  # type: ignore[arg-type]


def test_parameters_come_in_the_library_s_order_with_their_types() -> None:
    tensors = load(param("weight"), param("bias"), param("scale"))
    assert [(str(t.dtype), tuple(t.shape)) for t in tensors] == [
        ("uint32", (3, 4)),
        ("float32", (5,)),
        ("bfloat16", (2, 3)),
    ]
    arrays = [np.from_dlpack(t) for t in tensors[:2]]
    assert [a.ctypes.data % 64 for a in arrays] == [0, 0]
    np.testing.assert_array_equal(arrays[0], STORED["weight"])
    np.testing.assert_array_equal(arrays[1], STORED["bias"])


def test_layout_functions_run_in_order() -> None:
    (packed,) = load(param("weight", step("transpose", (3, 4), (4, 3)), step("flatten", (4, 3), (12,))))
    np.testing.assert_array_equal(np.from_dlpack(packed), STORED["weight"].T.reshape(-1) * 2)


def test_layout_functions_see_bfloat16_as_its_bits() -> None:
    (packed,) = load(param("scale", step("transpose", (2, 3), (3, 2), "uint16")))
    np.testing.assert_array_equal(np.from_dlpack(packed), STORED["scale"].T)


def test_a_parameter_may_be_given_in_pieces_over_the_same_memory() -> None:
    of = param("weight").model_copy(update={"pieces": [1, 2]})
    (whole,) = load(of)
    first, second = (np.from_dlpack(piece) for piece in cut(of, whole))
    np.testing.assert_array_equal(first, STORED["weight"][:1])
    np.testing.assert_array_equal(second, STORED["weight"][1:])
    assert first.ctypes.data == whole.address
    with pytest.raises(ModelFileError, match=r"^pieces of \[1, 1\] do not make parameter 'weight', which has 3$"):
        cut(of.model_copy(update={"pieces": [1, 1]}), whole)


def test_weights_that_do_not_fit_on_a_device_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class OnDevice(FakeLibrary):
        device, path, fingerprint = Device("opencl", 0), Path("x.so"), 0

    def empty(sizes: Any, dtype: str, device: Device) -> Any:
        if len(made) == 1:
            raise FFIError("OpenCL device Mali: too little memory: 1 MiB more are wanted\nand a trace")
        made.append(np.zeros(sizes, dtype))
        return tensor(made[-1])

    made: list[Any] = []
    store = SimpleNamespace(index=Path("i"), shards=[], read_into=Store().read_into, records=Store().records)
    monkeypatch.setattr(weights, "WeightStore", lambda folder: store)
    monkeypatch.setattr(parameters, "empty", empty)
    monkeypatch.setattr(parameters, "largest_buffer", lambda device: 1 << 30)
    with pytest.raises(
        EngineError,
        match=r"^the weights of 0 MiB do not fit on device opencl: after 0 MiB: OpenCL device Mali: too li.* wanted$",
    ):
        load_parameters(OnDevice(param("weight"), param("bias")), FOLDER)  # type: ignore[arg-type]
    monkeypatch.setattr(parameters, "largest_buffer", lambda device: 20)
    with pytest.raises(EngineError) as refused:
        load_parameters(OnDevice(param("weight"), param("bias")), FOLDER)  # type: ignore[arg-type]
    assert str(refused.value) == (
        "device opencl takes tensors of at most 20 bytes, a weight has 48: run `mlc compile <model folder> "
        """--device '{"kind": "opencl", "largest_buffer": 20}'`"""
    )


def test_progress_counts_parameters() -> None:
    calls: list[tuple[int, int]] = []
    load(param("weight"), param("bias"), progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"name": "gate"}, "folder has no parameter 'gate', which the library needs: compile them again"),
        ({"shape": [4, 3]}, r"parameter 'weight' is uint32 \[3, 4\], the library needs uint32 \[4, 3\]"),
        ({"dtype": "int32"}, r"parameter 'weight' is uint32 \[3, 4\], the library needs int32 \[3, 4\]"),
    ],
)
def test_a_parameter_that_does_not_fit_is_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        load(param("bias"), param("weight").model_copy(update=wrong))


def test_a_layout_function_that_fails_names_the_parameter() -> None:
    with pytest.raises(EngineError, match=r"^fail failed on parameter 'weight': Check failed: something$"):
        load(param("weight", step("fail", (3, 4), (3, 4))))
