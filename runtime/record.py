"""Records: classes of typed fields that check what they are made of, for the files between compiler and runtime.

What pydantic would do, as far as these files need it. Importing pydantic and building its models takes half as long as
a whole start of `mlc chat`, and 17 MB.
"""

import json
from collections.abc import Callable, Mapping
from reprlib import repr as short_repr
from types import UnionType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**options: Any) -> Callable[[Any], Any]:
        return lambda decorated: decorated


_Self = TypeVar("_Self", bound="Record")
_Check = Callable[[Any], Any]
_MISSING = object()


class RecordError(ValueError):
    """A value that a record does not take: the field's place, the value seen, the value wanted."""

    def __init__(self, problem: str, *place: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place

    def inside(self, part: str) -> "RecordError":
        """The same, seen from the object that has the value as its `part`."""
        return RecordError(self.problem, part, *self.place)

    def __str__(self) -> str:
        return ".".join(self.place) + self.problem


@dataclass_transform(kw_only_default=True)
class Record:
    """A base for classes of annotated fields, with defaults; a default that is a list or dict is copied.

    `_least` has the smallest value of number fields, `_names` what a field is called in the file where that differs.
    Keys that are no fields are ignored, or kept and readable as attributes with `_keep_unknown`.
    """

    _least: ClassVar[Mapping[str, int]] = {}
    _names: ClassVar[Mapping[str, str]] = {}
    _keep_unknown: ClassVar[bool] = False
    _fields: ClassVar[dict[str, tuple[_Check, Any]]]  # name -> check, default
    _unknown: dict[str, Any]

    def __init_subclass__(cls) -> None:
        hints = {name: kind for name, kind in get_type_hints(cls).items() if not name.startswith("_")}
        cls._fields = {
            name: (_at_least(_check(kind), cls._least.get(name)), getattr(cls, name, _MISSING))
            for name, kind in hints.items()
        }

    def __init__(self, **values: Any) -> None:
        """Raises RecordError for a field that is missing or has a value of another type."""
        contents, names = self.__dict__, self._names
        for name, (check, default) in self._fields.items():
            value = values.pop(name, _MISSING)
            if value is _MISSING and name in names:
                value = values.pop(names[name], _MISSING)
            if value is _MISSING:
                if default is _MISSING:
                    raise RecordError(" is missing", names.get(name, name))
                contents[name] = default.copy() if isinstance(default, (list, dict)) else default
                continue
            try:
                contents[name] = check(value)
            except RecordError as error:
                raise error.inside(names.get(name, name)) from None
        contents["_unknown"] = values if self._keep_unknown else {}

    def __getattr__(self, name: str) -> Any:
        unknown = self.__dict__.get("_unknown", {})
        if name not in unknown:
            raise AttributeError(f"{type(self).__name__} has no field {name!r}")
        return unknown[name]

    @classmethod
    def model_validate(cls: type[_Self], value: object) -> _Self:
        """The record that parsed JSON describes. Raises RecordError."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise RecordError(f" = {short_repr(value)}: input should be a JSON object")
        return cls(**value)

    def model_copy(self: _Self, update: Mapping[str, Any] | None = None) -> _Self:
        """A shallow copy with some fields replaced, which are not checked."""
        copy = object.__new__(type(self))
        copy.__dict__.update(self.__dict__)
        copy.__dict__.update(update or {})
        return copy

    def model_dump(self, by_alias: bool = False) -> dict[str, Any]:
        """Plain dicts and lists; with `by_alias` under the names of the file."""
        names = self._names if by_alias else {}
        fields = {names.get(name, name): _plain(getattr(self, name), by_alias) for name in self._fields}
        return {**fields, **self._unknown}

    def model_dump_json(self) -> str:
        """Compact JSON of the fields."""
        return json.dumps(self.model_dump(), ensure_ascii=False, separators=(",", ":"))

    def __eq__(self, other: object) -> bool:
        return self.__dict__ == other.__dict__ if type(self) is type(other) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        fields = (f"{name}={value!r}" for name, value in self.__dict__.items() if name in self._fields)
        return f"{type(self).__name__}({', '.join(fields)})"


def _plain(value: Any, by_alias: bool) -> Any:
    if isinstance(value, Record):
        return value.model_dump(by_alias)
    if isinstance(value, (list, tuple)):
        return [_plain(item, by_alias) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item, by_alias) for key, item in value.items()}
    return value


def _check(kind: Any) -> _Check:
    """The check of an annotation: returns the value as that type, or raises RecordError."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if origin is Literal:
        return _one_of(arguments)
    if origin in (Union, UnionType):
        return _any_of([_check(argument) for argument in arguments])
    if origin is list:
        return _list_of(_check(arguments[0]))
    if origin is dict:
        return _dict_of(None if arguments[1] is Any else _check(arguments[1]))
    if isinstance(kind, type) and issubclass(kind, Record):
        return kind.model_validate
    return _SIMPLE[kind]


def _refused(value: object, wanted: str) -> RecordError:
    return RecordError(f" = {short_repr(value)}: input should be {wanted}")


def _integer(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _refused(value, "a valid integer")


def _number(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    raise _refused(value, "a valid number")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise _refused(value, "a valid string")


def _boolean(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise _refused(value, "a valid boolean")


def _nothing(value: Any) -> None:
    if value is not None:
        raise _refused(value, "null")


_SIMPLE: dict[Any, _Check] = {int: _integer, float: _number, str: _text, bool: _boolean, type(None): _nothing}


def _at_least(check: _Check, least: int | None) -> _Check:
    if least is None:
        return check

    def bounded(value: Any) -> Any:
        checked = check(value)
        if checked < least:
            raise _refused(value, "greater than 0" if least == 1 else f"greater than or equal to {least}")
        return checked

    return bounded


def _one_of(choices: tuple[Any, ...]) -> _Check:
    wanted = " or ".join(map(repr, choices))

    def check(value: Any) -> Any:
        if not isinstance(value, str) or value not in choices:
            raise _refused(value, wanted)
        return value

    return check


def _any_of(checks: list[_Check]) -> _Check:
    def check(value: Any) -> Any:
        problem = None
        for each in checks:
            try:
                return each(value)
            except RecordError as error:
                problem = problem or error
        assert problem is not None
        raise problem

    return check


def _list_of(item: _Check) -> _Check:
    def check(value: Any) -> list[Any]:
        if not isinstance(value, (list, tuple)):
            raise _refused(value, "a valid list")
        checked = []
        for index, entry in enumerate(value):
            try:
                checked.append(item(entry))
            except RecordError as error:
                raise error.inside(str(index)) from None
        return checked

    return check


def _dict_of(item: _Check | None) -> _Check:
    def check(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _refused(value, "a valid dictionary")
        if item is None:
            return value
        checked = {}
        for key, entry in value.items():
            try:
                checked[key] = item(entry)
            except RecordError as error:
                raise error.inside(str(key)) from None
        return checked

    return check
