"""Records take what their fields say, and tell what they do not take."""

from typing import Any, Literal

import pytest

from mlc_llm.runtime.record import Record, RecordError


class Part(Record):
    _least = {"size": 1, "offset": 0}  # noqa: RUF012
    size: int
    offset: int = 0


class Whole(Record):
    _keep_unknown = True
    _names = {"settings": "model_config"}  # noqa: RUF012
    name: str
    settings: dict[str, Any]
    ratio: float = 1.0
    kind: Literal["a", "b"] | None = None
    ids: int | list[int] = 2
    parts: list[Part] = []  # noqa: RUF012
    counts: dict[str, int] = {}  # noqa: RUF012
    flag: bool = False


def whole(**changes: Any) -> Whole:
    return Whole.model_validate({"name": "x", "model_config": {}, **changes})


def test_fields_defaults_and_what_is_not_known() -> None:
    record = whole(ratio=2, parts=[{"size": 3, "else": 1}], more={"kept": True})
    assert (record.ratio, type(record.ratio), record.ids, record.flag) == (2.0, float, 2, False)
    assert record.parts == [Part(size=3)]
    assert record.more == {"kept": True}
    assert record.model_dump(by_alias=True)["model_config"] == {}
    assert whole().parts is not whole().parts
    with pytest.raises(AttributeError, match="Part has no field 'else'"):
        getattr(record.parts[0], "else")


def test_a_record_says_what_it_was_made_of() -> None:
    fields = {"name": "x", "settings": {"a": [1]}, "ratio": 0.5, "kind": "b", "ids": [1, 2], "counts": {"k": 1},
              "parts": [{"size": 1, "offset": 0}], "flag": True, "more": None}  # fmt: skip
    record = Whole(**fields)
    assert record.model_dump() == fields
    assert Whole.model_validate(record.model_dump(by_alias=True)) == record
    assert repr(Part(size=1)) == "Part(size=1, offset=0)"


def test_a_copy_with_other_fields() -> None:
    first = Part(size=1)
    second = first.model_copy(update={"size": 2})
    assert (first.size, second.size) == (1, 2)
    assert first != second


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"name": 5}, "name = 5: input should be a valid string"),
        ({"model_config": []}, "model_config = []: input should be a valid dictionary"),
        ({"ratio": "1"}, "ratio = '1': input should be a valid number"),
        ({"ratio": True}, "ratio = True: input should be a valid number"),
        ({"kind": "c"}, "kind = 'c': input should be 'a' or 'b'"),
        ({"kind": []}, "kind = []: input should be 'a' or 'b'"),
        ({"ids": "x"}, "ids = 'x': input should be a valid integer"),
        ({"ids": 1.5}, "ids = 1.5: input should be a valid integer"),
        ({"parts": 1}, "parts = 1: input should be a valid list"),
        ({"parts": [{"size": 0}]}, "parts.0.size = 0: input should be greater than 0"),
        ({"parts": [{"size": 1}, {"size": 1, "offset": -1}]},
         "parts.1.offset = -1: input should be greater than or equal to 0"),
        ({"parts": [{}]}, "parts.0.size is missing"),
        ({"parts": [3]}, "parts.0 = 3: input should be a JSON object"),
        ({"counts": {"k": None}}, "counts.k = None: input should be a valid integer"),
        ({"flag": 1}, "flag = 1: input should be a valid boolean"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(changes: dict[str, Any], line: str) -> None:
    with pytest.raises(RecordError) as caught:
        whole(**changes)
    assert str(caught.value) == line


def test_what_is_missing_is_named_as_in_the_file() -> None:
    with pytest.raises(RecordError, match=r"^model_config is missing$"):
        Whole.model_validate({"name": "x"})
    with pytest.raises(RecordError, match="input should be a JSON object"):
        Whole.model_validate([])


def test_whole_numbers_may_be_written_as_floats() -> None:
    assert type(Part(size=2.0).size) is int
