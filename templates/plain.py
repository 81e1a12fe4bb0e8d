"""Bounded copies of what a caller passes, made of plain JSON types only.

A template runs in a sandbox that knows the methods of the builtin types; any other object could bring methods of its
own. So nothing else ever reaches a template, and everything has a bounded size and depth.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from .prompt import MAX_PROMPT_CHARS, ConversationError, shown

MAX_DEPTH = 64
MAX_VALUES = 200_000


def check_utf8(text: str, param: str) -> None:
    """Raises ConversationError for half of a surrogate pair, which JSON can spell and no tokenizer can read."""
    try:
        text.isascii() or text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ConversationError(
            f"{param} has a lone surrogate at character {error.start}: expected text that UTF-8 can encode", param=param
        ) from None


class _Copier:
    """Copies one request's worth of values; counts what it has seen."""

    def __init__(self) -> None:
        self.values = 0
        self.chars = 0

    def copy(self, value: Any, param: str, depth: int) -> Any:
        self.values += 1
        if self.values > MAX_VALUES:
            raise ConversationError(f"{param}: more than {MAX_VALUES} values in one conversation", param=param)
        if depth > MAX_DEPTH:
            raise ConversationError(f"{param}: nested deeper than {MAX_DEPTH} levels", param=param)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self.text(value, param)
        if isinstance(value, int):
            return self.integer(value, param)
        if isinstance(value, float):
            if not math.isfinite(value):
                raise ConversationError(f"{param} is {value}: JSON has finite numbers only", param=param)
            return float(value)
        if _is_pydantic_model(value):
            value = value.model_dump()
        if isinstance(value, Mapping):
            return self.mapping(value, param, depth)
        if isinstance(value, list | tuple):
            return [self.copy(item, f"{param}[{index}]", depth + 1) for index, item in enumerate(value)]
        raise ConversationError(f"{param} is {shown(value)}: expected a JSON value", param=param)

    def text(self, value: str, param: str) -> str:
        self.chars += len(value)
        if self.chars > MAX_PROMPT_CHARS:
            raise ConversationError(
                f"{param}: the conversation is longer than {MAX_PROMPT_CHARS} characters: shorten it", param=param
            )
        check_utf8(value, param)
        return str.__str__(value)

    def integer(self, value: int, param: str) -> int:
        if value.bit_length() > 128:
            raise ConversationError(f"{param} is a number of more than 128 bits", param=param)
        return int.__int__(value)

    def mapping(self, value: Mapping[Any, Any], param: str, depth: int) -> dict[str, Any]:
        result = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise ConversationError(f"{param} has the key {shown(key)}: keys are strings", param=param)
            name = key if len(key) <= 64 and key.isidentifier() else shown(key)
            result[self.text(key, param)] = self.copy(item, f"{param}.{name}", depth + 1)
        return result


def _is_pydantic_model(value: object) -> bool:
    """Who has such a model has imported pydantic; importing it here would take as long as the rest of a start."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and isinstance(value, pydantic.BaseModel)


def plain_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plain copy of `messages`, whose items may also be pydantic models. Raises ConversationError."""
    return _plain_dicts(messages, "messages", "a message")


def plain_tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A plain copy of `tools`. Raises ConversationError."""
    return _plain_dicts(tools, "tools", "a tool")


def plain_choice(tool_choice: object) -> Any:
    """A plain copy of a `tool_choice`. Raises ConversationError."""
    return _Copier().copy(tool_choice, "tool_choice", 0)


def _plain_dicts(items: object, param: str, noun: str) -> list[dict[str, Any]]:
    if not isinstance(items, list | tuple):
        raise ConversationError(f"{param} is {shown(items)}: expected a list of objects", param=param)
    copied: list[Any] = _Copier().copy(items, param, 0)
    for index, item in enumerate(copied):
        if not isinstance(item, dict):
            where = f"{param}[{index}]"
            raise ConversationError(f"{where} is {shown(item)}: {noun} is an object", param=where)
    return copied
