"""Answers with calls of tools, and ways to take them apart."""

import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

from mlc_llm.serve.tool_calls import (
    FORMATS,
    CallArguments,
    CallEnd,
    CallStart,
    ContentPiece,
    Piece,
    ReasoningPiece,
    ToolCallParser,
)


def tool(name: str, parameters: Any = None, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **fields}}


TOOLS = [
    tool("weather", {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}),
    tool("get-time"),
]


def joined(pieces: Iterable[Piece]) -> list[tuple[str, ...]]:
    """("content", text), ("reasoning", text), ("call", name, arguments) in their order."""
    result: list[tuple[str, ...]] = []
    calls, is_open = 0, False
    for piece in pieces:
        if isinstance(piece, CallStart):
            assert (piece.index, is_open) == (calls, False)
            result.append(("call", piece.name, ""))
            calls, is_open = calls + 1, True
        elif isinstance(piece, CallArguments):
            assert (piece.index, is_open) == (calls - 1, True)
            assert piece.text
            result[-1] = (*result[-1][:2], result[-1][2] + piece.text)
        elif isinstance(piece, CallEnd):
            assert (piece.index, is_open) == (calls - 1, True)
            is_open = False
        else:
            kind = "content" if isinstance(piece, ContentPiece) else "reasoning"
            assert isinstance(piece, ContentPiece | ReasoningPiece)
            assert piece.text
            if result and result[-1][0] == kind:
                result[-1] = (kind, result[-1][1] + piece.text)
            else:
                result.append((kind, piece.text))
    assert not is_open
    return result


def parsed(form: str, parts: Iterable[str], tools: list[dict[str, Any]] = TOOLS) -> list[tuple[str, ...]]:
    """What an answer that comes in parts is taken apart into."""
    parser = ToolCallParser(FORMATS[form], tools)
    pieces = [piece for part in parts for piece in parser.put(part)]
    return joined([*pieces, *parser.finish()])


def cut(text: str, places: Iterable[int]) -> list[str]:
    """The text in parts, divided at these places."""
    borders = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[start:end] for start, end in pairwise(borders)]


def splits(text: str) -> Iterator[list[str]]:
    """The text in one part, in its characters, and in every two parts."""
    yield [text]
    yield list(text)
    for place in range(len(text) + 1):
        yield cut(text, [place])


def called(name: str, **arguments: Any) -> tuple[str, str, str]:
    """A call as `joined` tells it, for models that print JSON as Python does."""
    return ("call", name, json.dumps(arguments, ensure_ascii=False))
