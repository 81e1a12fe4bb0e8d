"""Every sampling field has a range, and a request outside it is refused by name."""

import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from mlc_llm.runtime.errors import RequestError
from mlc_llm.runtime.sampling_params import SamplingParams

VOCAB_SIZE = 1000
WIDEST: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.0, 2, 2.0, np.float32(0.7)),
    "top_p": (0, 1, 0.5),
    "top_k": (0, 1, 2**31 - 1, np.int64(5)),
    "min_p": (0, 1.0),
    "frequency_penalty": (-2, 2.0),
    "presence_penalty": (-2.0, 2),
    "repetition_penalty": (0.01, 1, 2),
    "logit_bias": ({}, {0: -100, VOCAB_SIZE - 1: 100.0}, dict.fromkeys(range(300), 1)),
    "seed": (None, 0, -(2**63), 2**63 - 1),
    "max_tokens": (None, 1, 10**6),
    "min_tokens": (0, 5, 2**31 - 1),
    "stop": ((), ("x",) * 16, ("x" * 1024,)),
    "stop_token_ids": ((), (0, VOCAB_SIZE - 1), (1,) * 256),
    "ignore_eos": (True, False),
    "logprobs": (True, False),
    "top_logprobs": (0,),
}
NO_NUMBER: tuple[Any, ...] = (math.nan, math.inf, -math.inf, True, "1", None, [1], 1j)
OUTSIDE: dict[str, tuple[Any, ...]] = {
    "temperature": (-0.01, 2.01, 10**400, *NO_NUMBER),
    "top_p": (-0.01, 1.01, *NO_NUMBER),
    "top_k": (-1, 1.0, 2**31, *NO_NUMBER),
    "min_p": (-0.01, 1.01, *NO_NUMBER),
    "frequency_penalty": (-2.01, 2.01, *NO_NUMBER),
    "presence_penalty": (-2.01, 2.01, *NO_NUMBER),
    "repetition_penalty": (0, -1, 2.01, *NO_NUMBER),
    "logit_bias": (
        {VOCAB_SIZE: 1}, {-1: 1}, {"5": 1}, {True: 1}, {1.0: 1}, {5: 101}, {5: -100.5}, {5: math.nan}, {5: True},
        {5: "1"}, dict.fromkeys(range(301), 1), [5], None,
    ),
    "seed": (2**63, 10**5000, -(2**63) - 1, 1.5, True, "1"),
    "max_tokens": (0, -1, 1.0, True, 2**31),
    "min_tokens": (-1, 1.0, True, None, 2**31),
    "stop": (("",), ("x" * 1025,), ("x",) * 17, (5,), "stop", ["x"], None),
    "stop_token_ids": ((VOCAB_SIZE,), (-1,), (True,), (1.0,), (1,) * 257, [1], None),
    "ignore_eos": (1, 0, "true", None),
    "logprobs": (1, 0, 5, "true", None),
    "top_logprobs": (-1, 21, 1, 1.0, True),
}  # fmt: skip


def cases(table: dict[str, tuple[Any, ...]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{i}") for name, values in table.items() for i, value in enumerate(values)
    ]


def test_the_tables_of_this_file_cover_every_field() -> None:
    assert set(WIDEST) == set(OUTSIDE) == {field.name for field in fields(SamplingParams)}


def test_the_defaults_are_valid() -> None:
    SamplingParams().validate(VOCAB_SIZE)


@pytest.mark.parametrize(("name", "value"), cases(WIDEST))
def test_the_ends_of_each_range_are_valid(name: str, value: Any) -> None:
    SamplingParams(**{name: value}).validate(VOCAB_SIZE)


@pytest.mark.parametrize(("name", "value"), cases(OUTSIDE))
def test_what_is_outside_is_refused_by_name_in_one_short_line(name: str, value: Any) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{name: value}).validate(VOCAB_SIZE)
    message = str(caught.value)
    assert caught.value.param == name
    assert caught.value.code == "invalid_value"
    assert message.startswith(name)
    assert "\n" not in message
    assert len(message) < 200


def test_top_logprobs_needs_logprobs() -> None:
    SamplingParams(logprobs=True, top_logprobs=20).validate(VOCAB_SIZE)
    with pytest.raises(RequestError, match="top_logprobs is 2; it must be 0 unless logprobs is true"):
        SamplingParams(top_logprobs=2).validate(VOCAB_SIZE)


def test_messages_name_the_value_seen_and_the_value_wanted() -> None:
    with pytest.raises(RequestError, match=r"^temperature is 3; it must be a number from 0 to 2$"):
        SamplingParams(temperature=3).validate(VOCAB_SIZE)
    with pytest.raises(
        RequestError, match=r"^logit_bias: the bias of token 5 is 200; it must be a number from -100 to"
    ):
        SamplingParams(logit_bias={5: 200}).validate(VOCAB_SIZE)
    with pytest.raises(RequestError, match=r"^stop has 17 entries; at most 16 are allowed$"):
        SamplingParams(stop=("x",) * 17).validate(VOCAB_SIZE)


def test_an_answer_cannot_be_shorter_than_its_least_length() -> None:
    SamplingParams(min_tokens=5, max_tokens=5).validate(VOCAB_SIZE)
    with pytest.raises(RequestError, match="min_tokens is 6; it must be at most what max_tokens is, 5"):
        SamplingParams(min_tokens=6, max_tokens=5).validate(VOCAB_SIZE)
