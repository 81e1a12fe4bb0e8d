"""JSON schemas by chance, of everything that is supported."""

from random import Random
from typing import Any

Schema = dict[str, Any]

_PATTERNS = [
    *(
        r"^[A-Z]{2}[0-9]{4}$",
        r"^(red|green|blue)$",
        r"^\d{3}-\d{4}",
        r"^[a-z][a-z0-9_]*$",
        r"^.{2,5}$",
        r"^[!-~]+@[!-~]+$",
    ),
    *(r"^v\d+\.\d+(\.\d+)?$", r"^#[0-9a-fA-F]{6}$", r"^(?:[a-c]x?)+$", r"^(é|ü)+$", r"^\"quoted\"\\$", r"^$"),
]
_FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri", "password"]
_NAMES = ["id", "name", "größe", "a b", 'q"uote', "back\\slash", "日本", "x", "tags", "created_at", "nested", "$ref"]
_VALUES = [
    None,
    True,
    False,
    0,
    -7,
    3.5,
    1e20,
    "",
    "text",
    'with "quotes"\n',
    "日本😀",
    [],
    [1, "a"],
    {},
    {"a": [None]},
]


def random_schema(random: Random, depth: int = 3) -> Schema:
    """A schema that some value validates against."""
    kinds = [_string, _string, _integer, _number, _boolean, _null, _enum, _types]
    if depth > 0:
        kinds += [_array, _array, _tuple, _object, _object, _object, _map, _any_of, _one_of, _all_of, _tree]
    schema = random.choice(kinds)(random, depth - 1)
    if random.random() < 0.2:
        schema |= {"title": "A title", "description": "What it is", "examples": [1], "x-unknown": {"not": {}}}
    return schema


def _maybe(random: Random, **keywords: Any) -> Schema:
    return {name: value for name, value in keywords.items() if random.random() < 0.4}


def _string(random: Random, depth: int) -> Schema:
    least = random.randint(0, 6)
    keywords = random.choice(
        [
            {},
            _maybe(random, minLength=least, maxLength=least + random.randint(0, 9)),
            {"pattern": random.choice(_PATTERNS)},
            {"format": random.choice(_FORMATS)},
        ]
    )
    return {"type": "string", **keywords}


def _integer(random: Random, depth: int) -> Schema:
    least = random.randint(-1000, 1000)
    most = least + random.randint(20, 500)
    bounds = random.choice([{"minimum": least, "maximum": most}, {"exclusiveMinimum": least}, {"maximum": most}, {}])
    return {"type": "integer", **bounds, **_maybe(random, multipleOf=random.choice([1, 2, 5, 10]))}


def _number(random: Random, depth: int) -> Schema:
    least = random.choice([-3.25, 0, 0.5, 17, -1000])
    most = least + random.choice([0.25, 1, 12.5, 4096])
    exclusive = {"exclusiveMinimum": least, "exclusiveMaximum": most}
    return {"type": "number", **random.choice([{}, {"minimum": least, "maximum": most}, exclusive])}


def _boolean(random: Random, depth: int) -> Schema:
    return random.choice([{"type": "boolean"}, {"const": True}])


def _null(random: Random, depth: int) -> Schema:
    return {"type": "null"}


def _enum(random: Random, depth: int) -> Schema:
    return random.choice([{"enum": random.sample(_VALUES, random.randint(1, 5))}, {"const": random.choice(_VALUES)}])


def _types(random: Random, depth: int) -> Schema:
    types = random.sample(["string", "integer", "boolean", "null", "number"], random.randint(2, 3))
    return {"type": types, **_maybe(random, minLength=2, maximum=99)}


def _array(random: Random, depth: int) -> Schema:
    least = random.randint(0, 3)
    sizes = _maybe(random, minItems=least, maxItems=least + random.randint(0, 4))
    return {"type": "array", "items": random_schema(random, depth), **sizes}


def _tuple(random: Random, depth: int) -> Schema:
    first = [random_schema(random, depth) for _ in range(random.randint(1, 3))]
    rest = random.choice([False, {"type": "integer"}])
    return {"type": "array", "prefixItems": first, "items": rest, "minItems": len(first)}


def _object(random: Random, depth: int) -> Schema:
    names = random.sample(_NAMES, random.randint(1, 5))
    required = random.sample(names, random.randint(0, len(names)))
    properties = {name: random_schema(random, depth) for name in names}
    others = random.choice([{}, {"additionalProperties": False}, {"additionalProperties": {"type": "integer"}}])
    return {"type": "object", "properties": properties, "required": required, **others}


def _map(random: Random, depth: int) -> Schema:
    keys = random.choice(
        [
            {"additionalProperties": random_schema(random, depth)},
            {"patternProperties": {"^s_[a-z]+$": random_schema(random, depth)}, "additionalProperties": False},
        ]
    )
    return {"type": "object", **keys, **_maybe(random, minProperties=1)}


def _any_of(random: Random, depth: int) -> Schema:
    return {"anyOf": [random_schema(random, depth) for _ in range(random.randint(1, 3))]}


def _one_of(random: Random, depth: int) -> Schema:
    """Objects that a constant tells apart, as pydantic's tagged unions."""
    alternatives = []
    for tag in ("cat", "dog", "fox")[: random.randint(1, 3)]:
        properties = {"kind": {"const": tag}, "data": random_schema(random, depth)}
        alternatives.append({"type": "object", "properties": properties, "required": ["kind"]})
    return {"oneOf": alternatives}


def _all_of(random: Random, depth: int) -> Schema:
    parts = [
        {"type": "object", "properties": {name: random_schema(random, depth)}, "required": [name]}
        for name in ("left", "right")
    ]
    return random.choice([{"allOf": parts}, {"allOf": parts[:1], **parts[1]}])


def _tree(random: Random, depth: int) -> Schema:
    """A schema that refers to itself; the definitions go to the root later."""
    return {"$ref": "#/$defs/tree"}


def with_definitions(random: Random, schema: Schema) -> Schema:
    """The root of a schema, with what `random_schema` refers to."""
    children = {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 2}
    label = random_schema(random, 0)
    tree = {"type": "object", "properties": {"label": label, "children": children}, "required": ["children"]}
    return {**schema, "$defs": {"tree": tree | _maybe(random, additionalProperties=False)}}
