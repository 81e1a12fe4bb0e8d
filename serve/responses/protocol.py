"""The response of OpenAI's Responses API, and the events of its stream.

https://platform.openai.com/docs/api-reference/responses/object and .../responses-streaming
"""

from typing import Any, Literal

from pydantic import BaseModel

from ..protocol import TokenLogprob
from .request import Reasoning, TextConfig, ToolChoice

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(BaseModel):
    """A text of the answer."""

    type: Literal["output_text"] = "output_text"
    text: str = ""
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(BaseModel):
    """What the model thought."""

    type: Literal["reasoning_text"] = "reasoning_text"
    text: str = ""


class OutputMessage(BaseModel):
    """What the model said."""

    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputReasoning(BaseModel):
    """What the model thought before it said or did something; all of it, not a summary."""

    id: str
    type: Literal["reasoning"] = "reasoning"
    status: ItemStatus
    summary: list[Any] = []
    content: list[ReasoningText]


class OutputCall(BaseModel):
    """A call of a function, which an item function_call_output of the next request answers."""

    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputTokensDetails(BaseModel):
    """`cached_tokens` of the input were known from earlier requests; that they are kept costs nothing."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    """`reasoning_tokens` of the output are what the model thought."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """What a response took, in tokens."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseFailure(BaseModel):
    """Why a response failed, in OpenAI's words for it."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteDetails(BaseModel):
    """Why a response is not complete."""

    reason: Literal["max_output_tokens"]


class ToldTool(BaseModel):
    """A tool as the response repeats it."""

    type: Literal["function"] = "function"
    name: str
    description: str | None
    parameters: dict[str, Any] | None
    strict: bool


class ResponseObject(BaseModel):
    """A response; much of it repeats the request. Nothing is stored, whatever the request says."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    background: Literal[False] = False
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem]
    parallel_tool_calls: bool
    previous_response_id: None = None
    prompt_cache_key: str | None
    reasoning: Reasoning
    safety_identifier: str | None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    temperature: float | None
    text: TextConfig
    tool_choice: ToolChoice
    tools: list[ToldTool]
    top_logprobs: int
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class ResponseEvent(BaseModel):
    """Something that happens while a response is made; `sequence_number` counts from 0."""

    type: str
    sequence_number: int = 0


class LifecycleEvent(ResponseEvent):
    """The response begins or ends."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed"
    ]
    response: ResponseObject


class ErrorEvent(ResponseEvent):
    """An error in the middle; `error` repeats it in the form of other routes, for which OpenAI's clients look."""

    type: Literal["error"] = "error"
    code: str | None
    message: str
    param: str | None
    error: dict[str, Any]


class ItemEvent(ResponseEvent):
    """An item of the output begins or ends."""

    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: int
    item: OutputItem


class _InItem(ResponseEvent):
    item_id: str
    output_index: int


class _InPart(_InItem):
    content_index: Literal[0] = 0


class PartEvent(_InPart):
    """The content of an item begins or ends."""

    type: Literal["response.content_part.added", "response.content_part.done"]
    part: OutputText | ReasoningText


class TextDelta(_InPart):
    """More text of a message."""

    type: Literal["response.output_text.delta"] = "response.output_text.delta"
    delta: str
    logprobs: list[TokenLogprob] = []


class TextDone(_InPart):
    """All text of a message."""

    type: Literal["response.output_text.done"] = "response.output_text.done"
    text: str
    logprobs: list[TokenLogprob] = []


class ReasoningDelta(_InPart):
    """More of what the model thinks."""

    type: Literal["response.reasoning_text.delta"] = "response.reasoning_text.delta"
    delta: str


class ReasoningDone(_InPart):
    """All that the model thought."""

    type: Literal["response.reasoning_text.done"] = "response.reasoning_text.done"
    text: str


class ArgumentsDelta(_InItem):
    """More of the JSON text of a call's arguments."""

    type: Literal["response.function_call_arguments.delta"] = "response.function_call_arguments.delta"
    delta: str


class ArgumentsDone(_InItem):
    """A call with its arguments."""

    type: Literal["response.function_call_arguments.done"] = "response.function_call_arguments.done"
    name: str
    arguments: str
