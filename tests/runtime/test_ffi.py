"""TVM's C interface: what goes in and comes out, who owns what, and errors."""

import gc
from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime import ffi
from mlc_llm.runtime.ffi_tensor import Tensor
from mlc_llm.runtime.tvm_runtime import global_function, load_runtime, tensor


@pytest.fixture(autouse=True, scope="module")
def runtime() -> None:
    load_runtime()


@pytest.mark.parametrize("value", [0, -1, 2**63 - 1, -(2**63), True, False, None, 0.5, -1e300, "", "short", "é" * 40])
def test_values_come_back_as_they_went_in(value: Any) -> None:
    array = global_function("ffi.Array")(value)
    assert isinstance(array, ffi.Array)
    assert len(array) == 1
    assert array[0] == value
    assert type(array[0]) is type(value)


def test_objects_come_back_as_what_they_are() -> None:
    numbers = np.arange(6, dtype=np.float32).reshape(2, 3)
    array = ffi.array([tensor(numbers), global_function("ffi.ArraySize"), ffi.shape((4, 5))])
    back, function, shape = array
    assert isinstance(back, Tensor)
    assert (back.shape, back.dtype, back.nbytes) == ((2, 3), "float32", 24)
    assert np.shares_memory(back.numpy(), numbers)
    assert function(array) == 3
    assert global_function("ffi.Array")(shape)[0].type_index == shape.type_index
    with pytest.raises(IndexError):
        array[3]


def test_a_prepared_call_is_the_same_call() -> None:
    array = ffi.array([ffi.shape((1,))])
    call = global_function("ffi.ArraySize").prepared(array)
    del array
    gc.collect()
    assert [call(), call()] == [1, 1]


def test_errors_carry_tvms_message() -> None:
    with pytest.raises(ffi.FFIError, match="TVM has no function 'no such'"):
        ffi.global_function("no such")
    with pytest.raises(ffi.FFIError, match=r"ffi\.ArraySize|[Mm]ismatched"):
        global_function("ffi.ArraySize")(1, 2)
    with pytest.raises(TypeError, match="an argument of type object cannot be passed to TVM"):
        global_function("ffi.ArraySize")(object())
    with pytest.raises(ffi.FFIError):
        ffi.load_module("/no/such/library.so")
