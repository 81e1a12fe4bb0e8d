"""What a request may tell the model's own chat template: whether to think, and how much.

The names are those that models' templates look at; other servers take them as `chat_template_kwargs` too.
"""

from collections.abc import Mapping
from reprlib import repr as short_repr
from typing import Any

from ..runtime.errors import RequestError

_FIELD = "chat_template_kwargs"
_MAX_CHARACTERS, _MAX_NUMBER = 64, 1 << 30
# Their types, and whose templates look at them.
TEMPLATE_VARIABLES: dict[str, type] = {
    "enable_thinking": bool,  # Qwen3, GLM-4.5, SmolLM3
    "thinking": bool,  # DeepSeek-V3.1, Granite
    "clear_thinking": bool,  # GLM-4.7
    "thinking_budget": int,  # Seed-OSS
    "reasoning_effort": str,  # gpt-oss
    "date_string": str,  # Llama 3
}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")  # OpenAI's


def template_variables(given: Mapping[str, Any] | None, reasoning_effort: str | None) -> dict[str, Any]:
    """The variables that `chat_template_kwargs` and `reasoning_effort` stand for; the former goes before.

    An effort is the variable of that name, and switches thinking on, or with "none" off. Raises RequestError.
    """
    variables: dict[str, Any] = {}
    if reasoning_effort is not None:
        if reasoning_effort not in EFFORTS:
            raise _wrong("reasoning_effort", reasoning_effort, f"one of {', '.join(EFFORTS)}")
        thinks = reasoning_effort != "none"
        variables = {"enable_thinking": thinks, "thinking": thinks}
        if thinks:
            variables["reasoning_effort"] = reasoning_effort
    for name, value in (given or {}).items():
        kind = TEMPLATE_VARIABLES.get(name)
        if kind is None:
            message = f"{_FIELD} has {name[:80]!r}: a request can set {', '.join(TEMPLATE_VARIABLES)}"
            raise RequestError(message, param=f"{_FIELD}.{name[:80]}", code="unknown_field")
        if type(value) is not kind:  # true is no number here
            raise _wrong(f"{_FIELD}.{name}", value, {bool: "true or false", int: "a whole number", str: "a text"}[kind])
        if isinstance(value, int) and not 0 <= value <= _MAX_NUMBER:
            raise _wrong(f"{_FIELD}.{name}", value, f"0 to {_MAX_NUMBER}")
        if isinstance(value, str) and not (len(value) <= _MAX_CHARACTERS and value.isprintable()):
            raise _wrong(f"{_FIELD}.{name}", value, f"at most {_MAX_CHARACTERS} printable characters")
        variables[name] = value
    return variables


def _wrong(field: str, value: object, wanted: str) -> RequestError:
    return RequestError(f"{field} is {short_repr(value)}: expected {wanted}", param=field, code="invalid_value")
