"""Calls of tools, and reasoning: how models write them, how they are found in answers, forced, and shown in prompts.

form = find_format(chat_template)                     the row of the model's family
prompt = ToolPrompt(template, form).render(messages, tools=tools)
grammar = calls_grammar(form, tools, tool_choice)     None where the answer is free
parser = AnswerParser(form, tools, find_reasoning_marks(chat_template))
for text in answer: parser.put(text)                  pieces: reasoning, content, calls
"""

from .answer_parser import AnswerParser, new_call_id
from .formats import FORMATS, Mark, ToolFormat, find_format
from .grammar import calls_grammar, reasoning_rules
from .parser import ToolCallParser
from .pieces import CallArguments, CallEnd, CallStart, ContentPiece, Piece, ReasoningPiece
from .prompt import ToolPrompt
from .reasoning import ReasoningMarks, ReasoningSplitter, find_reasoning_marks, prompt_opens_reasoning

__all__ = [
    "FORMATS",
    "AnswerParser",
    "CallArguments",
    "CallEnd",
    "CallStart",
    "ContentPiece",
    "Mark",
    "Piece",
    "ReasoningMarks",
    "ReasoningPiece",
    "ReasoningSplitter",
    "ToolCallParser",
    "ToolFormat",
    "ToolPrompt",
    "calls_grammar",
    "find_format",
    "find_reasoning_marks",
    "new_call_id",
    "prompt_opens_reasoning",
    "reasoning_rules",
]
