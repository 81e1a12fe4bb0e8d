"""Grammars that make a model call tools as its family writes calls, in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. What follows one of these grammars is taken apart
again by `ToolCallParser` into calls of the given tools, with arguments that their schemas allow.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from .formats import ToolFormat, is_keyword
from .reasoning import ReasoningMarks

_ANY = "ANY: /(?s:.*)/"
_SOME = "SOME: /(?s:.+)/"
# JSON as chat templates print it; with free white space, a small model may write nothing else.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


def calls_grammar(
    form: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any] | None,
    *,
    parallel: bool = True,
    tokens: Mapping[str, int] | None = None,
    reasoning: ReasoningMarks | None = None,
    reasoning_open: bool = False,
) -> str | None:
    """The grammar of an answer; None where the answer is free.

    With `tool_choice` "required" the answer is calls of any of the tools, with a named tool one call of it. With "auto"
    (or None) it is free unless a tool is `strict`: then it may be text, and what begins as a call becomes a valid one.

    `tokens` are the ids of those of the format's `tokens`, and of the marks of `reasoning`, that are one added token in
    the model's vocabulary. A model that reasons may do so first; `reasoning_open` says that the prompt has opened the
    section already.
    """
    functions = [tool["function"] for tool in tools]
    free = tool_choice in (None, "auto")
    if tool_choice == "none" or not functions or (free and not any(f.get("strict") for f in functions)):
        return None
    if isinstance(tool_choice, Mapping):
        functions = [f for f in functions if f["name"] == tool_choice["function"]["name"]]
        parallel = False
    grammar = _Grammar(form, functions, tokens or {})
    answer = grammar.free_answer(parallel) if free else grammar.forced_answer(parallel)
    return grammar.text(answer, reasoning, reasoning_open)


class _Grammar:
    """Rules under construction."""

    def __init__(self, form: ToolFormat, functions: list[Mapping[str, Any]], tokens: Mapping[str, int]) -> None:
        self._form = form
        self._functions = functions
        self._tokens = tokens
        self._rules: dict[str, str] = {}

    def text(self, answer: str, reasoning: ReasoningMarks | None, reasoning_open: bool) -> str:
        """All rules, `answer` being the expression for what follows the reasoning."""
        if reasoning is not None:
            answer = f"({self._reasoning(reasoning, reasoning_open)}){'' if reasoning_open else '?'} ({answer})"
        rules = [f"start: {answer}", *(f"{name}: {body}" for name, body in self._rules.items())]
        return "\n".join(["%llguidance {}", *rules, _ANY, _SOME, ""])

    def forced_answer(self, parallel: bool) -> str:
        """Calls, and nothing else."""
        call = self._any_call(self._form.call)
        more = f" ({self._literal(self._form.separator)} {call})*" if parallel else ""
        return f"{self._literal(self._form.begin)} {call}{more} {self._literal(self._form.end)}"

    def free_answer(self, parallel: bool) -> str:
        """Text and calls; the calls begin where the text comes to their mark."""
        form = self._form
        if form.bare:
            names = "|".join(re.escape(function["name"]) for function in self._functions)
            call = rf"\s*([{{\[](?s:.*)|({names})\((?s:.*))"
            self._rules["PROSE"] = f"ANY & ~/{_in_regex(call)}/"
            return f"PROSE | {self.forced_answer(parallel)}"
        whole = form.begin + form.call
        mark = next(mark.open for mark in form.marks if whole.startswith(mark.open))
        if mark in self._tokens:
            self._rules["head"] = f"SOME? {self._literal(mark)}"
            tail = f"SOME & ~/(?s:.*){_in_regex(re.escape(mark))}(?s:.*)/"
        else:
            self._rules["head[lazy]"] = f"ANY {json.dumps(mark, ensure_ascii=False)}"
            tail = f"ANY & ~/(?s:.*){_in_regex(re.escape(mark))}(?s:.*)/"
        self._rules["TAIL"] = tail
        if form.begin:
            call = self._any_call(form.call)
            more = f" ({self._literal(form.separator)} {call})*" if parallel else ""
            body = f"{self._literal(form.begin[len(mark) :])} {call}{more} {self._literal(form.end)}"
        else:
            body = self._any_call(form.call[len(mark) :])
        return f"(head {body}){'*' if parallel else '?'} TAIL?"

    def _reasoning(self, marks: ReasoningMarks, is_open: bool) -> str:
        opening = "" if is_open else f"{self._literal(marks.open)} "
        if marks.close in self._tokens:
            self._rules["thoughts"] = f"SOME? {self._literal(marks.close)}"
        else:
            self._rules["thoughts[lazy]"] = f"ANY {json.dumps(marks.close, ensure_ascii=False)}"
        self._rules["SPACE"] = r"/\s{0,4}/"
        return f"{opening}thoughts SPACE"

    def _any_call(self, call: str) -> str:
        """One call of any function, with the texts of `call` around name and arguments."""
        if "any_call" not in self._rules:
            names = [self._call(call, index, function) for index, function in enumerate(self._functions)]
            self._rules["any_call"] = " | ".join(names)
        return "any_call"

    def _call(self, call: str, index: int, function: Mapping[str, Any]) -> str:
        atoms = []
        for part in re.split(r"(%\w+%)", call):
            if part == "%arguments%":
                atoms.append(f"%json {_schema_text(_parameters(function))}")
            elif part == "%keywords%":
                atoms.append(self._keywords(index, _parameters(function)))
            else:
                atoms.append(self._literal(part.replace("%name%", function["name"])))
        # A name is known only at its end, so that names may begin alike.
        self._rules[f"call_{index}"] = " ".join(atoms)
        return f"call_{index}"

    def _keywords(self, index: int, schema: dict[str, Any]) -> str:
        """Keyword arguments, in the order of the schema; `**{...}` where keywords cannot say what the schema does."""
        properties = schema.get("properties")
        said = {"type", "properties", "required", "additionalProperties", "description", "title", "$defs", "x-guidance"}
        simple = isinstance(properties, dict) and set(schema) <= said and schema.get("additionalProperties") is False
        required = schema.get("required", [])
        if not simple or not isinstance(properties, dict) or not all(map(is_keyword, properties)):
            return f'"**" %json {_schema_text(schema)}'
        if not all(name in properties for name in required):
            return f'"**" %json {_schema_text(schema)}'
        shared = {key: schema[key] for key in ("$defs", "x-guidance") if key in schema}
        # first_i is what may follow when nothing stands before the i-th keyword, next_i when something does.
        first, following = '""', '""'
        for place, (name, inner) in reversed(list(enumerate(properties.items()))):
            rule = f"keyword_{index}_{place}"
            value = {**inner, **shared} if isinstance(inner, dict) else inner
            self._rules[rule] = f"{json.dumps(name + '=')} %json {_schema_text(value)}"
            this_first = f"{rule} {following}" + ("" if name in required else f" | {first}")
            this_next = f'(", " {rule}){"" if name in required else "?"} {following}'
            self._rules[f"first_{index}_{place}"] = this_first
            self._rules[f"next_{index}_{place}"] = this_next
            first, following = f"first_{index}_{place}", f"next_{index}_{place}"
        return first

    def _literal(self, text: str) -> str:
        """A text as terminals, where parts of it may be tokens of their own."""
        if not text:
            return '""'
        marks = [mark for mark in self._tokens if mark in text]
        pattern = "|".join([r"%space%", *map(re.escape, sorted(marks, key=len, reverse=True))])
        atoms = []
        for part in re.split(f"({pattern})", text):
            if part in self._tokens:
                atoms.append(f"<[{self._tokens[part]}]>")
            elif part == "%space%":
                atoms.append('" "?')
            elif part:
                atoms.append(json.dumps(part, ensure_ascii=False))
        return " ".join(atoms)


def _parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """The schema of a function's arguments, an object's whatever was left out.

    Unless the function is strict, keywords that the grammar cannot express are let go; strict ones are refused.
    """
    schema = dict(function.get("parameters") or {"properties": {}})
    schema.setdefault("type", "object")
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    loose = {} if function.get("strict") else {"lenient": True, "coerce_one_of": True}
    return {**schema, "x-guidance": {**_SPACING, **loose}}


def _schema_text(schema: object) -> str:
    return json.dumps(schema, ensure_ascii=False)


def _in_regex(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return pattern.replace("/", r"\/").replace("\n", r"\n")
