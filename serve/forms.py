"""What a model's answers may consist of besides text: reasoning, calls of tools, and forms that a request asks for."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.grammar import GrammarCompiler, GrammarFactory
from ..runtime.tokenizer import Tokenizer
from ..templates import ConversationError, Template, validate_messages
from ..templates.jinja import JinjaTemplate
from .answer_chunks import AnswerChunks
from .response_format import read_response_format
from .tool_calls import (
    AnswerParser,
    ToolPrompt,
    calls_grammar,
    find_format,
    find_reasoning_marks,
    prompt_opens_reasoning,
)
from .tool_calls.deltas import special_marks


@dataclass(frozen=True)
class Asked:
    """What a chat completion request asks for, as far as its form goes."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    response_format: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Form:
    """The prompt of a request, and the form of its answers: `grammar` None for free ones."""

    prompt_ids: list[int]
    grammar: GrammarFactory | None
    tools: Sequence[Mapping[str, Any]] | None
    reasoning_open: bool
    shown_ids: frozenset[int]  # special tokens that belong to the answer's text


class AnswerForms:
    """The forms of one model. Safe to use from several threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        template: Template,
        model_type: str | None,
        vocab_size: int,
        end_ids: Iterable[int],
    ) -> None:
        """For logits of `vocab_size` tokens, and answers that end with one of `end_ids`."""
        self._tokenizer = tokenizer
        sources = "\n".join(template.sources.values()) if isinstance(template, JinjaTemplate) else None
        name = template.name if sources is None else None
        self._format = find_format(sources, name, model_type)
        self._marks = find_reasoning_marks(sources, name)
        self._prompt = ToolPrompt(template, self._format)
        self._special = special_marks(tokenizer, self._format, self._marks)
        self._vocab_size, self._end_ids = vocab_size, frozenset(end_ids)
        self._grammars: GrammarCompiler | None = None

    def form(self, asked: Asked) -> Form:
        """Check, render and encode a conversation. Raises RequestError."""
        tools = asked.tools if asked.tools and asked.tool_choice != "none" else None
        try:
            messages = validate_messages(asked.messages, tools=asked.tools, tool_choice=asked.tool_choice)
            prompt = self._prompt.render(messages, tools=tools)
        except ConversationError as error:
            raise RequestError(str(error), param=error.param or "messages", code="invalid_value") from None
        is_open = self._marks is not None and prompt_opens_reasoning(prompt.text, self._marks)
        ids = [*prompt.prefix_token_ids, *self._tokenizer.encode(prompt.text)]
        shown = frozenset(self._special.values()) if tools or self._marks else frozenset()
        return Form(ids, self._grammar(asked, tools, is_open), tools, is_open, shown)

    def chunks(self, form: Form) -> AnswerChunks:
        """What takes one answer apart."""
        if form.tools is None and self._marks is None:
            return AnswerChunks(None, self._format)
        parser = AnswerParser(self._format, form.tools, self._marks, reasoning_open=form.reasoning_open)
        return AnswerChunks(parser, self._format)

    def _grammar(
        self, asked: Asked, tools: Sequence[Mapping[str, Any]] | None, reasoning_open: bool
    ) -> GrammarFactory | None:
        calls = None
        if tools:
            calls = calls_grammar(
                self._format,
                tools,
                asked.tool_choice,
                self._compiler().json_term,
                parallel=asked.parallel_tool_calls,
                tokens=self._special,
                reasoning=self._marks,
                reasoning_open=reasoning_open,
            )
        if calls is not None:
            if asked.response_format not in (None, {"type": "text"}):
                raise RequestError(
                    "response_format and tools that are forced or strict are given: an answer can have one form only",
                    param="response_format",
                    code="invalid_value",
                )
            return self._compiler().compile_lark(calls, param="tools")
        wanted = read_response_format(asked.response_format)
        return None if wanted is None else wanted.compile(self._compiler())

    def _compiler(self) -> GrammarCompiler:
        if self._grammars is None:
            self._grammars = GrammarCompiler(self._tokenizer, self._vocab_size, self._end_ids)
        return self._grammars
