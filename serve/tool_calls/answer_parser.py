"""One answer, taken apart completely: reasoning, content, calls."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import ToolFormat
from .parser import ToolCallParser
from .pieces import ContentPiece, Piece, ReasoningPiece
from .reasoning import ReasoningMarks, ReasoningSplitter

_ID_CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


class AnswerParser:
    """Splits an answer: reasoning, where the model has `marks` for it; content; calls, where there are tools.

    `reasoning_open` says that the prompt has opened the reasoning, see `prompt_opens_reasoning`.
    """

    def __init__(
        self,
        form: ToolFormat,
        tools: Sequence[Mapping[str, Any]] | None,
        marks: ReasoningMarks | None = None,
        *,
        reasoning_open: bool = False,
    ) -> None:
        self._reasoning = None if marks is None else ReasoningSplitter(marks, is_open=reasoning_open)
        self._calls = ToolCallParser(form, tools) if tools else None

    def put(self, text: str) -> list[Piece]:
        """Take more of the answer. Returns what is certain now."""
        reasoning, content = ("", text) if self._reasoning is None else self._reasoning.put(text)
        return self._pieces(reasoning, content)

    def finish(self) -> list[Piece]:
        """The answer has ended: returns the rest of it."""
        reasoning, content = ("", "") if self._reasoning is None else self._reasoning.finish()
        return [*self._pieces(reasoning, content), *([] if self._calls is None else self._calls.finish())]

    def _pieces(self, reasoning: str, content: str) -> list[Piece]:
        pieces: list[Piece] = [ReasoningPiece(reasoning)] if reasoning else []
        if self._calls is not None:
            return [*pieces, *self._calls.put(content)]
        return [*pieces, ContentPiece(content)] if content else pieces


def new_call_id(form: ToolFormat) -> str:
    """An id for a call, in the form that the model's own template accepts when it comes back."""
    identifier = "".join(secrets.choice(_ID_CHARACTERS) for _ in range(9 if form.short_ids else 24))
    return identifier if form.short_ids else f"call_{identifier}"
