"""TVM's tensors: their types, whose memory they are over, and who keeps it."""

import ctypes
import gc
import weakref

import numpy as np
import pytest

from mlc_llm.runtime import ffi, ffi_tensor
from mlc_llm.runtime.tvm_runtime import load_runtime, tensor


@pytest.fixture(autouse=True, scope="module")
def runtime() -> None:
    load_runtime()


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "float16", "float32", "float64", "bool"])
def test_tensors_have_numpys_types(dtype: str) -> None:
    array = np.ones((3, 1, 2), dtype)
    made = tensor(array)
    assert (made.dtype, made.shape) == (dtype, (3, 1, 2))
    assert made.numpy().dtype == array.dtype
    np.testing.assert_array_equal(np.from_dlpack(made), array)


def test_views_share_the_memory_and_keep_it() -> None:
    class Block(ctypes.Array[ctypes.c_int32]):
        _type_, _length_ = ctypes.c_int32, 6

    block = Block(*range(6))
    alive = weakref.ref(block)
    made = ffi_tensor.tensor(ctypes.addressof(block), "int32", (2, 3), block)
    view = made.view((3, 2)).view((6,))
    del block, made
    gc.collect()
    assert view.bytes().cast("i").tolist() == list(range(6))
    del view
    gc.collect()
    assert alive() is None


def test_an_array_keeps_the_memory_of_its_tensors() -> None:
    array = ffi.array([tensor(np.full(1000, 7, np.int32))])
    gc.collect()
    assert array.items[0].numpy().sum() == 7000  # type: ignore[attr-defined]
