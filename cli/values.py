"""Values that options take, besides click's own kinds: callbacks that read them."""

import json

import click

MAX_NAMES = 1000


def read_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """A JSON list of strings, as `["https://example.org"]`. Raises click.BadParameter."""
    if value is None:
        return None
    try:
        names = json.loads(value)
    except (ValueError, RecursionError):
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) and name for name in names):
        raise click.BadParameter(f"""{value[:200]!r}: expected a JSON list of strings, as '["*"]'""")
    if len(names) > MAX_NAMES:
        raise click.BadParameter(f"{len(names)} names: expected at most {MAX_NAMES}")
    return tuple(names)


def read_size(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of bytes, as 1048576, 512K or 16M. Raises click.BadParameter."""
    unit = value[-1:].upper()
    number, power = (value[:-1], 1 + "KMG".index(unit)) if unit and unit in "KMG" else (value, 0)
    if not (number.isascii() and number.isdigit() and len(number) < 12 and int(number)):
        raise click.BadParameter(f"{value[:80]!r}: expected a number of bytes, as 1048576, 512K or 16M")
    return int(number) << (10 * power)
