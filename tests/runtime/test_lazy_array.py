"""Arrays that are numpy's only where numpy is asked."""

from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime.lazy_array import LazyArray

WHOLE = np.arange(40, dtype=np.float32).reshape(4, 10)  # rows of 7 numbers and 3 of padding
ROWS = LazyArray(WHOLE.ctypes.data, (4, 7), WHOLE, 10)


def address(array: Any) -> int:
    found: int = array.__array_interface__["data"][0]
    return found


def test_rows_lie_in_the_same_memory() -> None:
    np.testing.assert_array_equal(ROWS, WHOLE[:, :7])
    assert [row.address - ROWS.address for row in ROWS] == [0, 40, 80, 120]
    assert (len(ROWS), ROWS.size, ROWS.shape) == (4, 28, (4, 7))
    for index in range(4):
        assert isinstance(ROWS[index], LazyArray)
        np.testing.assert_array_equal(ROWS[index], WHOLE[index, :7])
    assert address(ROWS.numpy()) == ROWS.address


@pytest.mark.parametrize("count", [0, 1, 5, 7])
def test_the_first_numbers_of_a_row(count: int) -> None:
    first = ROWS[2][:count]
    assert isinstance(first, LazyArray)
    assert first.size == count
    np.testing.assert_array_equal(first, WHOLE[2, :count])
    assert ROWS[1][:].size == 7


@pytest.mark.parametrize(
    "index", [-1, (slice(None), 3), slice(1, 3), slice(None, None, 2), np.array([0, 2]), (slice(None), None)], ids=str
)
def test_all_else_is_as_numpy_has_it(index: Any) -> None:
    np.testing.assert_array_equal(ROWS[index], WHOLE[:, :7][index])


def test_numpy_s_methods_and_conversions() -> None:
    assert ROWS.argmax(axis=-1).tolist() == [6] * 4
    assert ROWS[3].max() == 36
    assert np.array(ROWS, np.float64).dtype == np.float64
    copied = np.array(ROWS)
    copied[0, 0] = 9
    assert WHOLE[0, 0] == 0
    assert ROWS[0][:20].size == 7


def test_the_owner_lives_as_long_as_the_numbers() -> None:
    array = LazyArray(0, (1,), None)
    memory = np.full(3, 5, np.float32)
    array = LazyArray(memory.ctypes.data, (3,), memory)
    del memory
    view = array.numpy()
    del array
    assert view.tolist() == [5, 5, 5]


def test_any_array_becomes_one_in_contiguous_memory() -> None:
    assert LazyArray.over(ROWS) is ROWS
    whole = LazyArray.over(WHOLE)
    assert (whole.address, whole.shape, whole.stride) == (WHOLE.ctypes.data, (4, 10), 10)
    for array in (WHOLE[:, 3], WHOLE[1].astype(np.float64), WHOLE[:, ::-1]):
        np.testing.assert_array_equal(LazyArray.over(array).numpy(), array)


def test_an_index_beyond_the_end() -> None:
    with pytest.raises(IndexError):
        ROWS[4]
