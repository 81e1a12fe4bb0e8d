"""The environment in which chat templates run: jinja2's immutable sandbox with limits on time and memory.

A chat template is a program that came with a model, so it is untrusted. The sandbox keeps it from reaching Python; the
limits keep it from occupying the machine: loops in loops, a string doubled a hundred times. Names, filters and options
are those of transformers (`utils/chat_template_utils.py`), so that a template renders to the same text here and there.
"""

import functools
import json
import types
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.utils
from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.parser import Parser
from jinja2.runtime import Context, Macro, markup_join, str_join
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .meter import (
    AMPLIFIERS,
    STEP,
    charge,
    charge_amplifier,
    charge_percent,
    charge_product,
    charge_result,
    charge_str_format,
    size,
    total_size,
)


def _metered(name: str, function: Any) -> Callable[..., Any]:
    """`function` with its cost charged. functools.wraps keeps jinja2's mark for filters that want the context."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if name in AMPLIFIERS:
            args = tuple(list(arg) if isinstance(arg, types.GeneratorType) else arg for arg in args)
            charge_amplifier(name, [*args, *kwargs.values()])
        elif name == "format":
            charge_percent(str(args[0]), (*args[1:], *kwargs.values()))
        else:
            charge(STEP + total_size(*args, *kwargs.values()))
        return charge_result(function(*args, **kwargs))

    return call


# The four filters below are what `_Metering` puts into a template. They ask for the context only so that jinja2 does
# not evaluate them while it compiles.


@jinja2.pass_context
def _emit(context: Context, value: Any) -> Any:
    charge(size(value))
    return value


@jinja2.pass_context
def _step(context: Context, value: Any) -> Any:
    charge(STEP)
    return value


@jinja2.pass_context
def _concat(context: Context, *values: Any) -> str:
    for value in values:
        charge(len(str(value)))
    return markup_join(values) if context.eval_ctx.autoescape else str_join(values)


@jinja2.pass_context
def _built(context: Context, value: Any) -> Any:
    return charge_result(value)


class _Metering(NodeTransformer):
    """Puts the meter where a template loops, prints, concatenates or slices. Calls and operators have hooks already."""

    @staticmethod
    def wrap(node: nodes.Node, name: str, *args: nodes.Node) -> nodes.Filter:
        attributes = {"lineno": node.lineno, "environment": node.environment}
        return nodes.Filter(node, name, list(args), [], None, None, **attributes)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        # Each round prints an empty text first, and a round that the loop's `if` skips is charged there.
        attributes = {"lineno": node.lineno, "environment": node.environment}
        tick = nodes.Output([self.wrap(nodes.Const("", **attributes), "_step")], **attributes)
        node.body.insert(0, tick)
        if node.test is not None:
            node.test = self.wrap(node.test, "_step")
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [self.wrap(self._as_expression(part), "_emit") for part in node.nodes]
        return node

    @staticmethod
    def _as_expression(part: nodes.Node) -> nodes.Node:
        """The text between tags as a constant; it stays as it is inside `{% autoescape true %}`."""
        if not isinstance(part, nodes.TemplateData):
            return part
        attributes = {"lineno": part.lineno, "environment": part.environment}
        return nodes.MarkSafeIfAutoescape(nodes.Const(part.data, **attributes), **attributes)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return self.wrap(node.nodes[0], "_concat", *node.nodes[1:])

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return self.wrap(node, "_built") if isinstance(node.arg, nodes.Slice) else node


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it prints its body."""

    tags = {"generation"}  # noqa: RUF012 - jinja2's declaration

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(lineno)

    def _body(self, caller: Macro) -> str:
        return caller()


class _Namespace(jinja2.utils.Namespace):
    """jinja2's `namespace`, without names that Python gives a meaning to."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # no `self`: `namespace(self=1)` is allowed, as in jinja2
        attributes = dict(*args[1:], **kwargs)
        for name in attributes:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(args[0], attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)


def _check_attribute(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}: names start with a letter")


class _Dict:
    """`dict(...)` and `dict.fromkeys(...)`, without the type `dict` itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as transformers writes it: unlike jinja2's own filter, nothing is escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class Sandbox(ImmutableSandboxedEnvironment):
    """jinja2's immutable sandbox as transformers configures it, metered. Use inside `metered()`."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols])
        self.filters["tojson"] = _tojson
        self.filters = {name: _metered(name, function) for name, function in self.filters.items()}
        self.tests = {name: _metered(name, function) for name, function in self.tests.items()}
        self.filters |= {"_emit": _emit, "_step": _step, "_concat": _concat, "_built": _built}
        del self.globals["lipsum"]  # filler text by the megabyte
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now}
        self.globals |= {"dict": _Dict(), "namespace": _Namespace}

    def compile_template(self, source: str) -> jinja2.Template:
        """Parse, meter and compile. Raises whatever jinja2 or Python's compiler raises."""
        code = self.compile(_Metering().visit(self.parse(source)))
        return jinja2.Template.from_code(self, code, self.make_globals(None))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if operator == "+":
            charge(size(left) + size(right))
        elif operator == "*":
            charge_product([left, right]) if not _both_numbers(left, right) else charge(size(left) + size(right))
        elif operator == "**":
            charge(size(left) * abs(right) if isinstance(right, int) else 0)
        elif isinstance(left, str):
            charge_percent(left, right)
        return charge_result(super().call_binop(context, operator, left, right))

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | bytes) and getattr(function, "__name__", None) in AMPLIFIERS:
            args = tuple(list(arg) if isinstance(arg, types.GeneratorType) else arg for arg in args)
            charge_amplifier(function.__name__, [owner, *args, *kwargs.values()])
        else:
            charge(STEP + total_size(owner, *args, *kwargs.values()))
        return charge_result(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            values = [*args, *kwargs.values()]
            nested = [item for v in values if isinstance(v, Mapping) for item in v.values()]
            charge_str_format(str(value.__self__), values + nested)
            return wrapped(*args, **kwargs)

        return bounded


def _both_numbers(left: Any, right: Any) -> bool:
    return isinstance(left, int | float) and isinstance(right, int | float)
