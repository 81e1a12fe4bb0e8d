"""What a conversation template is to the rest of the program: messages in, one prompt out."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

MAX_PROMPT_CHARS = 16 << 20  # about four million tokens: more than any context holds


class ConversationError(ValueError):
    """A conversation, or the template to render it with, is invalid. `param` names the request's field."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class Prompt(NamedTuple):
    """A rendered conversation: `prefix_token_ids`, then `text` encoded without special tokens added."""

    text: str
    prefix_token_ids: tuple[int, ...] = ()


class Template(Protocol):
    """Renders messages that `validate_messages` returned; also says where the model's answer ends.

    The stop conditions come on top of the end-of-sequence tokens of the model's configuration.
    """

    @property
    def name(self) -> str: ...

    @property
    def stop_strings(self) -> tuple[str, ...]: ...

    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt for these messages. Raises ConversationError where the template cannot express them.

        `variables` are what templates of some models look at besides, such as `enable_thinking`; a template that does
        not know one of them is none the wiser.
        """
        ...


def one_line(text: object, limit: int = 300) -> str:
    """`text` with its white space collapsed and its end cut, fit for an error message."""
    line = " ".join(str(text).split())
    return line if len(line) <= limit else line[: limit - 3] + "..."


def shown(value: object) -> str:
    """A short `repr` of a value that somebody else chose: never longer than a line, never an error."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return repr(value) if value.bit_length() <= 128 else "a very large integer"
    return f"{'an' if type(value).__name__[0] in 'aeiouAEIOU' else 'a'} {type(value).__name__}"


def refusal(param: str, value: object, wanted: str) -> ConversationError:
    """The error for a field that has one value and should have another."""
    return ConversationError(f"{param} is {shown(value)}: expected {wanted}", param=param)
