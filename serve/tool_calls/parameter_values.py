"""What the schema of a parameter says of its value, for formats that write texts without quotes."""

import json
import re
from collections.abc import Mapping
from typing import Any, Literal

ValueKind = Literal["text", "nullable", "json"]  # a text, a text or null, anything else

_ANNOTATIONS = {"title", "description", "default", "examples", "deprecated", "$comment", "$defs", "definitions"}
_DESCRIBED = _ANNOTATIONS | {"type", "enum", "const", "minLength", "maxLength", "pattern"}
_INNER = re.compile(r"\\.|\[(?:\\.|[^\]\\])*\]|\([^()]*\)")  # what alternatives of a pattern may be inside of


class UnsupportedTextError(Exception):
    """A keyword of a schema to which texts without quotes cannot be held."""


def value_kinds(parameters: object) -> dict[str, ValueKind]:
    """How the value of each parameter of a function is read."""
    properties = parameters.get("properties") if isinstance(parameters, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: value_kind(schema, parameters) for name, schema in properties.items()}


def value_kind(schema: object, root: object) -> ValueKind:
    """How a value is read. `root` is the schema of all parameters, which has the definitions. Any schema will do."""
    types = {kind for leaf in _leaves(schema, root) for kind in _types(leaf)}
    if types == {"string"}:
        return "text"
    return "nullable" if types == {"string", "null"} else "json"


def text_term(schema: object, root: object) -> str:
    """The values of a schema that is not of the kind "json", as the body of a terminal in Lark.

    Raises UnsupportedTextError with the keyword.
    """
    return " | ".join(f"({_leaf_term(leaf)})" for leaf in _leaves(schema, root))


def _leaves(schema: object, root: object) -> list[Mapping[str, Any]]:
    """The schemas of which a schema is one or the other, behind references and alternatives."""
    leaves: list[Mapping[str, Any]] = []
    waiting, seen = [schema], set()
    while waiting:
        inner = waiting.pop(0)
        if id(inner) in seen:
            continue
        seen.add(id(inner))
        if not isinstance(inner, dict):
            leaves.append({})
        elif isinstance(reference := inner.get("$ref"), str):
            waiting.append(_referenced(reference, root))
        elif isinstance(either := inner.get("anyOf", inner.get("oneOf")), list):
            waiting += either
        else:
            leaves.append(inner)
    return leaves


def _referenced(reference: str, root: object) -> object:
    found = root
    for key in reference.removeprefix("#/").split("/"):
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found


def _values(leaf: Mapping[str, Any]) -> list[Any]:
    values = [leaf["const"]] if "const" in leaf else leaf.get("enum")
    return values if isinstance(values, list) else []


def _types(leaf: Mapping[str, Any]) -> set[str]:
    """The types of a schema, as far as texts and nulls are concerned."""
    if values := _values(leaf):
        return {"string" if isinstance(value, str) else "null" if value is None else "any" for value in values}
    given = leaf.get("type")
    return {kind if kind in ("string", "null") else "any" for kind in (given if isinstance(given, list) else [given])}


def _leaf_term(leaf: Mapping[str, Any]) -> str:
    if unknown := sorted(set(leaf) - _DESCRIBED):
        raise UnsupportedTextError(unknown[0])
    if values := _values(leaf):
        return " | ".join(json.dumps("null" if value is None else value, ensure_ascii=False) for value in values)
    types = _types(leaf)
    if types == {"null"}:
        return '"null"'
    terms = [_pattern(leaf["pattern"])] if "pattern" in leaf else []
    bounds = {key: leaf[key] for key in ("minLength", "maxLength") if key in leaf}
    for key, bound in bounds.items():
        if type(bound) is not int or bound < 0:
            raise UnsupportedTextError(key)
    if bounds:
        terms.append(f"/(?s:.{{{bounds.get('minLength', 0)},{bounds.get('maxLength', '')}}})/")
    text = " & ".join(terms) or "/(?s:.*)/"
    return f'({text}) | "null"' if "null" in types else text


def _pattern(pattern: object) -> str:
    """A pattern that may match anywhere, as a regular expression for the whole text."""
    from llguidance import regex_to_lark

    if not isinstance(pattern, str):
        raise UnsupportedTextError("pattern")
    inner = pattern.removeprefix("^")
    begins, ends = inner != pattern, inner.endswith("$") and not inner.endswith(r"\$")
    inner = inner[:-1] if ends else inner
    alternatives, before = inner, ""
    while alternatives != before:
        alternatives, before = _INNER.sub("", alternatives), alternatives
    if "|" in alternatives and (begins or ends):  # each anchor is of one alternative
        raise UnsupportedTextError("pattern")
    return f"/{'' if begins else '(?s:.*)'}({regex_to_lark(inner, 'dw')}){'' if ends else '(?s:.*)'}/"
