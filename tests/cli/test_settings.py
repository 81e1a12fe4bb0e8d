"""/set takes only what the engine takes, and all of it or nothing."""

import pytest

from mlc_llm.cli.settings import KINDS, check_setting, format_settings, parse_settings
from mlc_llm.runtime.errors import UsageError
from mlc_llm.runtime.sampling_params import SamplingParams


def test_every_setting_is_a_sampling_parameter() -> None:
    assert set(KINDS) <= set(SamplingParams.__dataclass_fields__)


def test_values_have_the_types_of_the_request() -> None:
    text = "temperature=0.5; top_p=0.8;top_k=40;seed=-7;max_tokens=100;stop=END, STOP;min_p=0.1"
    assert parse_settings(text) == {
        "temperature": 0.5, "top_p": 0.8, "top_k": 40, "seed": -7, "max_tokens": 100, "stop": ["END", " STOP"],
        "min_p": 0.1,
    }  # fmt: skip


def test_an_empty_value_is_the_default() -> None:
    assert parse_settings("temperature=;seed=1") == {"temperature": None, "seed": 1}


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("temperature=3", "temperature is 3.0; it must be a number from 0 to 2"),
        ("temperature=nan", "temperature is nan; it must be a number from 0 to 2"),
        ("temperature=warm", "temperature is 'warm'; it must be a number from 0 to 2"),
        ("top_p=-1", "top_p is -1.0; it must be a number from 0 to 1"),
        ("frequency_penalty=2.5", "frequency_penalty is 2.5; it must be a number from -2 to 2"),
        ("presence_penalty=-3", "presence_penalty is -3.0; it must be a number from -2 to 2"),
        ("repetition_penalty=0", "repetition_penalty is 0.0; it must be a number from 0.01 to 2"),
        ("min_p=2", "min_p is 2.0; it must be a number from 0 to 1"),
        ("top_k=-1", "top_k is -1; it must be a whole number from 0 to 2147483647"),
        ("max_tokens=0", "max_tokens is 0; it must be a whole number from 1 to 2147483647"),
        ("max_tokens=1.5", "max_tokens is '1.5'; it must be a whole number from 1 to 2147483647"),
        ("stop=,", "stop is []; it must be strings separated by commas"),
        ("temprature=1", "there is no setting 'temprature': did you mean temperature?"),
        ("zzz=1", f"there is no setting 'zzz': the settings are {', '.join(KINDS)}"),
        ("temperature", "temperature has no value: write temperature=VALUE"),
        ("seed=1;top_p=7", "top_p is 7.0; it must be a number from 0 to 1"),
    ],
)
def test_a_wrong_setting_gets_a_line_with_its_name_and_range(text: str, line: str) -> None:
    with pytest.raises(UsageError) as error:
        parse_settings(text)
    assert str(error.value) == line


def test_what_is_shown_can_be_set_again() -> None:
    settings = {"temperature": 0.5, "stop": ["a", "b"], "top_k": 4}
    assert parse_settings(format_settings(settings)) == settings


@pytest.mark.parametrize(("name", "value"), [("temperature", True), ("max_tokens", 1.0), ("stop", "a"), ("seed", None)])
def test_values_of_a_file_are_checked_for_their_type(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        check_setting(name, value)
