"""The request of OpenAI's Responses API. https://platform.openai.com/docs/api-reference/responses/create

The server keeps nothing between requests: what would need that is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Discriminator, Field, Tag, field_validator, model_validator
from pydantic_core import PydanticCustomError

from ...runtime.errors import RequestError
from ..request import GenerationRequest, Strict

LOGPROBS = "message.output_text.logprobs"

# Fields that need what this server does not have, with values that ask for nothing, and what to do instead.
_REFUSED: dict[str, tuple[tuple[object, ...], str]] = {
    "previous_response_id": ((None,), "the server keeps no responses: send the whole conversation as input"),
    "conversation": ((None,), "the server keeps no conversations: send the whole of it as input"),
    "prompt": ((None,), "the server keeps no prompts: send instructions and input"),
    "background": ((None, False), "the server answers at once: leave it out, or stream"),
    "truncation": ((None, "disabled"), "the server never cuts an input: send a shorter one"),
}


class _Given(Strict):
    """An object inside of a request. OpenAI's client writes null for what its own objects lack."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: Any) -> Any:
        return {name: inner for name, inner in value.items() if inner is not None} if isinstance(value, dict) else value


class TextPart(_Given):
    """A text of a message; what the server adds to its own means nothing when they come back."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = None
    logprobs: list[Any] | None = None

    @field_validator("type", mode="before")
    @classmethod
    def _is_text(cls, value: object) -> object:
        if value not in ("input_text", "output_text"):
            message = "expected input_text or output_text, as images, audio and files cannot be read"
            raise PydanticCustomError("unsupported_value", message)
        return value


def _text_or_list(value: object) -> str | None:
    return ":text" if isinstance(value, str) else ":list" if isinstance(value, list) else None


# The tags of unions are part of a problem's place: a colon tells them from fields.
Content = Annotated[
    Annotated[str, Tag(":text")] | Annotated[list[TextPart], Tag(":list")],
    Discriminator(
        _text_or_list, custom_error_type="invalid_type", custom_error_message="expected a text or a list of text parts"
    ),
]


class _Item(_Given):
    id: str | None = None
    status: str | None = None


class MessageItem(_Item):
    """Something that was said."""

    type: Literal["message"] = "message"
    role: Literal["user", "system", "developer", "assistant"]
    content: Content
    phase: str | None = None


class FunctionCallItem(_Item):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: str
    name: str
    arguments: str


class FunctionCallOutputItem(_Item):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: str
    output: Content


class _ReasoningPart(_Given):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class ReasoningItem(_Item):
    """What the model thought."""

    type: Literal["reasoning"]
    summary: list[_ReasoningPart] = Field(default_factory=list)
    content: list[_ReasoningPart] | None = None


_ITEMS = ("message", "function_call", "function_call_output", "reasoning")


def _kind_of_item(item: object) -> str | None:
    kind = item.get("type") or "message" if isinstance(item, dict) else None
    return f":{kind}" if kind in _ITEMS else None


Item = Annotated[
    Annotated[MessageItem, Tag(":message")]
    | Annotated[FunctionCallItem, Tag(":function_call")]
    | Annotated[FunctionCallOutputItem, Tag(":function_call_output")]
    | Annotated[ReasoningItem, Tag(":reasoning")],
    Discriminator(
        _kind_of_item,
        custom_error_type="unsupported_value",
        custom_error_message=f"expected an object whose type is one of {', '.join(_ITEMS)}",
    ),
]


class FunctionTool(_Given):
    """A function that the model may call."""

    type: Literal["function"]
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class NamedTool(_Given):
    """A tool that is called, or may be."""

    type: Literal["function"]
    name: str


class AllowedTools(_Given):
    """Those of the tools that may be called."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: list[NamedTool]


def _kind_of_choice(value: object) -> str | None:
    if isinstance(value, str):
        return ":text"
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return f":{kind}" if kind in ("function", "allowed_tools") else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag(":text")]
    | Annotated[NamedTool, Tag(":function")]
    | Annotated[AllowedTools, Tag(":allowed_tools")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="unsupported_value",
        custom_error_message="expected none, auto, required, or an object whose type is function or allowed_tools",
    ),
]


class TextConfig(_Given):
    """The form of the text: `format` is text, json_object, json_schema, or one of the further ones of chat completions.
    `verbosity` means something to OpenAI's models only."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class Reasoning(_Given):
    """How much to think, as far as the model's template knows of it; a summary is never made."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class ResponseStreamOptions(Strict):
    """What a stream carries besides the response."""

    include_obfuscation: Literal[False] | None = None


class ResponsesRequest(GenerationRequest):
    """A request for a response. `store` may be true: nothing is stored, and the response says so."""

    model_config = ConfigDict(title="ResponsesRequest")

    kind = "response request"

    input: Annotated[
        Annotated[str, Tag(":text")] | Annotated[list[Item], Tag(":list")],
        Discriminator(
            _text_or_list, custom_error_type="invalid_type", custom_error_message="expected a text or a list of items"
        ),
    ]
    instructions: str | None = None
    max_output_tokens: int | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["message.output_text.logprobs", "reasoning.encrypted_content"]] | None = None
    top_logprobs: int | None = None
    max_tool_calls: int | None = Field(None, description="Of tools that the server runs; it has none.")
    stream_options: ResponseStreamOptions | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    truncation: str | None = None

    @classmethod
    def place(cls, loc: tuple[int | str, ...]) -> str:
        """As `input[2].content[0].text`; the tags of unions are no part of it."""
        parts = [part for part in loc if not str(part).startswith(":")]
        return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in parts)[1:]

    @classmethod
    def param(cls, loc: tuple[int | str, ...]) -> str:
        """The whole place."""
        return cls.place(loc)

    @property
    def items(self) -> list[MessageItem | FunctionCallItem | FunctionCallOutputItem | ReasoningItem]:
        """The input as a list of items."""
        return [MessageItem(role="user", content=self.input)] if isinstance(self.input, str) else self.input

    def check(self) -> None:
        """Raise RequestError for what the server cannot do, and for fields that do not go together."""
        for field, (harmless, advice) in _REFUSED.items():
            if getattr(self, field) not in harmless:
                raise RequestError(f"{field} is given, but {advice}", param=field, code="unsupported_value")
        if self.input == []:
            raise RequestError("input is an empty list: expected a text or at least one item", param="input",
                               code="invalid_value")  # fmt: skip
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options is given: it is only allowed when stream is true", param="stream_options"
            )
        if self.top_logprobs and LOGPROBS not in (self.include or ()):
            raise RequestError(
                f"top_logprobs is {self.top_logprobs}: it needs {LOGPROBS!r} in include", param="top_logprobs"
            )
