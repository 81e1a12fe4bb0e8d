"""Checks a conversation before anything runs: roles and their order, content types, tool calls, tools."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .plain import plain_messages
from .prompt import ConversationError, refusal, shown
from .tools import TOOL_NAME, check_tools

_NAME = re.compile(r"[^\s<|\\/>]{1,64}")  # OpenAI's rule; templates print names next to their control tokens
_MAX_ID_CHARS = 256

# Per role: the keys that a message may have. Keys in _NULL_ONLY are what the OpenAI client's own response objects carry
# when they are sent back as history; here they mean nothing unless they are filled, and then they are refused.
_KEYS = {
    "system": {"role", "content", "name"},
    "user": {"role", "content", "name"},
    "assistant": {"role", "content", "name", "tool_calls", "reasoning_content", "reasoning"},
    "tool": {"role", "content", "name", "tool_call_id"},
}
_NULL_ONLY = {"refusal", "annotations", "audio", "function_call", "tool_calls", "tool_call_id", "name"}
_CALL_KEYS = {"id", "type", "function", "index"}  # a call collected from a stream has its index


def validate_messages(
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: str | Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Check a chat completion's messages, tools and tool_choice; return the messages normalised.

    The rules: at least one message; system messages (`developer` is another name for them) only at the beginning, where
    several are joined by a blank line; after an assistant's tool calls, one tool message for each call's id, nothing
    between; the last message is the user's or a tool's, as there is no way to continue an assistant's message.

    In the result contents are texts (text parts concatenated; None only for an assistant that called tools), roles are
    system, user, assistant or tool, and a call's `arguments` is an object wherever its JSON text is one.

    Raises ConversationError with `param` such as `messages[2].content`.
    """
    plain = plain_messages(messages)
    if not plain:
        raise ConversationError("messages is empty: expected at least one message", param="messages")
    check_tools(tools, tool_choice)
    checked = _join_system([_message(message, f"messages[{index}]") for index, message in enumerate(plain)])
    _check_order(checked, offset=len(plain) - len(checked))
    last = len(plain) - 1
    if checked[-1]["role"] not in ("user", "tool"):
        raise refusal(
            f"messages[{last}].role", checked[-1]["role"], "the last message to be from the user or from a tool"
        )
    return checked


def _message(message: Mapping[str, Any], where: str) -> dict[str, Any]:
    role = message.get("role")
    role = "system" if role == "developer" else role
    if not isinstance(role, str) or role not in _KEYS:
        raise refusal(f"{where}.role", message.get("role"), "system, developer, user, assistant or tool")
    result: dict[str, Any] = {"role": role}
    for key, value in message.items():
        if key in _NULL_ONLY and (value is None or value == []):
            continue
        if key not in _KEYS[role]:
            raise ConversationError(
                f"{where} has the key {shown(key)}: a message from {role} has {', '.join(sorted(_KEYS[role]))}",
                param=f"{where}.{key[:64]}",
            )
        if key == "tool_calls":
            result[key] = _tool_calls(value, f"{where}.tool_calls")
        elif key == "name":
            result[key] = _matching(value, _NAME, f"{where}.name")
        elif key == "tool_call_id":
            result[key] = _identifier(value, f"{where}.tool_call_id")
        elif key.startswith("reasoning"):
            if not isinstance(value, str | None):
                raise refusal(f"{where}.{key}", value, "a text or null")
            result["reasoning_content"] = value
    result["content"] = _content(message.get("content"), role, "tool_calls" in result, f"{where}.content")
    if role == "tool" and "tool_call_id" not in result:
        raise ConversationError(
            f"{where}.tool_call_id is missing: name the call that this message answers", param=f"{where}.tool_call_id"
        )
    return result


def _content(content: object, role: str, has_calls: bool, where: str) -> str | None:
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        return "".join(_part(part, f"{where}[{index}]") for index, part in enumerate(content))
    if content is None and role == "assistant" and has_calls:
        return None
    raise refusal(where, content, "a text or a list of text parts" if content != [] else "at least one part")


def _part(part: object, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or not isinstance(kind, str):
        raise refusal(where, part, 'a part like {"type": "text", "text": "..."}')
    if kind != "text":
        raise refusal(f"{where}.type", kind, "'text': images, audio and files cannot be read")
    if unknown := sorted(set(part) - {"type", "text"}):
        raise ConversationError(f"{where} has the key {shown(unknown[0])}: a text part has type, text", param=where)
    text = part.get("text")
    if not isinstance(text, str):
        raise refusal(f"{where}.text", text, "a text")
    return text


def _matching(value: object, pattern: "re.Pattern[str]", where: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise refusal(where, value, f"a text that matches {pattern.pattern}")
    return value


def _identifier(value: object, where: str) -> str:
    if not isinstance(value, str) or not 0 < len(value) <= _MAX_ID_CHARS:
        raise refusal(where, value, f"a text of 1 to {_MAX_ID_CHARS} characters")
    return value


def _tool_calls(calls: object, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise refusal(where, calls, "a list of tool calls")
    result = [_tool_call(call, f"{where}[{index}]") for index, call in enumerate(calls)]
    ids = [call["id"] for call in result]
    for index, identifier in enumerate(ids):
        if identifier in ids[:index]:
            raise refusal(f"{where}[{index}].id", identifier, "an id that no other call of the message has")
    return result


def _tool_call(call: object, where: str) -> dict[str, Any]:
    if not isinstance(call, dict):
        raise refusal(where, call, "an object")
    if unknown := sorted(set(call) - _CALL_KEYS):
        raise ConversationError(
            f"{where} has the key {shown(unknown[0])}: a tool call has id, type, function", param=where
        )
    if call.get("type", "function") != "function":
        raise refusal(f"{where}.type", call["type"], "'function'")
    function = call.get("function")
    if not isinstance(function, dict) or set(function) != {"name", "arguments"}:
        raise refusal(f"{where}.function", function, "an object with name and arguments")
    return {
        "id": _identifier(call.get("id"), f"{where}.id"),
        "type": "function",
        "function": {
            "name": _matching(function["name"], TOOL_NAME, f"{where}.function.name"),
            "arguments": _arguments(function["arguments"], f"{where}.function.arguments"),
        },
    }


def _arguments(arguments: object, where: str) -> dict[str, Any] | str:
    """Templates want the object. What a model wrote may also be no JSON at all: then its text is all there is."""
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str):
        raise refusal(where, arguments, "a text with a JSON object")
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _join_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The system messages at the beginning as one."""
    leading = next((index for index, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if leading < 2:
        return messages
    joined = {**messages[0], "content": "\n\n".join(message["content"] for message in messages[:leading])}
    return [joined, *messages[leading:]]


def _check_order(messages: list[dict[str, Any]], offset: int) -> None:
    """System first; every tool call answered. `offset` is how many messages `_join_system` took away."""
    unanswered: list[str] = []
    for index, message in enumerate(messages):
        where = f"messages[{index + offset if index else 0}]"
        if message["role"] == "tool":
            if message["tool_call_id"] not in unanswered:
                wanted = f"one of {', '.join(map(shown, unanswered))}" if unanswered else "no tool message here"
                raise refusal(f"{where}.tool_call_id", message["tool_call_id"], wanted)
            unanswered.remove(message["tool_call_id"])
            continue
        if unanswered:
            raise refusal(f"{where}.role", message["role"], f"a tool message that answers {shown(unanswered[0])}")
        if message["role"] == "system" and index:
            raise refusal(f"{where}.role", "system", "system messages only at the beginning")
        unanswered = [call["id"] for call in message.get("tool_calls", ())]
    if unanswered:
        raise ConversationError(
            f"messages: no tool message answers the tool call {shown(unanswered[0])}", param="messages"
        )
