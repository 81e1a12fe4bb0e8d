"""The list of changes that a device's kernel takes; what it does with them is compared with numpy beside the kernel."""

import numpy as np
import pytest

from mlc_llm.runtime.adjustments import Adjustments
from mlc_llm.runtime.sampling_params import SamplingParams

FORBIDDEN = -np.inf
CHANGE = np.dtype([("token", "i4"), ("added", "f4"), ("subtracted", "f4"), ("divisor", "f4")])
PARAMS = SamplingParams(
    logit_bias={3: 2.5, 4: -100}, presence_penalty=0.1, frequency_penalty=0.7, repetition_penalty=1.3, min_tokens=3
)


def changes(adjustments: Adjustments) -> dict[int, tuple[float, float, float]]:
    found = np.frombuffer(bytes(adjustments.changes()), CHANGE)
    assert len(set(found["token"])) == len(found)
    return {int(one["token"]): (one["added"], one["subtracted"], one["divisor"]) for one in found}


def test_each_token_has_one_change() -> None:
    adjustments = Adjustments(PARAMS, 50, [4, 5, 5], [7, 99])
    f = np.float32
    assert changes(adjustments) == {3: (2.5, 0, 1), 4: (FORBIDDEN, 0, f(1.3)), 5: (0, 0, f(1.3)), 7: (0, 0, 0)}
    for token in (3, 3, 6):
        adjustments.take(token)
    once, twice = f(0.1) + f(0.7), f(0.1) + f(2) * f(0.7)
    assert changes(adjustments) == {
        3: (2.5, twice, f(1.3)), 4: (FORBIDDEN, 0, f(1.3)), 5: (0, 0, f(1.3)), 6: (0, once, f(1.3))
    }  # fmt: skip


@pytest.mark.parametrize("params", [PARAMS, SamplingParams(frequency_penalty=-1.3), SamplingParams(min_tokens=4)])
def test_what_is_kept_up_is_what_would_be_made_anew(params: SamplingParams) -> None:
    kept = Adjustments(params, 50, [1, 2], [7])
    for count in range(6):
        anew = Adjustments(params, 50, [1, 2], [7])
        for token in range(count):
            anew.take(token % 4)
        assert changes(kept) == changes(anew)
        kept.take(count % 4)


def test_a_request_without_any_has_an_empty_list() -> None:
    adjustments = Adjustments(SamplingParams(), 50, [1, 2], [7])
    adjustments.take(3)
    assert not adjustments.any
    assert changes(adjustments) == {}
