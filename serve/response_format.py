"""What `response_format` asks of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.grammar import GrammarCompiler, GrammarFactory

_FIELD = "response_format"
_SCHEMA = f"{_FIELD}.json_schema"
_TEXTS = ("regex", "lark", "ebnf", "grammar")  # the field of the same name has the text
_FIELDS = {
    "text": (),
    "json_object": ("schema",),
    "json_schema": ("json_schema",),
    "choice": ("choice",),
    **{kind: (kind,) for kind in _TEXTS},
}


@dataclass(frozen=True)
class ResponseFormat:
    """A form that answers have to have."""

    compile: Callable[[GrammarCompiler], GrammarFactory]  # raises RequestError


def read_response_format(given: Any) -> ResponseFormat | None:
    """The field `response_format` of a request, None for any text. Raises RequestError.

    - {"type": "text"}, {"type": "json_object"}
    - {"type": "json_schema", "json_schema": {"name", "schema", "strict", "description"}}
    - {"type": "json_object", "schema": JSON text or an object}, as MLC-LLM has it; objects are closed
    - {"type": "regex", "regex": text}, {"type": "choice", "choice": [texts]}, {"type": "lark", "lark": text}
    - {"type": "ebnf", "ebnf": text} or {"type": "grammar", "grammar": text}: llama.cpp's GBNF
    """
    if given is None:
        return None
    kind = _of_type(given, dict, _FIELD).get("type")
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise RequestError(
            f"{_FIELD}.type is {kind!r:.80}: expected one of {', '.join(_FIELDS)}",
            param=f"{_FIELD}.type",
            code="unsupported_value",
        )
    _only(given, ("type", *_FIELDS[kind]), _FIELD)
    if kind == "text":
        return None
    if kind == "json_schema":
        return _json_schema(given)
    if kind == "json_object":
        return _json_object(given.get("schema"))
    if kind == "choice":
        choices = _of_type(given.get("choice"), list, f"{_FIELD}.choice")
        texts = [_of_type(choice, str, f"{_FIELD}.choice.{i}") for i, choice in enumerate(choices)]
        return ResponseFormat(lambda compiler: compiler.compile_choice(texts))
    return _text(kind, _of_type(given.get(kind), str, f"{_FIELD}.{kind}"))


def _text(kind: str, text: str) -> ResponseFormat:
    if kind == "regex":
        return ResponseFormat(lambda compiler: compiler.compile_regex(text))
    if kind == "lark":
        return ResponseFormat(lambda compiler: compiler.compile_lark(text, f"{_FIELD}.lark"))
    return ResponseFormat(lambda compiler: compiler.compile_ebnf(text, f"{_FIELD}.{kind}"))


def _json_object(schema: Any) -> ResponseFormat:
    if schema is None:
        return ResponseFormat(lambda compiler: compiler.compile_json_object())
    return ResponseFormat(lambda compiler: compiler.compile_json_schema(schema, True, f"{_FIELD}.schema"))


def _json_schema(given: Mapping[str, Any]) -> ResponseFormat:
    described = _of_type(given.get("json_schema"), dict, _SCHEMA)
    _only(described, ("name", "description", "schema", "strict"), _SCHEMA)
    schema = _of_type(described.get("schema"), dict, f"{_SCHEMA}.schema")
    strict = described.get("strict")
    strict = strict is not None and _of_type(strict, bool, f"{_SCHEMA}.strict")
    return ResponseFormat(lambda compiler: compiler.compile_json_schema(schema, strict))


def _of_type(value: Any, expected: type, place: str) -> Any:
    if isinstance(value, expected):
        return value
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if value is None:
        raise RequestError(f"{place} is missing: expected {names[expected]}", param=place, code="missing_field")
    raise RequestError(f"{place} is {value!r:.80}: expected {names[expected]}", param=place, code="invalid_type")


def _only(given: Mapping[str, Any], known: tuple[str, ...], place: str) -> None:
    for name in given:
        if name not in known:
            raise RequestError(
                f"{place} has the unknown field {name!r:.80}; known are {', '.join(known)}",
                param=f"{place}.{name}",
                code="unknown_field",
            )
