"""How families of models write calls of tools: a row for each, and which row a model follows.

Sources are the chat templates and model cards that the families publish: Hermes 2 Pro, Qwen2.5 and Qwen3; Llama 3.1,
3.2 and 4; Mistral 7B v0.3 to Small 3.2; DeepSeek V3, V3.1 and R1; Google's guide to function calling with Gemma 3;
Phi-4-mini; Gorilla OpenFunctions; Qwen3-Coder; GLM-4.5 and 4.6.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Call = tuple[str, dict[str, Any]]  # the name of a function and its arguments
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class Mark:
    """A text that calls follow, and the one behind them.

    `python` says that calls may be written as Python here. Behind a mark that also occurs in other text, as a fence
    for JSON, only calls of the request's tools count (`known_only`).
    """

    open: str
    close: str | None = None
    python: bool = False
    known_only: bool = False
    body: Literal["calls", "mistral", "deepseek"] = "calls"


@dataclass(frozen=True)
class ToolFormat:
    """How a family writes calls, and where its answers are searched for them.

    An answer of calls is `begin`, then `call` for each with `separator` between, then `end`. In `call`, `%name%` stands
    for the name, `%arguments%` for them as JSON, `%keywords%` as Python's keyword arguments and `%parameters%` as a
    `parameter` for each, with its `%key%` and `%value%`: a text as it is, JSON for all else. `%space%` is a space that
    some models leave out. `tokens` are the parts of these texts that may be special tokens of a vocabulary.
    """

    name: str
    call: str
    parameter: str = ""
    marks: tuple[Mark, ...] = ()
    begin: str = ""
    separator: str = ""
    end: str = ""
    tokens: tuple[str, ...] = ()
    bare: bool = False  # whether an answer may be a call without any mark
    python: bool = False  # whether it may then be Python
    single: bool = False  # whether templates of the family refuse a message with several calls
    short_ids: bool = False  # whether they want ids of nine letters and digits

    def write(self, calls: Sequence[Call]) -> str:
        """The calls as a model of the family writes them."""
        texts = (self._call(name, arguments) for name, arguments in calls)
        return self.begin.replace("%space%", " ") + self.separator.join(texts) + self.end

    def _call(self, name: str, arguments: dict[str, Any]) -> str:
        values = {"%name%": name}
        if "%keywords%" in self.call:
            values["%keywords%"] = _keywords(arguments)
        elif self.parameter:
            pairs = ({"%key%": key, "%value%": _unquoted(value)} for key, value in arguments.items())
            values["%parameters%"] = "".join(_fill(self.parameter, pair) for pair in pairs)
        else:
            values["%arguments%"] = json.dumps(arguments, ensure_ascii=False)
        return _fill(self.call, values)


def _fill(template: str, values: dict[str, str]) -> str:
    """The template with values, in one pass: what a value spells is never taken for a placeholder."""
    return "".join(values.get(part, part) for part in re.split(r"(%\w+%)", template))


def _unquoted(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _keywords(arguments: dict[str, Any]) -> str:
    if all(map(is_keyword, arguments)):
        return ", ".join(f"{key}={_literal(value)}" for key, value in arguments.items())
    return f"**{_literal(arguments)}"


def is_keyword(name: str) -> bool:
    """Whether Python's `f(name=1)` can say it. (Words such as `None` would be read as values.)"""
    return _IDENTIFIER.fullmatch(name) is not None and name.lower() not in ("true", "false", "none", "null")


def _literal(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_literal(key)}: {_literal(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_literal, value)) + "]"
    # JSON's escapes are Python's too, where characters stand for themselves instead of as surrogate pairs.
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


_LLAMA_MARKS = (
    Mark("<|python_tag|>", python=True),
    Mark("<|python_start|>", "<|python_end|>", python=True),
)
_LLAMA_TOKENS = ("<|python_tag|>", "<|python_start|>", "<|python_end|>")
_NAMED_JSON = '{"name": "%name%", "arguments": %arguments%}'
_DEEPSEEK_MARKS = (
    Mark("<｜tool▁calls▁begin｜>", body="deepseek"),
    Mark("<｜tool▁call▁begin｜>", body="deepseek"),
)
_DEEPSEEK_TOKENS = tuple(f"<｜tool▁{word}｜>" for word in ("calls▁begin", "call▁begin", "sep", "call▁end", "calls▁end"))
_MISTRAL_TOKENS = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")

HERMES = ToolFormat(
    "hermes",
    call=f"<tool_call>\n{_NAMED_JSON}\n</tool_call>",
    separator="\n",
    marks=(Mark("<tool_call>", "</tool_call>"),),
    tokens=("<tool_call>", "</tool_call>"),
)
_FORMATS = (
    HERMES,
    ToolFormat(
        "llama3_json",
        call='{"name": "%name%", "parameters": %arguments%}',
        separator="; ",
        marks=_LLAMA_MARKS,
        tokens=_LLAMA_TOKENS,
        bare=True,
        python=True,
        single=True,
    ),
    ToolFormat(
        "pythonic",
        begin="[",
        call="%name%(%keywords%)",
        separator=", ",
        end="]",
        marks=_LLAMA_MARKS,
        tokens=_LLAMA_TOKENS,
        bare=True,
        python=True,
    ),
    ToolFormat(
        "mistral",
        begin="[TOOL_CALLS]%space%[",
        call=_NAMED_JSON,
        separator=", ",
        end="]",
        marks=(Mark("[TOOL_CALLS]", body="mistral"),),
        tokens=_MISTRAL_TOKENS,
        short_ids=True,
    ),
    ToolFormat(
        "mistral_named",  # since Mistral Small 3.2
        call="[TOOL_CALLS]%name%[ARGS]%arguments%",
        marks=(Mark("[TOOL_CALLS]", body="mistral"),),
        tokens=_MISTRAL_TOKENS,
        short_ids=True,
    ),
    ToolFormat(
        "deepseek",
        begin="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>function<｜tool▁sep｜>%name%\n```json\n%arguments%\n```<｜tool▁call▁end｜>",
        separator="\n",
        end="<｜tool▁calls▁end｜>",
        marks=_DEEPSEEK_MARKS,
        tokens=_DEEPSEEK_TOKENS,
    ),
    ToolFormat(
        "deepseek_v3_1",
        begin="<｜tool▁calls▁begin｜>",
        call="<｜tool▁call▁begin｜>%name%<｜tool▁sep｜>%arguments%<｜tool▁call▁end｜>",
        end="<｜tool▁calls▁end｜>",
        marks=_DEEPSEEK_MARKS,
        tokens=_DEEPSEEK_TOKENS,
    ),
    ToolFormat(
        "gemma",
        begin="[",
        call="%name%(%keywords%)",
        separator=", ",
        end="]",
        marks=(
            Mark("```tool_code", "```", python=True),
            Mark("```tool_call", "```", python=True),
            Mark("```json", "```", known_only=True),
        ),
        bare=True,
        python=True,
    ),
    ToolFormat(
        "phi4",
        begin="<|tool_call|>[",
        call=_NAMED_JSON,
        separator=", ",
        end="]<|/tool_call|>",
        marks=(Mark("<|tool_call|>", "<|/tool_call|>"), Mark("functools", known_only=True)),
        tokens=("<|tool_call|>", "<|/tool_call|>"),
    ),
    ToolFormat(
        "functools",  # Phi-4-mini with the prompt of its model card
        begin="functools[",
        call=_NAMED_JSON,
        separator=", ",
        end="]",
        marks=(Mark("<|tool_call|>", "<|/tool_call|>"), Mark("functools", known_only=True)),
        tokens=("<|tool_call|>", "<|/tool_call|>"),
    ),
    ToolFormat(
        "gorilla",
        call="%name%(%keywords%)",
        separator="\n",
        marks=(Mark("<<function>>", python=True),),
        bare=True,
        python=True,
    ),
    ToolFormat(
        "qwen3_coder",
        call="<tool_call>\n<function=%name%>\n%parameters%</function>\n</tool_call>",
        parameter="<parameter=%key%>\n%value%\n</parameter>\n",
        separator="\n",
        marks=(HERMES.marks[0], Mark("<function=", "</tool_call>")),  # which models begin with now and then
        tokens=HERMES.tokens,
    ),
    ToolFormat(
        "glm4_5",
        call="<tool_call>%name%\n%parameters%</tool_call>",
        parameter="<arg_key>%key%</arg_key>\n<arg_value>%value%</arg_value>\n",
        separator="\n",
        marks=HERMES.marks,
        tokens=(*HERMES.tokens, "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
    ),
)
FORMATS = {row.name: row for row in _FORMATS}

# Texts of a chat template that tell the family, tried in this order; all of a row's must be there.
_IN_TEMPLATE: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("deepseek", ("<｜tool▁call▁begin｜>", "```json")),
    ("deepseek_v3_1", ("<｜tool▁call▁begin｜>",)),
    ("mistral_named", ("[TOOL_CALLS]", "[ARGS]")),
    ("mistral", ("[TOOL_CALLS]",)),
    ("functools", ("functools[",)),
    ("phi4", ("<|tool_call|>",)),
    ("qwen3_coder", ("<function=", "<parameter=")),
    ("glm4_5", ("<tool_call>", "<arg_key>")),
    ("hermes", ("<tool_call>",)),
    ("pythonic", ("func_name1(",)),
    ("llama3_json", ("<|python_tag|>",)),
    ("llama3_json", ('"parameters": ', "<|start_header_id|>")),
    ("llama3_json", ('"parameters": ', "<|header_start|>")),
    ("gemma", ("<start_of_turn>",)),
)
# Beginnings of the names of MLC's conversation templates.
_CONV_TEMPLATES = {
    "gorilla": "gorilla",
    "llama-3_1": "llama3_json",
    "llama-4": "pythonic",
    "ministral3": "mistral_named",
    "deepseek_v3": "deepseek",
    "deepseek_r1": "deepseek",
    "gemma": "gemma",
    "phi-4": "phi4",
}
_MODEL_TYPES = {"gemma": "gemma", "gemma2": "gemma", "gemma3": "gemma", "gemma3_text": "gemma", "llama4": "pythonic"}


def find_format(
    chat_template: str | None = None, conv_template: str | None = None, model_type: str | None = None
) -> ToolFormat:
    """The format of a model: by the text of its chat template, else its conversation template's name, else its type.

    Models that say nothing about tools get Hermes' format: it is the most common one, and it needs no special tokens.
    """
    if chat_template is not None:
        for name, texts in _IN_TEMPLATE:
            if all(text in chat_template for text in texts):
                return FORMATS[name]
    for beginning, name in _CONV_TEMPLATES.items():
        if conv_template is not None and conv_template.startswith(beginning):
            return FORMATS[name]
    return FORMATS[_MODEL_TYPES.get(model_type or "", HERMES.name)]
