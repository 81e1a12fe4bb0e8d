"""A request for a response as the chat completion request that it stands for."""

import re
import uuid
from collections.abc import Mapping
from typing import Any

from ...runtime.errors import RequestError
from ..protocol import ChatCompletionRequest
from ..request import GenerationRequest
from .request import (
    LOGPROBS,
    AllowedTools,
    FunctionCallItem,
    FunctionCallOutputItem,
    FunctionTool,
    MessageItem,
    NamedTool,
    ReasoningItem,
    ResponsesRequest,
    TextPart,
)

# Fields of chat completions, and what is the same here.
_NAMES = (
    (re.compile(r"tools\[(\d+)\]\.function"), r"tools[\1]"),
    (re.compile(r"tool_choice\.function"), "tool_choice"),
    (re.compile(r"response_format\.json_schema"), "text.format"),
    (re.compile(r"response_format"), "text.format"),
    (re.compile(r"max_(completion_)?tokens$"), "max_output_tokens"),
    (re.compile(r"messages$"), "input"),
)
_MESSAGE = re.compile(r"messages\[(\d+)\](?:\.(role|content|tool_call_id))?.*")


def chat_request(request: ResponsesRequest) -> tuple[ChatCompletionRequest, list[str]]:
    """The chat completion request, and for each of its messages the place that it comes from.

    Raises RequestError.
    """
    messages, places = _messages(request)
    shared = {name: value for name in GenerationRequest.model_fields if (value := getattr(request, name)) is not None}
    fields = {
        **shared,
        "request_id": request.request_id or f"resp_{uuid.uuid4().hex}",
        "messages": messages,
        "max_completion_tokens": request.max_output_tokens,
        "tools": _tools(request.tools, request.tool_choice),
        "tool_choice": _tool_choice(request.tool_choice),
        "parallel_tool_calls": request.parallel_tool_calls,
        "response_format": _response_format(request),
        "logprobs": True if LOGPROBS in (request.include or ()) else None,
        "top_logprobs": request.top_logprobs,
        "reasoning_effort": None if request.reasoning is None else request.reasoning.effort,
    }
    return ChatCompletionRequest.model_validate(fields), places


def renamed(error: RequestError, places: list[str]) -> RequestError:
    """What is wrong with the chat completion request, in terms of the request for a response."""
    if error.param is None:
        return error
    param = _MESSAGE.sub(lambda found: _place(found, places), error.param)
    for pattern, name in _NAMES:
        if pattern.match(error.param):
            param = pattern.sub(name, error.param)
            break
    return RequestError(str(error).replace(error.param, param), param=param, code=error.code)


def _place(found: "re.Match[str]", places: list[str]) -> str:
    place = places[int(found[1])]
    if not place.startswith("input["):
        return place
    inner = {"role": ".role", "content": ".content", "tool_call_id": ".call_id", None: ""}
    return place + inner[found[2]]


def _messages(request: ResponsesRequest) -> tuple[list[dict[str, Any]], list[str]]:
    """Messages with their places. What the model thought, said and called in one turn is one message."""
    messages: list[dict[str, Any]] = []
    places: list[str] = []

    def add(message: dict[str, Any], place: str) -> dict[str, Any]:
        messages.append(message)
        places.append(place)
        return message

    def turn(place: str) -> dict[str, Any]:
        """The model's message that is being put together, or a new one."""
        if messages and messages[-1]["role"] == "assistant":
            return messages[-1]
        return add({"role": "assistant", "content": None}, place)

    if request.instructions is not None:
        add({"role": "system", "content": request.instructions}, "instructions")
    for index, item in enumerate(request.items):
        place = "input" if isinstance(request.input, str) else f"input[{index}]"
        if isinstance(item, FunctionCallOutputItem):
            add({"role": "tool", "tool_call_id": item.call_id, "content": _text(item.output)}, place)
        elif isinstance(item, MessageItem) and item.role != "assistant":
            add({"role": item.role, "content": _text(item.content)}, place)
        elif isinstance(item, MessageItem):
            message = turn(place)
            message["content"] = _joined(message["content"], _text(item.content))
        elif isinstance(item, FunctionCallItem):
            message = turn(place)
            function = {"name": item.name, "arguments": item.arguments}
            call = {"id": item.call_id, "type": "function", "function": function}
            message["tool_calls"] = [*message.get("tool_calls", []), call]
        else:
            message = turn(place)
            message["reasoning_content"] = _joined(message.get("reasoning_content"), _thoughts(item))
    for message in messages:
        if message["content"] is None and "tool_calls" not in message:
            message["content"] = ""  # an answer that ended while it thought
    return messages, places


def _joined(before: str | None, text: str) -> str:
    return f"{before}\n{text}" if before else text


def _text(content: str | list[TextPart]) -> str:
    return content if isinstance(content, str) else "".join(part.text for part in content)


def _thoughts(item: ReasoningItem) -> str:
    return "".join(part.text for part in item.content or item.summary)


def _tools(tools: list[FunctionTool] | None, choice: object) -> list[dict[str, Any]] | None:
    if tools is None:
        return None
    if isinstance(choice, AllowedTools):
        known, allowed = {tool.name for tool in tools}, [tool.name for tool in choice.tools]
        for index, name in enumerate(allowed):
            if name not in known:
                raise RequestError(
                    f"tool_choice.tools[{index}].name is {name!r:.80}: expected one of the tools",
                    param=f"tool_choice.tools[{index}].name",
                    code="invalid_value",
                )
        tools = [tool for tool in tools if tool.name in allowed]
    return [{"type": "function", "function": tool.model_dump(exclude={"type"}, exclude_none=True)} for tool in tools]


def _tool_choice(choice: object) -> Any:
    if isinstance(choice, NamedTool):
        return {"type": "function", "function": {"name": choice.name}}
    return choice.mode if isinstance(choice, AllowedTools) else choice


def _response_format(request: ResponsesRequest) -> Mapping[str, Any] | None:
    given = None if request.text is None else request.text.format
    if given is None or given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {name: value for name, value in given.items() if name != "type"}}
