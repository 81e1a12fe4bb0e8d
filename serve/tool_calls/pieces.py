"""What a stream of generated text is taken apart into: reasoning, content, and calls of tools."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ContentPiece:
    """More of the answer's text."""

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """More of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """The model calls a tool; `index` counts the calls of the answer from 0."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


@dataclass(frozen=True)
class CallEnd:
    """The call is over: no more of its arguments will come."""

    index: int


Piece = ContentPiece | ReasoningPiece | CallStart | CallArguments | CallEnd
