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
from .response_format import ResponseFormat
from .tool_calls import (
    AnswerParser,
    ToolPrompt,
    calls_grammar,
    find_format,
    find_reasoning_marks,
    prompt_opens_reasoning,
    reasoning_rules,
)
from .tool_calls.deltas import special_marks


@dataclass(frozen=True)
class Asked:
    """What a chat completion request asks for, as far as its form goes."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    tool_choice: str | Mapping[str, Any] | None = None
    parallel_tool_calls: bool = True
    text_format: ResponseFormat | None = None  # of an answer that is no call
    variables: Mapping[str, Any] | None = None  # of the model's own template


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
            prompt = self._prompt.render(messages, tools=tools, variables=asked.variables)
        except ConversationError as error:
            raise RequestError(str(error), param=error.param or "messages", code="invalid_value") from None
        is_open = self._marks is not None and prompt_opens_reasoning(prompt.text, self._marks)
        ids = [*prompt.prefix_token_ids, *self._tokenizer.encode(prompt.text)]
        shown = frozenset(self._special.values()) if tools or self._marks else frozenset()
        return Form(ids, self._grammar(asked, tools, self._reasoning(prompt.text, is_open)), tools, is_open, shown)

    def chunks(self, form: Form) -> AnswerChunks:
        """What takes one answer apart."""
        if form.tools is None and self._marks is None:
            return AnswerChunks(None, self._format)
        parser = AnswerParser(self._format, form.tools, self._marks, reasoning_open=form.reasoning_open)
        return AnswerChunks(parser, self._format)

    def _reasoning(self, prompt: str, is_open: bool) -> str | None:
        """Rules for what the model may think first: nothing where the prompt has closed the section, to forbid it."""
        if self._marks is None or prompt.rstrip().endswith(self._marks.close):
            return None
        return reasoning_rules(self._marks, tokens=self._special, is_open=is_open)

    def _grammar(
        self, asked: Asked, tools: Sequence[Mapping[str, Any]] | None, reasoning: str | None
    ) -> GrammarFactory | None:
        """What answers have to be behind the reasoning; None where they are free."""
        calls, either = None, False
        if tools:
            # An answer whose text has a form may be calls as well. Then these have one too.
            either = asked.text_format is not None and asked.tool_choice in (None, "auto")
            calls = calls_grammar(
                self._format,
                tools,
                "required" if either else asked.tool_choice,
                self._compiler().json_term,
                parallel=asked.parallel_tool_calls,
                tokens=self._special,
            )
        if calls is None and asked.text_format is None:
            return None
        start, rules = "answer", []
        if either:
            start = "(calls | answer)"
            rules.append(f"calls: %lark {{{calls}\n}}")
        if reasoning is not None:
            start = f"reasoning {start}"
            rules.append(reasoning)
        compiler = self._compiler()
        if rules:
            compiler = compiler.inside("\n".join([f"start: {start}", *rules]))
        if asked.text_format is not None and (calls is None or either):
            return asked.text_format.compile(compiler)
        assert calls is not None
        return compiler.compile_lark(calls, param="tools")

    def _compiler(self) -> GrammarCompiler:
        if self._grammars is None:
            self._grammars = GrammarCompiler(self._tokenizer, self._vocab_size, self._end_ids)
        return self._grammars
