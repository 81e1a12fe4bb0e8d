"""What `response_format` asks of an answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..runtime.errors import RequestError
from ..runtime.grammar import GrammarCompiler, GrammarFactory

_FIELD = "response_format"
_STRUCTURED = "structured_outputs"
_STRUCTURES = ("json", "json_object", "regex", "choice", "grammar")
GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
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


def read_text_format(
    response_format: Any, structured_outputs: Any = None, guided: Mapping[str, Any] | None = None
) -> ResponseFormat | None:
    """The form of answers by the one of these fields that is given, None for any text. Raises RequestError.

    `structured_outputs` and those of `guided` are vLLM's: {"json": schema}, {"json_object": true}, {"regex": text},
    {"choice": [texts]}, {"grammar": Lark or GBNF}, each also as a field of its own, `guided_json` and so on.
    """
    fields = {_FIELD: response_format, _STRUCTURED: structured_outputs, **(guided or {})}
    given = [name for name, value in fields.items() if value is not None]
    if len(given) > 1:
        message = f"{given[0]} and {given[1]} are given: an answer can have one form only"
        raise RequestError(message, param=given[1], code="invalid_value")
    if not given or given[0] == _FIELD:
        return read_response_format(response_format)
    if given[0] != _STRUCTURED:
        return _guided(given[0].removeprefix("guided_"), fields[given[0]], given[0])
    wanted = {kind: value for kind, value in structured_outputs.items() if value is not None}
    _only(wanted, _STRUCTURES, _STRUCTURED)
    if len(wanted) != 1:
        message = f"{_STRUCTURED} has {len(wanted)} forms: expected one of {', '.join(_STRUCTURES)}"
        raise RequestError(message, param=_STRUCTURED, code="invalid_value")
    ((kind, value),) = wanted.items()
    return _guided(kind, value, f"{_STRUCTURED}.{kind}")


def _guided(kind: str, value: Any, field: str) -> ResponseFormat | None:
    if kind == "json":
        return ResponseFormat(lambda compiler: compiler.compile_json_schema(value, False, field))
    if kind == "json_object":
        wanted = _of_type(value, bool, field)
        return ResponseFormat(lambda compiler: compiler.compile_json_object(field)) if wanted else None
    if kind == "choice":
        return _choice(value, field)
    text = _of_type(value, str, field)
    if kind == "grammar":
        kind = "ebnf" if "::=" in text else "lark"
    return _text(kind, text, field)


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
        return _choice(given.get("choice"), f"{_FIELD}.choice")
    return _text(kind, _of_type(given.get(kind), str, f"{_FIELD}.{kind}"), f"{_FIELD}.{kind}")


def _choice(given: Any, field: str) -> ResponseFormat:
    texts = [_of_type(choice, str, f"{field}.{i}") for i, choice in enumerate(_of_type(given, list, field))]
    return ResponseFormat(lambda compiler: compiler.compile_choice(texts, field))


def _text(kind: str, text: str, field: str) -> ResponseFormat:
    if kind == "regex":
        return ResponseFormat(lambda compiler: compiler.compile_regex(text, field))
    if kind == "lark":
        return ResponseFormat(lambda compiler: compiler.compile_lark(text, field))
    return ResponseFormat(lambda compiler: compiler.compile_ebnf(text, field))


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
