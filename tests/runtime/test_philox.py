"""Philox gives numpy's numbers."""

import numpy as np
import pytest

from mlc_llm.runtime.philox import philox, round_keys


@pytest.mark.parametrize("key", [0, 1, 0x123456789ABCDEF0, 2**64 - 1])
def test_the_numbers_are_numpys(key: int) -> None:
    keys = round_keys(key)
    for counter in (0, 1, 63, 1000, 2**32, 2**63):  # numpy counts up before it draws
        assert philox(counter + 1, keys) == np.random.Philox(key=key, counter=counter).random_raw()
