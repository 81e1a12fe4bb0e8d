"""How tools, their calls and their results get into a prompt: by the model's own template, else as text.

What a template can express is found out by rendering an example with it, as templates say it nowhere.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

from ...templates import ConversationError, Prompt, Template
from .formats import ToolFormat

_Messages = Sequence[Mapping[str, Any]]
_SHORT_ID = re.compile(r"[a-zA-Z0-9]{9}")
_PROBE_ID = "abcdefghi"
_PROBE_TOOL = {
    "type": "function",
    "function": {
        "name": "probe_tool",
        "description": "A tool.",
        "parameters": {"type": "object", "properties": {"probe_argument": {"type": "string"}}},
    },
}
_PROBE_CALL = {
    "id": _PROBE_ID,
    "type": "function",
    "function": {"name": "probe_tool", "arguments": {"probe_argument": "probe_value"}},
}
_PROBE_USER = {"role": "user", "content": "probe_question"}


class ToolPrompt:
    """Renders conversations that have tools, for one model. Safe to use from several threads."""

    def __init__(self, template: Template, form: ToolFormat) -> None:
        self._template = template
        self._form = form

    def render(
        self,
        messages: _Messages,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> Prompt:
        """The prompt of messages that `validate_messages` returned; raises ConversationError.

        `tools` are those that the model may call: none where the request's `tool_choice` is "none". `variables` are
        the template's own.
        """
        messages = self._with_calls(messages)
        if tools and not self._shows_tools:
            messages, tools = self._with_instructions(messages, tools), None
        return self._template.render(messages, tools=tools, variables=variables)

    @cached_property
    def _shows_tools(self) -> bool:
        return self._renders([_PROBE_USER], "probe_tool", "probe_argument", tools=[_PROBE_TOOL])

    @cached_property
    def _shows_system(self) -> bool:
        return self._renders([{"role": "system", "content": "probe_system"}, _PROBE_USER], "probe_system")

    @cached_property
    def _calls_as(self) -> Literal["null", "empty", "text"]:
        """How calls are given to the template: with content that is null, or empty; or as the content."""
        result = {"role": "tool", "content": "probe_result", "tool_call_id": _PROBE_ID}
        contents: tuple[tuple[Literal["null", "empty"], str | None], ...] = (("null", None), ("empty", ""))
        for name, content in contents:
            call = {"role": "assistant", "content": content, "tool_calls": [_PROBE_CALL]}
            if self._renders([_PROBE_USER, call, result], "probe_tool", "probe_value", "probe_result"):
                return name
        return "text"

    def _renders(self, messages: _Messages, *texts: str, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        try:
            prompt = self._template.render(messages, tools=tools).text
        except ConversationError:
            return False
        return all(text in prompt for text in texts)

    def _with_calls(self, messages: _Messages) -> _Messages:
        """Messages whose calls and results the template can express."""
        if not any(message["role"] == "tool" or message.get("tool_calls") for message in messages):
            return messages
        messages = _results_in_order(messages)
        if self._calls_as == "text":
            return _as_text(messages, self._form)
        if self._calls_as == "empty":
            messages = [{**message, "content": message["content"] or ""} for message in messages]
        if self._form.single:
            messages = _one_call_each(messages)
        return _with_short_ids(messages) if self._form.short_ids else messages

    def _with_instructions(self, messages: _Messages, tools: Sequence[Mapping[str, Any]]) -> _Messages:
        """Messages that say what the tools are and how they are called."""
        text = instructions(self._form, tools)
        first, *rest = messages
        if first["role"] == "system":
            return [{**first, "content": f"{first['content']}\n\n{text}"}, *rest]
        if self._shows_system:
            return [{"role": "system", "content": text}, first, *rest]
        return [{**first, "content": f"{text}\n\n{first['content']}"}, *rest]


def instructions(form: ToolFormat, tools: Sequence[Mapping[str, Any]]) -> str:
    """What tools there are and how to call them, for models whose template has no place for it."""
    functions = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call functions to help the user. These are their signatures, one on a line:\n"
        f"<tools>\n{functions}\n</tools>\n\n"
        "To call functions, answer with nothing but the calls, in this format:\n"
        f"{form.write([('name_of_function', {'name_of_argument': 'value'})])}"
    )


def _results_in_order(messages: _Messages) -> _Messages:
    """The results of several calls in the order of the calls: most templates show no ids."""
    places: dict[str, int] = {}
    result: list[Mapping[str, Any]] = []
    start = 0  # where in `result` the results of the last calls begin
    for message in messages:
        result.append(message)
        if message["role"] == "tool":
            result[start:] = sorted(result[start:], key=lambda item: places[item["tool_call_id"]])
        else:
            start = len(result)
            places = {call["id"]: place for place, call in enumerate(message.get("tool_calls") or [])}
    return result


def _as_text(messages: _Messages, form: ToolFormat) -> _Messages:
    """Calls as the model writes them; results, and what the user says after them, as one message of the user."""
    result: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        if message["role"] == "tool":
            new = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        elif calls := message.get("tool_calls"):
            written = form.write([(c["function"]["name"], _as_object(c["function"]["arguments"])) for c in calls])
            new = {**message, "content": "\n".join(filter(None, [message["content"], written]))}
            del new["tool_calls"]
        else:
            new = dict(message)
        if after_result and new["role"] == "user":
            result[-1]["content"] += f"\n{new['content']}"
        else:
            result.append(new)
        after_result = message["role"] == "tool" or (after_result and new["role"] == "user")
    return result


def _as_object(arguments: dict[str, Any] | str) -> dict[str, Any]:
    """Arguments that are no JSON object can only be shown as the text that they are."""
    return arguments if isinstance(arguments, dict) else {"arguments": arguments}


def _one_call_each(messages: _Messages) -> _Messages:
    """Calls of one message as messages of their own, each with its result behind it."""
    result: list[Mapping[str, Any]] = []
    pending: dict[str, Mapping[str, Any]] = {}
    for message in messages:
        calls = message.get("tool_calls") or []
        if len(calls) > 1:
            pending = {call["id"]: {**message, "content": None, "tool_calls": [call]} for call in calls}
            pending[calls[0]["id"]] = {**message, "tool_calls": calls[:1]}
            continue
        if message["role"] == "tool" and message["tool_call_id"] in pending:
            result.append(pending.pop(message["tool_call_id"]))
        result.append(message)
    return result


def _with_short_ids(messages: _Messages) -> _Messages:
    """Ids of nine letters and digits, on which Mistral's templates insist, in place of all others."""
    result = []
    for message in messages:
        new = dict(message)
        if "tool_call_id" in new:
            new["tool_call_id"] = _short_id(new["tool_call_id"])
        if calls := new.get("tool_calls"):
            new["tool_calls"] = [{**call, "id": _short_id(call["id"])} for call in calls]
        result.append(new)
    return result


def _short_id(identifier: str) -> str:
    return identifier if _SHORT_ID.fullmatch(identifier) else hashlib.sha256(identifier.encode()).hexdigest()[:9]
