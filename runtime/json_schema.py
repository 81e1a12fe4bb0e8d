"""JSON schemas of requests: bounded, and refused by name and place where a grammar cannot keep what they ask for.

What is supported is what llguidance's compiler implements (https://github.com/guidance-ai/llguidance,
docs/json_schema.md). What the JSON Schema specification calls an annotation is left out of account, an unknown keyword
or format too.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

from .errors import RequestError

_ONE_SCHEMA = ("items", "additionalItems", "additionalProperties")
_LIST_OF_SCHEMAS = ("allOf", "anyOf", "oneOf", "prefixItems")
_SCHEMA_BY_NAME = ("properties", "patternProperties")
_COMBINING = {"allOf", "anyOf", "oneOf", "$ref"}
_OPEN = {"properties", "additionalProperties", "patternProperties"} | _COMBINING
_UNSUPPORTED = (
    *("not", "if", "then", "else", "dependencies", "dependentRequired", "dependentSchemas", "propertyNames"),
    *("uniqueItems", "contains", "minContains", "maxContains", "unevaluatedItems", "unevaluatedProperties"),
    *("$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor"),
)
_ASKS_NOTHING = {"uniqueItems": False, "unevaluatedItems": True, "unevaluatedProperties": True}
_MAX_REMAINDERS = 10_000  # an automaton that counts in multiples has a state for each, and llguidance sets no limit
_TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")
_UNSUPPORTED_FORMATS = (
    *("idn-email", "idn-hostname", "uri-reference", "iri", "iri-reference", "uri-template"),
    *("json-pointer", "relative-json-pointer", "regex"),
)


@dataclass(frozen=True)
class SchemaLimits:
    """How big a schema may be."""

    max_bytes: int
    max_depth: int
    max_nodes: int


@dataclass(frozen=True)
class CheckedSchema:
    """A copy of a schema that a grammar can be made of, and where in it alternatives exclude one another."""

    schema: Any
    one_of: tuple[str, ...]


def checked_schema(schema: Any, strict: bool, limits: SchemaLimits, param: str) -> CheckedSchema:
    """Check a schema, given as an object, a boolean or JSON text.

    `strict` closes objects that list properties and do not say whether there may be others, where nothing else adds
    properties to them. Raises RequestError, with `param` and the place in the schema.
    """
    root = _parsed(schema, limits, param)
    walk = _Walk(root, param)
    walk.run()
    if strict:
        for identity, place in walk.objects.items():
            if identity not in walk.combined:
                place["additionalProperties"] = False
    return CheckedSchema(root, tuple(walk.one_of))


def _parsed(schema: Any, limits: SchemaLimits, param: str) -> Any:
    """A copy of `schema`, within the limits."""
    try:
        text = schema if isinstance(schema, str) else json.dumps(schema, ensure_ascii=False, allow_nan=False)
        size = len(text.encode())
        if size > limits.max_bytes:
            raise _refused(param, f"{size} bytes are too long; the limit is {limits.max_bytes}")
        root = json.loads(text, parse_constant=_no_constant)
    except RecursionError:
        raise _refused(param, f"it is nested too deeply; the limit is {limits.max_depth}") from None
    except (TypeError, ValueError) as error:
        raise _refused(param, f"it is not valid JSON ({str(error)[:200]})") from None
    for nodes, depth in enumerate(_depths(root), 1):
        if depth > limits.max_depth:
            raise _refused(param, f"it is nested too deeply; the limit is {limits.max_depth}")
        if nodes > limits.max_nodes:
            raise _refused(param, f"it has too many values; the limit is {limits.max_nodes}")
    return root


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _depths(root: Any) -> Iterator[int]:
    """How deep each value lies."""
    pending = [(root, 1)]
    while pending:
        value, depth = pending.pop()
        yield depth
        if isinstance(value, (dict, list)):
            inner = value.values() if isinstance(value, dict) else value
            pending.extend((one, depth + 1) for one in inner)


class _Walk:
    """Goes through the schemas that can be reached from the root."""

    def __init__(self, root: Any, param: str) -> None:
        self._root, self._param = root, param
        self._pending: list[tuple[Any, str, bool]] = [(root, param, False)]
        self._seen: set[tuple[int, bool]] = set()
        self.objects: dict[int, dict[str, Any]] = {}  # schemas that list properties and say nothing of others
        self.combined: set[int] = set()  # schemas that apply together with another one
        self.one_of: list[str] = []
        self._remainders = 1

    def run(self) -> None:
        while self._pending:
            schema, place, combined = self._pending.pop()
            if isinstance(schema, bool) or (id(schema), combined) in self._seen:
                continue
            if not isinstance(schema, dict):
                raise _refused(place, f"a schema is an object or a boolean; found {_shown(schema)}")
            self._seen.add((id(schema), combined))
            self._check(schema, place)
            self._note(schema, place, combined)
            self._enter(schema, place, combined)

    def _check(self, schema: dict[str, Any], place: str) -> None:
        for keyword in _UNSUPPORTED:
            if keyword not in schema:
                continue
            if schema[keyword] is not _ASKS_NOTHING.get(keyword):
                raise _unsupported(place, keyword, f"the keyword {keyword!r}")
            del schema[keyword]
        if "multipleOf" in schema:
            self._count_remainders(schema["multipleOf"], f"{place}.multipleOf")
        _narrow_bounds(schema)
        types = schema.get("type", [])
        for name in types if isinstance(types, list) else [types]:
            if name not in _TYPES:
                raise _refused(f"{place}.type", f"found {_shown(name)}; expected one of {', '.join(_TYPES)}")
        kind = schema.get("format")
        if kind in _UNSUPPORTED_FORMATS:
            expected = f"the format {kind!r} (supported are {', '.join(_FORMATS)})"
            raise _unsupported(place, "format", expected)
        if kind not in _FORMATS:
            schema.pop("format", None)

    def _count_remainders(self, multiple: Any, place: str) -> None:
        """Numbers are counted in all multiples at once where schemas apply together; powers of ten cost nothing."""
        if isinstance(multiple, bool) or not isinstance(multiple, (int, float)) or multiple <= 0:
            raise _refused(place, f"found {_shown(multiple)}; expected a number above 0")
        _, digits, _ = Decimal(repr(multiple)).as_tuple()
        count = int("".join(map(str, digits)))
        for factor in (2, 5):
            while count % factor == 0:
                count //= factor
        self._remainders = math.lcm(self._remainders, count)
        if self._remainders > _MAX_REMAINDERS:
            reason = f"{multiple} needs {self._remainders} remainders, with those of other multiples"
            raise _refused(place, f"{reason}; the limit is {_MAX_REMAINDERS}")

    def _note(self, schema: dict[str, Any], place: str, combined: bool) -> None:
        if combined:
            self.combined.add(id(schema))
        if _OPEN & schema.keys() == {"properties"}:
            self.objects[id(schema)] = schema
        if "oneOf" in schema and f"{place}.oneOf" not in self.one_of:
            self.one_of.append(f"{place}.oneOf")

    def _enter(self, schema: dict[str, Any], place: str, combined: bool) -> None:
        beside = combined or "allOf" in schema or len(_OPEN & schema.keys()) > 1
        for keyword in _ONE_SCHEMA:
            inner = schema.get(keyword, True)
            if isinstance(inner, list):  # of older drafts, what is prefixItems now
                self._pending.extend((one, f"{place}.{keyword}.{i}", combined) for i, one in enumerate(inner))
            else:
                self._pending.append((inner, f"{place}.{keyword}", combined))
        for keyword in _LIST_OF_SCHEMAS:
            inner = schema.get(keyword, [])
            if not isinstance(inner, list):
                raise _refused(f"{place}.{keyword}", f"found {_shown(inner)}; expected a list of schemas")
            together = beside if keyword in _COMBINING else combined
            self._pending.extend((one, f"{place}.{keyword}.{i}", together) for i, one in enumerate(inner))
        for keyword in _SCHEMA_BY_NAME:
            inner = schema.get(keyword, {})
            if not isinstance(inner, dict):
                raise _refused(f"{place}.{keyword}", f"found {_shown(inner)}; expected an object of schemas")
            self._pending.extend((one, f"{place}.{keyword}.{name}", combined) for name, one in inner.items())
        if "$ref" in schema:
            self._refer(schema["$ref"], f"{place}.$ref", beside)

    def _refer(self, reference: Any, place: str, combined: bool) -> None:
        if not isinstance(reference, str) or not reference.startswith("#"):
            raise _refused(
                place, f"found {_shown(reference)}; expected a reference inside the schema, as '#/$defs/node'"
            )
        pointer = unquote(reference[1:])
        if pointer and not pointer.startswith("/"):
            return  # a name given by $anchor, which llguidance looks up
        value, names = self._root, [name.replace("~1", "/").replace("~0", "~") for name in pointer.split("/")[1:]]
        for name in names:
            if isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, dict) and name in value:
                value = value[name]
            else:
                raise _refused(place, f"there is nothing at {_shown(reference)}")
        self._pending.append((value, ".".join([self._param, *names]), combined))


def _narrow_bounds(schema: dict[str, Any]) -> None:
    """Where two bounds have the same whole part, llguidance 1.9.1 allows a whole number that the one near 0 excludes:
    0 where numbers between 0 and 0.5 are asked for. A millionth less is asked for instead."""
    for near, far, sign in (
        ("exclusiveMinimum", ("maximum", "exclusiveMaximum"), 1),
        ("exclusiveMaximum", ("minimum", "exclusiveMinimum"), -1),
    ):
        excluded: Any = schema.get(near)
        others: list[Any] = [schema.get(name) for name in far]
        bounds = [sign * other for other in others if type(other) in (int, float)]
        if type(excluded) not in (int, float) or excluded % 1 or sign * excluded < 0 or not bounds:
            continue
        if sign * excluded < min(bounds) < sign * excluded + 1:
            schema[near] = excluded + sign * 1e-6


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False)
    return shown if len(shown) <= 80 else f"{shown[:80]}..."


def _refused(place: str, reason: str) -> RequestError:
    return RequestError(f"{place} cannot be used: {reason}", param=place, code="invalid_value")


def _unsupported(place: str, keyword: str, what: str) -> RequestError:
    where = f"{place}.{keyword}"
    return RequestError(f"{where}: {what} is not supported", param=where, code="unsupported_value")
