"""MLC's `conv_template` objects: a conversation format as data, in `mlc-chat-config.json` of every MLC folder.

A prompt is, in the order of its parts (`protocol/conversation_protocol.py` of MLC-LLM is the reference):

    system_template with its system_message
    for each message: roles[role] role_content_sep role_templates[role] with its content, then a separator
    roles["assistant"] role_empty_sep
"""

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from .plain import plain_messages, plain_tools
from .prompt import MAX_PROMPT_CHARS, ConversationError, Prompt, shown

_Text = Annotated[str, Field(max_length=64 << 10)]
_TokenId = Annotated[int, Field(ge=0, lt=1 << 31)]
_TokenIds = Annotated[tuple[_TokenId, ...], Field(max_length=256)]
_FUNCTION = "{function_string}"
_CONTENT = {"user": "{user_message}", "assistant": "{assistant_message}", "tool": "{tool_message}"}


class ConvTemplate(BaseModel):
    """A `conv_template` object, with MLC's field names. `ConvTemplate.from_dict` reads one, `to_dict` writes it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    name: str = Field(default="conv_template", max_length=256)
    system_template: _Text = "{system_message}"
    system_message: _Text = ""  # used where the conversation has no system message
    system_prefix_token_ids: _TokenIds | None = None
    # False where the system message is part of the first user message, as in Llama-2's [INST] <<SYS>>.
    add_role_after_system_message: bool = True
    roles: dict[str, _Text]
    role_templates: dict[str, _Text] = {}
    messages: tuple[tuple[str, _Text | None], ...] = ()  # said before the conversation begins
    seps: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=2)]  # after any message, or after user, assistant
    role_content_sep: _Text = ""
    role_empty_sep: _Text = ""
    stop_str: Annotated[tuple[_Text, ...], Field(max_length=256)] = ()
    stop_token_ids: _TokenIds = ()
    # True drops `<think>...</think>` from answers before the last user message, as Qwen3 was trained.
    strip_reasoning_in_history: bool = False
    function_string: _Text = ""
    use_function_calling: bool = False

    @field_validator("name", mode="before")
    @classmethod
    def _default_name(cls, name: object) -> object:
        return "conv_template" if name is None else name

    @field_validator("roles")
    @classmethod
    def _has_both_roles(cls, roles: dict[str, str]) -> dict[str, str]:
        for role in ("user", "assistant"):
            if role not in roles:
                raise ValueError(f"has no {role!r}")
        return roles

    @field_validator("role_templates", mode="before")
    @classmethod
    def _with_defaults(cls, role_templates: object) -> object:
        if role_templates is None or isinstance(role_templates, dict):
            return {**_CONTENT, **(role_templates or {})}
        return role_templates

    @field_validator("stop_str")
    @classmethod
    def _without_empty(cls, stop_str: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(text for text in stop_str if text)  # an empty one would stop every answer at once

    @classmethod
    def from_dict(cls, conv_template: Mapping[str, Any]) -> "ConvTemplate":
        """Check and read an object. Raises ConversationError that names the field."""
        try:
            return cls.model_validate({"role_templates": None, **conv_template})
        except ValidationError as error:
            problem = error.errors()[0]
            where = ".".join(str(part) for part in ("conv_template", *problem["loc"]))
            raise ConversationError(f"{where}: {problem['msg']}") from None

    def to_dict(self) -> dict[str, Any]:
        """The object as it stands in `mlc-chat-config.json`."""
        return self.model_dump(mode="json")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return self.stop_str

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> Prompt:
        """The prompt; `variables` mean nothing to these templates.

        Raises ConversationError for roles, tools and tool calls that the object has no place for.
        """
        turns: list[tuple[str, str | None]] = list(self.messages)
        system_message = self.system_message
        for index, message in enumerate(plain_messages(messages)):
            role, content = message.get("role"), message.get("content")
            if message.get("tool_calls"):
                raise ConversationError(
                    f"messages[{index}].tool_calls: the conversation template {self.name!r} cannot express tool calls: "
                    "use a model with a Jinja chat template",
                    param=f"messages[{index}].tool_calls",
                )
            if not isinstance(content, str):
                raise ConversationError(
                    f"messages[{index}].content is {shown(content)}: expected a text",
                    param=f"messages[{index}].content",
                )
            if role == "system":
                system_message = content
            elif role in self.roles and role in self.role_templates:
                turns.append((role, content))
            else:
                raise ConversationError(
                    f"messages[{index}].role is {shown(role)}: the conversation template {self.name!r} has "
                    f"{', '.join(['system', *self.roles])}",
                    param=f"messages[{index}].role",
                )
        if self.strip_reasoning_in_history:
            turns = _strip_reasoning(turns)
        pieces = self._pieces(system_message, turns, add_generation_prompt)
        pieces = _insert_functions(pieces, self._function_string(tools))
        if sum(map(len, pieces)) > MAX_PROMPT_CHARS:
            raise ConversationError(f"the prompt is longer than {MAX_PROMPT_CHARS} characters", param="messages")
        return Prompt("".join(pieces), self.system_prefix_token_ids or ())

    def _function_string(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        """What `{function_string}` stands for: the functions as JSON, their keys in MLC's order."""
        if not tools:
            return self.function_string
        if not any(_FUNCTION in template for template in (self.system_template, *self.role_templates.values())):
            raise ConversationError(
                f"the conversation template {self.name!r} has no place for tools: use a model that supports them",
                param="tools",
            )
        functions = [tool.get("function", {}) for tool in plain_tools(tools)]
        return json.dumps([{key: f.get(key) for key in ("description", "name", "parameters")} for f in functions])

    def _pieces(
        self, system_message: str, turns: list[tuple[str, str | None]], add_generation_prompt: bool
    ) -> list[str]:
        """[template text, content, template text, ...]: kept apart so that only a template's placeholders count."""
        pieces = _split(self.system_template, "{system_message}", system_message)
        has_system = any(pieces)
        separators = {"assistant": self.seps[-1]}
        for index, (role, content) in enumerate(turns):
            if content is None:
                pieces += [self.roles[role] + self.role_empty_sep, ""]
                continue
            inside_system = index == 0 and has_system and not self.add_role_after_system_message
            pieces += ["" if inside_system else self.roles[role] + self.role_content_sep, ""]
            pieces += _split(self.role_templates[role], _CONTENT.get(role, f"{{{role}_message}}"), content)
            pieces += [separators.get(role, self.seps[0]), ""]
        if add_generation_prompt:
            pieces += [self.roles["assistant"] + self.role_empty_sep, ""]
        return pieces


def _split(template: str, placeholder: str, content: str) -> list[str]:
    """[template text, content, template text, content, ...]; the last content is empty."""
    pieces: list[str] = []
    for text in template.split(placeholder):
        pieces += [text, content]
    return [*pieces[:-1], ""]


def _insert_functions(pieces: list[str], function_string: str) -> list[str]:
    """The functions go where the last `{function_string}` of the template's texts is; the others vanish."""
    result, pending = list(pieces), function_string
    for index in range(len(pieces) - 2, -1, -2):
        if _FUNCTION in pieces[index]:
            before, after = pieces[index].rsplit(_FUNCTION, 1)
            result[index] = before.replace(_FUNCTION, "") + pending + after
            pending = ""
    return result


def _strip_reasoning(turns: list[tuple[str, str | None]]) -> list[tuple[str, str | None]]:
    last_user = max((index for index, (role, _) in enumerate(turns) if role == "user"), default=-1)
    return [
        (role, content.split("</think>")[-1].lstrip("\n"))
        if role == "assistant" and index < last_user and content is not None and "</think>" in content
        else (role, content)
        for index, (role, content) in enumerate(turns)
    ]
