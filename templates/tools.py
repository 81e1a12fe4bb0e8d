"""Checks a request's tool definitions and its tool_choice."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from .plain import plain_choice, plain_tools
from .prompt import ConversationError, refusal, shown

MAX_TOOLS = 128
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_FUNCTION_KEYS = {"name", "description", "parameters", "strict"}
# What a key of a function holds, and how that is called in an error.
_FUNCTION_TYPES: dict[str, tuple[type, str]] = {
    "description": (str, "a text"),
    "parameters": (dict, "a JSON schema object"),
    "strict": (bool, "true or false"),
}


def check_tools(tools: Sequence[Mapping[str, Any]] | None, tool_choice: str | Mapping[str, Any] | None) -> None:
    """Raises ConversationError for a tool that no model can call, or a tool_choice that the tools do not allow."""
    names = _tool_names(plain_tools(tools)) if tools is not None else []
    _check_choice(plain_choice(tool_choice), names)


def _tool_names(tools: list[dict[str, Any]]) -> list[str]:
    if len(tools) > MAX_TOOLS:
        raise ConversationError(f"tools has {len(tools)} entries: at most {MAX_TOOLS} are possible", param="tools")
    names: list[str] = []
    for index, tool in enumerate(tools):
        name = _tool_name(tool, f"tools[{index}]")
        if name in names:
            raise ConversationError(
                f"tools[{index}].function.name is {name!r}, as tools[{names.index(name)}] is: names are unique",
                param=f"tools[{index}].function.name",
            )
        names.append(name)
    return names


def _tool_name(tool: dict[str, Any], where: str) -> str:
    if tool.get("type") != "function":
        raise refusal(f"{where}.type", tool.get("type"), "'function'")
    function = tool.get("function")
    if not isinstance(function, dict):
        raise refusal(f"{where}.function", function, "an object with name, description and parameters")
    _no_other_keys(tool, {"type", "function"}, where)
    _no_other_keys(function, _FUNCTION_KEYS, f"{where}.function")
    name = function.get("name")
    if not isinstance(name, str) or not TOOL_NAME.fullmatch(name):
        raise refusal(f"{where}.function.name", name, "1 to 64 letters, digits, '_' or '-'")
    for key, (kind, wanted) in _FUNCTION_TYPES.items():
        value = function.get(key)
        if value is not None and not isinstance(value, kind):
            raise refusal(f"{where}.function.{key}", value, wanted)
    return name


def _check_choice(choice: Any, names: list[str]) -> None:
    if choice is None or choice in ("none", "auto"):
        return
    if choice == "required":
        if not names:
            raise ConversationError(
                "tool_choice is 'required': there must be tools to choose from", param="tool_choice"
            )
        return
    if not isinstance(choice, dict) or choice.get("type") != "function" or not isinstance(choice.get("function"), dict):
        wanted = '\'none\', \'auto\', \'required\' or {"type": "function", "function": {"name": ...}}'
        value = choice.get("type") if isinstance(choice, dict) else choice
        raise refusal("tool_choice" + (".type" if isinstance(choice, dict) else ""), value, wanted)
    _no_other_keys(choice, {"type", "function"}, "tool_choice")
    _no_other_keys(choice["function"], {"name"}, "tool_choice.function")
    name = choice["function"].get("name")
    if name not in names:
        wanted = f"one of the tools: {', '.join(names)}" if names else "that tool among the tools, but there are none"
        raise refusal("tool_choice.function.name", name, wanted)


def _no_other_keys(value: dict[str, Any], allowed: set[str], where: str) -> None:
    if unknown := sorted(set(value) - allowed):
        raise ConversationError(
            f"{where} has the key {shown(unknown[0])}: the possible ones are {', '.join(sorted(allowed))}", param=where
        )
