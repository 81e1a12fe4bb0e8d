"""The generation settings that a chat can change: how they are spelled, and how they reach the engine."""

from collections.abc import Mapping
from typing import Any

from ..runtime.errors import RequestError, UsageError
from ..runtime.sampling_params import SamplingParams

Value = float | int | list[str]

KINDS: dict[str, type[float] | type[int] | type[list[str]]] = {
    "temperature": float,
    "top_p": float,
    "frequency_penalty": float,
    "presence_penalty": float,
    "repetition_penalty": float,
    "top_k": int,
    "min_p": float,
    "max_tokens": int,
    "seed": int,
    "stop": list,
}
NOT_IN_OPENAI = frozenset({"repetition_penalty", "top_k", "min_p"})  # these travel in extra_body


def check_setting(name: str, value: Any) -> Value:
    """`value` itself when the engine takes it for the setting `name`. Raises UsageError with name and range."""
    if name not in KINDS:
        import difflib

        near = difflib.get_close_matches(name, KINDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(KINDS)}"
        raise UsageError(f"there is no setting {name!r}: {hint}")
    if KINDS[name] is list and not (isinstance(value, list) and value):
        raise UsageError(f"{name} is {value!r}; it must be strings separated by commas")
    if value is None:
        raise UsageError(f"{name} has no value")
    field: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value}
    try:
        SamplingParams(**field).validate(vocab_size=1)
    except RequestError as error:
        raise UsageError(str(error)) from None
    checked: Value = value
    return checked


def parse_settings(text: str) -> dict[str, Value | None]:
    """Read `k=v;k=v`; an empty value means the model's default (None). All or nothing: raises UsageError."""
    parsed: dict[str, Value | None] = {}
    for part in filter(str.strip, text.split(";")):
        name, equals, spelled = part.partition("=")
        name = name.strip()
        if name in KINDS and not equals:
            raise UsageError(f"{name} has no value: write {name}=VALUE")
        parsed[name] = check_setting(name, _parse_value(name, spelled)) if spelled or name not in KINDS else None
    return parsed


def _parse_value(name: str, spelled: str) -> Any:
    """The value that a user spelled; what is no number stays text, for the check to refuse."""
    kind = KINDS.get(name)
    if kind is list:
        return [part for part in spelled.split(",") if part]
    if kind is None:
        return spelled
    try:
        return kind(spelled.strip())
    except ValueError:
        return spelled.strip()


def format_settings(settings: Mapping[str, Value]) -> str:
    """The settings as /set takes them."""
    return ";".join(
        f"{name}={','.join(value) if isinstance(value, list) else value}" for name, value in settings.items()
    )


def sampling_fields(settings: Mapping[str, Value]) -> dict[str, Any]:
    """The settings as fields of `SamplingParams`."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}


def request_arguments(settings: Mapping[str, Value]) -> dict[str, Any]:
    """The arguments of `chat.completions.create` for these settings."""
    arguments: dict[str, Any] = {name: value for name, value in settings.items() if name not in NOT_IN_OPENAI}
    extra = {name: value for name, value in settings.items() if name in NOT_IN_OPENAI}
    return {**arguments, "extra_body": extra} if extra else arguments
