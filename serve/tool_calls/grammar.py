"""Grammars that make a model call tools as its family writes calls, in llguidance's dialect of Lark.

https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md. What follows one of these grammars is taken apart
again by `ToolCallParser` into calls of the given tools, with arguments that their schemas allow.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...runtime.errors import RequestError
from .formats import ToolFormat, is_keyword
from .parameter_values import UnsupportedTextError, text_term, value_kind
from .reasoning import ReasoningMarks

_TAG_KEY = re.compile(r"[^<>\s]([^<>\n]{0,200}[^<>\s])?")
_ANY = "ANY: /(?s:.*)/"
_SOME = "SOME: /(?s:.+)/"
# Keywords of a schema that separate parameters can express.
_PROPERTIES_SCHEMA = {
    "type",
    "properties",
    "required",
    "additionalProperties",
    "description",
    "title",
    "$defs",
    "$schema",
}

# Keywords beside `properties` that bring further ones.
_ADDING = {"allOf", "anyOf", "oneOf", "$ref", "patternProperties"}

# (schema, strict, name of the request's field) -> the JSON that the schema describes, as a term of a grammar; raises
# RequestError for a schema that cannot be used
JsonTerm = Callable[[Any, bool, str], str]


def calls_grammar(
    form: ToolFormat,
    tools: Sequence[Mapping[str, Any]],
    tool_choice: str | Mapping[str, Any] | None,
    json_term: JsonTerm,
    *,
    parallel: bool = True,
    tokens: Mapping[str, int] | None = None,
) -> str | None:
    """The grammar of an answer; None where the answer is free.

    With `tool_choice` "required" the answer is calls of any of the tools, with a named tool one call of it. With "auto"
    (or None) it is free unless a tool is `strict`: then it may be text, and what begins as a call becomes a valid one.

    `tokens` are the ids of those of the format's `tokens` that are special tokens in the model's vocabulary.

    Raises RequestError for the schema of a strict tool that `json_term` refuses; the arguments of other tools may then
    be any object.
    """
    functions = [_Function(index, tool["function"], json_term) for index, tool in enumerate(tools)]
    free = tool_choice in (None, "auto")
    if tool_choice == "none" or not functions or (free and not any(function.strict for function in functions)):
        return None
    if isinstance(tool_choice, Mapping):
        functions = [function for function in functions if function.name == tool_choice["function"]["name"]]
        parallel = False
    grammar = _Grammar(form, functions, tokens or {})
    answer = grammar.free_answer(parallel) if free else grammar.forced_answer(parallel)
    return grammar.text(answer)


def reasoning_rules(marks: ReasoningMarks, *, tokens: Mapping[str, int], is_open: bool) -> str:
    """Rules of a grammar, of which `reasoning` is what a model may think before it answers.

    `is_open` says that the prompt has opened the section, so that the model has to close it. `tokens` are the ids of
    those marks that are special tokens in the model's vocabulary.
    """
    if marks.close in tokens:
        thoughts = f"thoughts: SOME? {_literal(marks.close, tokens)}"
    else:
        thoughts = f"thoughts[lazy]: ANY {_literal(marks.close, {})}"
    section = "thoughts SPACE" if is_open else f"({_literal(marks.open, tokens)} thoughts SPACE)?"
    return "\n".join([f"reasoning: {section}", thoughts, r"SPACE: /\s{0,4}/", _ANY, _SOME, ""])


class _Function:
    """A function of the request, with its arguments as terms of a grammar."""

    def __init__(self, index: int, function: Mapping[str, Any], json_term: JsonTerm) -> None:
        self.index = index
        self.name: str = function["name"]
        self.strict = bool(function.get("strict"))
        self._json_term = json_term
        schema = dict(function.get("parameters") or {"properties": {}})
        schema.setdefault("type", "object")
        if "properties" in schema and not _ADDING & set(schema):
            schema.setdefault("additionalProperties", False)
        self._schema = schema

    def arguments(self) -> str:
        """The arguments as one JSON object."""
        return self._term(self._schema, {"type": "object"}, "")

    def keywords(self) -> dict[str, tuple[str, bool]] | None:
        """Of each keyword its value and whether it is required; None where keywords cannot say what the schema does."""
        properties = self._properties()
        if properties is None or self._schema.get("additionalProperties") is not False:
            return None
        if not all(map(is_keyword, properties)):
            return None
        return {
            name: (self._term(self._with_definitions(schema), {}, f".properties.{name}"), required)
            for name, (schema, required) in properties.items()
        }

    def parameters(self) -> list["_Parameter"] | None:
        """The parameters between tags; None where they may be any. Raises RequestError for a strict function then."""
        properties = self._properties()
        if properties is not None and all(map(_TAG_KEY.fullmatch, properties)):
            return [self._parameter(name, *described) for name, described in properties.items()]
        if self.strict:
            param = self._param("")
            message = f"{param} cannot be enforced: this model writes parameters one by one, describe their properties"
            raise RequestError(message, param=param, code="unsupported_value")
        return None

    def _properties(self) -> dict[str, tuple[Any, bool]] | None:
        """Of each parameter its schema and whether it is required; None where that is not all that the schema says."""
        properties, required = self._schema.get("properties"), self._schema.get("required", [])
        if not set(self._schema) <= _PROPERTIES_SCHEMA or not isinstance(properties, dict):
            return None
        if not isinstance(required, list) or not all(name in properties for name in map(str, required)):
            return None
        return {name: (schema, name in required) for name, schema in properties.items()}

    def _parameter(self, name: str, schema: Any, required: bool) -> "_Parameter":
        place = f".properties.{name}"
        is_text = value_kind(schema, self._schema) != "json"
        try:
            json_term = self._json_term(self._with_definitions(schema), self.strict, self._param(place))
            return _Parameter(name, required, json_term, text_term(schema, self._schema) if is_text else None)
        except UnsupportedTextError as error:
            if self.strict:
                param = self._param(f"{place}.{error}")
                message = f"{param} cannot be enforced: this model writes texts without quotes"
                raise RequestError(message, param=param, code="unsupported_value") from None
        except RequestError:
            if self.strict:
                raise
        return _Parameter(name, required, self._json_term({}, False, self._param(place)), "ANY" if is_text else None)

    def _with_definitions(self, schema: Any) -> Any:
        """The schema of one parameter with what it may refer to."""
        if not isinstance(schema, dict) or "$defs" not in self._schema:
            return schema
        return {**schema, "$defs": self._schema["$defs"]}

    def _param(self, place: str) -> str:
        return f"tools[{self.index}].function.parameters{place}"

    def _term(self, schema: Any, otherwise: Any, place: str) -> str:
        try:
            return self._json_term(schema, self.strict, self._param(place))
        except RequestError:
            if self.strict:
                raise
            return self._json_term(otherwise, False, self._param(place))


@dataclass(frozen=True)
class _Parameter:
    """A parameter between tags: its value as JSON, or without quotes where `text` is the body of a terminal."""

    name: str
    required: bool
    json: str
    text: str | None


class _Grammar:
    """Rules under construction."""

    def __init__(self, form: ToolFormat, functions: list[_Function], tokens: Mapping[str, int]) -> None:
        self._form = form
        self._functions = functions
        self._tokens = tokens
        self._rules: dict[str, str] = {}

    def text(self, answer: str) -> str:
        """All rules, with the expression for the answer."""
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
        whole = form.begin + form.call
        mark = next((mark.open for mark in form.marks if whole.startswith(mark.open)), "")
        # Other marks that also stand in other text, as fences, are let through.
        others = (other.open for other in form.marks if not other.known_only and other.open != mark)
        marks = "|".join(re.escape(text) for text in (mark, *others) if text)
        no_mark = f"~/(?s:.*)({_in_regex(marks)})(?s:.*)/"
        if form.bare:
            names = "|".join(re.escape(function.name) for function in self._functions)
            call = rf"\s*([{{\[](?s:.*)|({names})\((?s:.*))"
            self._rules["PROSE"] = f"ANY & ~/{_in_regex(call)}/ & {no_mark}"
            return f"PROSE | {self.forced_answer(parallel)}"
        if mark in self._tokens:
            self._rules["PROSE"] = f"SOME & {no_mark}"
            self._rules["head"] = f"PROSE? {self._literal(mark)}"
        else:
            self._rules["PROSE"] = f"ANY & {no_mark}"
            self._rules["head[lazy]"] = f"PROSE {json.dumps(mark, ensure_ascii=False)}"
        if form.begin:
            call = self._any_call(form.call)
            more = f" ({self._literal(form.separator)} {call})*" if parallel else ""
            body = f"{self._literal(form.begin[len(mark) :])} {call}{more} {self._literal(form.end)}"
        else:
            body = self._any_call(form.call[len(mark) :])
        return f"(head {body}){'*' if parallel else '?'} PROSE?"

    def _any_call(self, call: str) -> str:
        """One call of any function, with the texts of `call` around name and arguments."""
        if "any_call" not in self._rules:
            self._rules["any_call"] = " | ".join(self._call(call, function) for function in self._functions)
        return "any_call"

    def _call(self, call: str, function: _Function) -> str:
        atoms = []
        for part in re.split(r"(%\w+%)", call):
            if part == "%arguments%":
                atoms.append(function.arguments())
            elif part == "%keywords%":
                atoms.append(self._keywords(function))
            elif part == "%parameters%":
                atoms.append(self._parameters(function))
            else:
                atoms.append(self._literal(part.replace("%name%", function.name)))
        self._rules[f"call_{function.index}"] = " ".join(atoms)
        return f"call_{function.index}"

    def _keywords(self, function: _Function) -> str:
        """Keyword arguments in the order of the schema."""
        keywords = function.keywords()
        if keywords is None:
            return f'"**" {function.arguments()}'
        # first_i is what may follow when nothing stands before the i-th keyword, next_i when something does.
        first = following = '""'
        for place, (name, (value, required)) in reversed(list(enumerate(keywords.items()))):
            keyword = f"keyword_{function.index}_{place}"
            self._rules[keyword] = f"{json.dumps(name + '=')} {value}"
            this_first = f"{keyword} {following}" + ("" if required else f" | {first}")
            this_next = f'(", " {keyword}){"" if required else "?"} {following}'
            first, following = f"first_{function.index}_{place}", f"next_{function.index}_{place}"
            self._rules.update({first: this_first, following: this_next})
        return first

    def _parameters(self, function: _Function) -> str:
        """Parameters between tags, in the order of the schema."""
        before_key, after_key, after_value = re.split("%key%|%value%", self._form.parameter)
        parameters, atoms = function.parameters(), []
        if parameters is None:
            self._rules["KEY"] = r"/[^<>\s]{1,64}/"
            value = self._text_value("any", "ANY", after_value)
            self._rules["any_parameter"] = f"{self._literal(before_key)} KEY {self._literal(after_key)} {value}"
            return "any_parameter*"
        for place, parameter in enumerate(parameters):
            rule = f"{function.index}_{place}"
            if parameter.text is None:
                value = f"{parameter.json} {self._literal(after_value)}"
            else:
                value = self._text_value(rule, parameter.text, after_value)
            self._rules[f"parameter_{rule}"] = f"{self._literal(before_key + parameter.name + after_key)} {value}"
            atoms.append(f"parameter_{rule}{'' if parameter.required else '?'}")
        return " ".join(atoms) or '""'

    def _text_value(self, rule: str, text: str, after: str) -> str:
        """A text and what is behind it; the text ends where its closing tag begins."""
        tag = after.strip()
        before_tag, behind_tag = after.split(tag)
        closes = f"~/(?s:.*){_in_regex(re.escape(tag))}(?s:.*)/"
        if tag in self._tokens:
            self._rules[f"VALUE_{rule.upper()}"] = text
            self._rules[f"value_{rule}"] = f"VALUE_{rule.upper()} {self._literal(tag)}"
        else:
            self._rules[f"VALUE_{rule.upper()}"] = f"({text}) & {closes}"
            self._rules[f"value_{rule}[lazy]"] = f"VALUE_{rule.upper()} {_literal(before_tag + tag, {})}"
        return f"value_{rule} {self._literal(behind_tag)}"

    def _literal(self, text: str) -> str:
        return _literal(text, self._tokens)


def _literal(text: str, tokens: Mapping[str, int]) -> str:
    """A text as terminals, where parts of it may be tokens of their own."""
    if not text:
        return '""'
    marks = [mark for mark in tokens if mark in text]
    pattern = "|".join([r"%space%", *map(re.escape, sorted(marks, key=len, reverse=True))])
    atoms = []
    for part in re.split(f"({pattern})", text):
        if part in tokens:
            atoms.append(f"<[{tokens[part]}]>")
        elif part == "%space%":
            atoms.append('" "?')
        elif part:
            atoms.append(json.dumps(part, ensure_ascii=False))
    return " ".join(atoms)


def _in_regex(pattern: str) -> str:
    """A pattern as it stands between slashes."""
    return pattern.replace("/", r"\/").replace("\n", r"\n")
