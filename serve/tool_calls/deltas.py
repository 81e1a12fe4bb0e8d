"""The pieces of an answer as OpenAI's deltas, and deltas folded to a message."""

from collections.abc import Iterable, Mapping
from typing import Protocol

from ..protocol import Delta, FunctionCall, FunctionCallDelta, Message, ToolCall, ToolCallDelta
from .answer_parser import new_call_id
from .formats import ToolFormat
from .pieces import CallArguments, CallStart, ContentPiece, Piece, ReasoningPiece
from .reasoning import ReasoningMarks


class Vocabulary(Protocol):
    """What a tokenizer tells about its special tokens."""

    special_ids: frozenset[int]

    def id_of(self, token: str) -> int | None: ...


def special_marks(vocabulary: Vocabulary, form: ToolFormat, marks: ReasoningMarks | None) -> Mapping[str, int]:
    """Ids of the marks that are special tokens: `calls_grammar` wants them, and answers have to show them as text."""
    texts = (*form.tokens, *(() if marks is None else (marks.open, marks.close)))
    found = {text: vocabulary.id_of(text) for text in texts}
    return {text: token for text, token in found.items() if token is not None and token in vocabulary.special_ids}


def deltas(pieces: Iterable[Piece], form: ToolFormat) -> Iterable[Delta]:
    """A delta for each piece that has something to tell; a call gets its id where it begins."""
    for piece in pieces:
        if isinstance(piece, ContentPiece):
            yield Delta(content=piece.text)
        elif isinstance(piece, ReasoningPiece):
            yield Delta(reasoning_content=piece.text)
        elif isinstance(piece, CallStart):
            function = FunctionCallDelta(name=piece.name, arguments="")
            call = ToolCallDelta(index=piece.index, id=new_call_id(form), type="function", function=function)
            yield Delta(tool_calls=[call])
        elif isinstance(piece, CallArguments):
            yield Delta(tool_calls=[ToolCallDelta(index=piece.index, function=FunctionCallDelta(arguments=piece.text))])


class MessageFolder:
    """Folds the deltas of one answer to its message."""

    def __init__(self) -> None:
        self._content: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[tuple[str, str, list[str]]] = []  # id, name, parts of the arguments

    def add(self, delta: Delta) -> None:
        """Take the next delta."""
        self._content.append(delta.content or "")
        self._reasoning.append(delta.reasoning_content or "")
        for call in delta.tool_calls or []:
            function = call.function or FunctionCallDelta()
            if call.id is not None:
                self._calls.append((call.id, function.name or "", []))
            self._calls[call.index][2].append(function.arguments or "")

    def message(self) -> Message:
        """All of the answer; its content is null where there are calls and no text."""
        content = "".join(self._content)
        calls = [
            ToolCall(id=identifier, function=FunctionCall(name=name, arguments="".join(parts)))
            for identifier, name, parts in self._calls
        ]
        return Message(
            content=None if calls and not content else content,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=calls or None,
        )
