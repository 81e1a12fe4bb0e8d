"""Reasoning models think in a section of their answer: where it is, and how it is told from the content."""

from dataclasses import dataclass
from typing import Literal

from .text_steps import MAX_SPACE, overlap


@dataclass(frozen=True)
class ReasoningMarks:
    """The texts around the section."""

    open: str
    close: str


THINK = ReasoningMarks("<think>", "</think>")
# Marks that models use, with the text of a chat template that tells them.
KNOWN_MARKS = (
    THINK,
    ReasoningMarks("[THINK]", "[/THINK]"),  # Magistral, Ministral 3
    ReasoningMarks("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A Reasoning
    ReasoningMarks("<seed:think>", "</seed:think>"),  # Seed-OSS
    ReasoningMarks("<reasoning>", "</reasoning>"),
)


def find_reasoning_marks(chat_template: str | None = None, conv_template: str | None = None) -> ReasoningMarks | None:
    """The marks of a model: those that its chat template names; None for models that do not reason.

    MLC's conversation templates that reason are those of DeepSeek-R1 and Qwen3.
    """
    if chat_template is not None:
        return next((marks for marks in KNOWN_MARKS if marks.close in chat_template), None)
    if conv_template is not None and conv_template.startswith(("deepseek_r1", "qwen3")):
        return THINK
    if conv_template is not None and conv_template.startswith("ministral3_reasoning"):
        return ReasoningMarks("[THINK]", "[/THINK]")
    return None


def prompt_opens_reasoning(prompt: str, marks: ReasoningMarks) -> bool:
    """Whether the answer to a prompt begins inside the section: templates of R1 end with its opening mark."""
    return prompt.rstrip().endswith(marks.open)


class ReasoningSplitter:
    """Splits one answer into reasoning and content. However its text is split, the parts add up to the same.

    The section is at the beginning of the answer; marks that come later are content. White space next to the marks is
    dropped. Where the section is never closed, all of it is reasoning.
    """

    def __init__(self, marks: ReasoningMarks, *, is_open: bool) -> None:
        """`is_open` says that the prompt has opened the section, see `prompt_opens_reasoning`."""
        self._marks = marks
        self._text = ""  # neither reasoning nor content yet
        self._state: Literal["before", "opened", "inside", "closed", "content"] = "opened" if is_open else "before"

    def put(self, text: str) -> tuple[str, str]:
        """Take more of the answer. Returns the reasoning and the content that are certain now."""
        self._text += text
        reasoning = content = ""
        if self._state == "before":
            self._look_for_open()
        if self._state == "opened":
            self._skip_space("inside")
        if self._state == "inside":
            reasoning = self._until_close()
        if self._state == "closed":
            self._skip_space("content")
        if self._state == "content":
            content, self._text = self._text, ""
        return reasoning, content

    def finish(self) -> tuple[str, str]:
        """The answer has ended: returns the rest of it."""
        rest, self._text = self._text, ""
        return (rest, "") if self._state == "inside" else ("", rest)

    def _look_for_open(self) -> None:
        begun = self._text.lstrip()
        if len(self._text) - len(begun) > MAX_SPACE or not begun.startswith(self._marks.open[: len(begun)]):
            self._state = "content"
        elif begun.startswith(self._marks.open):
            self._state, self._text = "opened", begun[len(self._marks.open) :]

    def _skip_space(self, then: Literal["inside", "content"]) -> None:
        self._text = self._text.lstrip()
        if self._text:
            self._state = then

    def _until_close(self) -> str:
        """The reasoning up to its closing mark, without the white space before that."""
        place = self._text.find(self._marks.close)
        end = place if place >= 0 else len(self._text) - overlap(self._text, self._marks.close)
        space = self._text[max(0, end - MAX_SPACE) : end]
        end -= len(space) - len(space.rstrip())
        reasoning, self._text = self._text[:end], self._text[end:]
        if place >= 0:
            self._state, self._text = "closed", self._text[place - end + len(self._marks.close) :]
        return reasoning
