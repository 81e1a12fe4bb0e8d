"""Hugging Face chat templates: jinja2 programs that came with a model, rendered as transformers renders them."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from .plain import check_utf8, plain_messages, plain_tools
from .prompt import MAX_PROMPT_CHARS, ConversationError, Prompt, one_line, shown

if TYPE_CHECKING:
    import jinja2

    from .sandbox import Sandbox

_T = TypeVar("_T")

MAX_TEMPLATE_CHARS = 256 << 10
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


@cache
def _sandbox() -> "Sandbox":
    from .sandbox import Sandbox  # jinja2 takes tens of milliseconds to import

    return Sandbox()


class JinjaTemplate:
    """A chat template in Hugging Face's format.

    `source` is the template's text, or several named ones as a mapping or as a list of `{"name", "template"}`: then
    "tool_use" is taken for conversations with tools and "default" for all others. The keyword arguments are the special
    tokens that templates read: `bos_token`, `eos_token`, ... Raises ConversationError for text that does not compile.
    """

    stop_strings: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()

    def __init__(
        self,
        source: str | Mapping[str, str] | Sequence[Mapping[str, str]],
        *,
        name: str = "chat_template",
        **special_tokens: str | None,
    ) -> None:
        self.name = name
        self.special_tokens = {key: token for key, token in special_tokens.items() if token is not None}
        self.sources = _named_sources(source, name)
        self._compiled = {key: self._compile(text) for key, text in self.sources.items()}

    @property
    def bos_token(self) -> str | None:
        """The text of the token that begins a sequence, where the model has one."""
        return self.special_tokens.get("bos_token")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt, with every special token in its text. Raises ConversationError.

        The arguments of earlier tool calls are objects, as Hugging Face documents them; a template that wants the JSON
        text of them gets that.
        """
        known: dict[str, Any] = {
            **(variables or {}),
            **self.special_tokens,
            "messages": [_message_variables(message) for message in plain_messages(messages)],
            "tools": plain_tools(tools) if tools else None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._template_for(bool(tools))
        try:
            return Prompt(self._render(template, known))
        except ConversationError:
            if not _arguments_to_text(known["messages"]):
                raise
            return Prompt(self._render(template, known))

    def _template_for(self, with_tools: bool) -> "jinja2.Template":
        key = "tool_use" if with_tools and "tool_use" in self._compiled else "default"
        if with_tools and "tools" not in self.sources[key]:
            raise ConversationError(
                f"{self.name} has no place for tools: use a model that supports them", param="tools"
            )
        return self._compiled[key]

    def _compile(self, source: str) -> "jinja2.Template":
        return self._guarded(lambda: _sandbox().compile_template(source), param=None)

    def _render(self, template: "jinja2.Template", variables: Mapping[str, Any]) -> str:
        def join() -> str:
            pieces, chars = [], 0
            for piece in template.generate(variables):
                chars += len(piece)
                if chars > MAX_PROMPT_CHARS:
                    raise ConversationError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters")
                pieces.append(piece)
            text = "".join(pieces)
            check_utf8(text, "the prompt")
            return text

        return self._guarded(join, param="messages")

    def _guarded(self, work: "Callable[[], _T]", param: str | None) -> "_T":
        """Run template code. It can raise any exception at all, so every one becomes a ConversationError."""
        from .meter import metered

        try:
            with metered():
                return work()
        except RecursionError:
            raise ConversationError(f"{self.name}: the template recurses too deeply", param=param) from None
        except MemoryError:
            raise ConversationError(f"{self.name}: the template needs too much memory", param=param) from None
        except Exception as error:
            # jinja2's own messages speak for themselves, and so do those that a template raises; a KeyError's does not.
            own = type(error).__module__.startswith("jinja2") or isinstance(error, ConversationError)
            kind = "" if own else f"{type(error).__name__}: "
            raise ConversationError(f"{self.name}: {kind}{one_line(error)}", param=param) from None


def _named_sources(source: str | Mapping[str, str] | Sequence[Mapping[str, str]], name: str) -> dict[str, str]:
    """The template's texts by name. Raises ConversationError where there is no default, or where one is no text."""
    if isinstance(source, str):
        named: dict[Any, Any] = {"default": source}
    elif isinstance(source, Mapping):
        named = dict(source)
    elif isinstance(source, list | tuple) and all(isinstance(item, Mapping) for item in source):
        named = {item.get("name"): item.get("template") for item in source}
    else:
        raise ConversationError(f"{name} is {shown(source)}: expected a text or a list of named texts")
    if "default" not in named:
        raise ConversationError(f"{name} has no template named 'default', only {one_line(sorted(map(str, named)))}")
    for key, text in named.items():
        if not isinstance(text, str):
            raise ConversationError(f"{name}: template {shown(key)} is {shown(text)}: expected a text")
        if len(text) > MAX_TEMPLATE_CHARS:
            raise ConversationError(f"{name} has {len(text)} characters; a template has at most {MAX_TEMPLATE_CHARS}")
    return named


def _message_variables(message: Mapping[str, Any]) -> dict[str, Any]:
    """What a template sees of a message: absent keys instead of null ones, and reasoning under its usual names."""
    variables = {key: value for key, value in message.items() if value is not None}
    reasoning = next((variables[key] for key in _REASONING_KEYS if key in variables), None)
    return variables if reasoning is None else {"thinking": reasoning, **variables, "reasoning_content": reasoning}


def _arguments_to_text(messages: list[dict[str, Any]]) -> bool:
    """Replace tool calls' argument objects by their JSON text, in place. True if there were any."""
    changed = False
    for message in messages:
        for call in message.get("tool_calls", ()):
            function = call.get("function", {}) if isinstance(call, dict) else {}
            if isinstance(function.get("arguments"), dict):
                function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
                changed = True
    return changed
