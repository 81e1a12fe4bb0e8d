"""What one rendering of a chat template may cost, and what its operations cost.

The sandbox calls these functions before anything is built, so that `'x' * 10 ** 12` is an error and not an allocation.
"""

import re
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from string import Formatter
from typing import Any

from jinja2.exceptions import SecurityError

MAX_BUILT_CHARS = 1 << 28  # what one rendering may read and bring into being, in characters
MAX_SECONDS = 10.0  # of the thread's own time: a busy or stopped machine is not the template's fault
MAX_INTEGER_BITS = 4096
STEP = 128  # what a call or one round of a loop costs besides
_ITEM = 32  # what an entry of a list takes besides its content

# What makes more out of its arguments than their sum: filters and string methods by name.
AMPLIFIERS = frozenset(
    """batch center expandtabs indent join ljust replace rjust slice tojson translate urlize wordwrap xmlattr
    zfill""".split()  # noqa: SIM905
)


class _Meter:
    """What is left of one rendering's allowance."""

    def __init__(self) -> None:
        self.left = MAX_BUILT_CHARS
        self.deadline = time.thread_time() + MAX_SECONDS

    def charge(self, amount: int) -> None:
        self.left -= amount + 1
        if self.left < 0:
            raise SecurityError(f"the template does more work than {MAX_BUILT_CHARS} characters are worth")
        if time.thread_time() > self.deadline:
            raise SecurityError(f"the template runs for more than {MAX_SECONDS:g} seconds")


_meter: ContextVar[_Meter] = ContextVar("_meter")


@contextmanager
def metered() -> Iterator[None]:
    """Everything that the sandbox compiles or renders inside shares one allowance."""
    token = _meter.set(_Meter())
    try:
        yield
    finally:
        _meter.reset(token)


def charge(amount: int) -> None:
    _meter.get().charge(amount)


def size(value: object) -> int:
    """About what `value` itself takes, in characters."""
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, list | tuple | dict):
        return _ITEM * len(value)
    return value.bit_length() if isinstance(value, int) else 1


def total_size(*values: object) -> int:
    """Size with one level of items counted: what an operation that visits every item reads."""
    total = 0
    for value in values:
        if isinstance(value, dict):
            total += sum(map(size, value)) + sum(map(size, value.values()))
        total += sum(size(item) + 1 for item in value) if isinstance(value, list | tuple) else size(value)
    return total


def charge_product(arguments: Iterable[Any]) -> None:
    """Charge the product of all sizes, an upper bound of what an amplifier makes. Integers count as repetitions."""
    product = 1
    for argument in arguments:
        product *= max(1, abs(argument) if isinstance(argument, int) else total_size(argument))
    charge(product)


def charge_amplifier(name: str, arguments: list[Any]) -> None:
    texts = [argument for argument in arguments if isinstance(argument, str)]
    if name == "replace" and len(texts) == 3:
        text, old, new = texts
        charge(len(text) + text.count(old) * len(new))
    elif name in ("batch", "slice"):
        charge_product([_ITEM, *arguments])
    else:
        charge_product(arguments)


def _charge_format(text: str, fields: int, widths: Iterable[str], arguments: Iterable[Any]) -> None:
    """Charge `%` or `str.format`: every field may repeat every argument, and each width is padding."""
    padding = sum(int(width) if len(width) < 10 else MAX_BUILT_CHARS for width in widths)
    charge(len(text) + padding + fields * total_size(*arguments))


def charge_percent(text: str, argument: Any) -> None:
    if re.search(r"%[^%a-zA-Z]*\*", text):
        raise SecurityError("a chat template may not compute the width of a % field")
    arguments = argument if isinstance(argument, tuple) else (argument,)
    _charge_format(text, text.count("%"), re.findall(r"\d+", text), arguments)


def charge_str_format(text: str, arguments: Iterable[Any]) -> None:
    fields = [(field, spec) for _, field, spec, _ in Formatter().parse(text) if field is not None]
    if any("{" in (spec or "") for _, spec in fields):
        raise SecurityError("a chat template may not compute the width of a format field")
    widths = [width for _, spec in fields for width in re.findall(r"\d+", spec or "")]
    _charge_format(text, len(fields), widths, arguments)


def charge_result(value: Any) -> Any:
    if isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise SecurityError(f"the template computes an integer of more than {MAX_INTEGER_BITS} bits")
    charge(size(value))
    return value
