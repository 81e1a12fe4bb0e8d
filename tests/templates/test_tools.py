"""Tool definitions and tool_choice are checked against each other."""

from typing import Any

import pytest

from mlc_llm.templates import ConversationError, validate_messages

USER = [{"role": "user", "content": "Hi"}]
NAMED = {"type": "function", "function": {"name": "f"}}


def tool(name: Any = "f", **function: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


@pytest.mark.parametrize("tool_choice", [None, "none", "auto", "required", NAMED])
def test_every_choice_is_possible_among_tools(tool_choice: Any) -> None:
    tools = [tool("f", description="d", parameters={"type": "object"}, strict=True), tool("G-2_" + "x" * 60)]
    assert validate_messages(USER, tools=tools, tool_choice=tool_choice) == USER


@pytest.mark.parametrize("tools", [None, []])
@pytest.mark.parametrize("tool_choice", [None, "none", "auto"])
def test_without_tools_a_choice_may_still_be_none_or_auto(tools: Any, tool_choice: Any) -> None:
    assert validate_messages(USER, tools=tools, tool_choice=tool_choice) == USER


def test_null_fields_of_a_function_are_absent_ones() -> None:
    assert validate_messages(USER, tools=[tool(description=None, parameters=None, strict=None)]) == USER


REFUSED: list[tuple[str, Any, Any, str, str]] = [
    ("no list", {"f": 1}, None, "tools", "tools is a dict: expected a list of objects"),
    ("no object", ["f"], None, "tools[0]", "tools[0] is 'f': a tool is an object"),
    ("no type", [{"function": {"name": "f"}}], None, "tools[0].type", "tools[0].type is None: expected 'function'"),
    ("custom", [{"type": "custom"}], None, "tools[0].type", "tools[0].type is 'custom': expected 'function'"),
    ("no function", [{"type": "function"}], None, "tools[0].function", "is None: expected an object with name"),
    ("more", [{**tool(), "x": 1}], None, "tools[0]", "tools[0] has the key 'x': the possible ones are function, type"),
    ("more inside", [tool(returns={})], None, "tools[0].function", "has the key 'returns': the possible ones are"),
    ("no name", [tool(None)], None, "tools[0].function.name", "is None: expected 1 to 64 letters, digits, '_' or '-'"),
    ("long name", [tool("x" * 65)], None, "tools[0].function.name", "expected 1 to 64 letters"),
    ("newline", [tool("f\n")], None, "tools[0].function.name", r"tools[0].function.name is 'f\n': expected 1 to 64"),
    ("same name", [tool(), tool()], None, "tools[1].function.name", "is 'f', as tools[0] is: names are unique"),
    ("description", [tool(description=1)], None, "tools[0].function.description", "is 1: expected a text"),
    (
        "parameters",
        [tool(parameters=[])],
        None,
        "tools[0].function.parameters",
        "is a list: expected a JSON schema obj",
    ),
    ("strict", [tool(strict="yes")], None, "tools[0].function.strict", "is 'yes': expected true or false"),
    ("too many", [tool(f"f{i}") for i in range(129)], None, "tools", "tools has 129 entries: at most 128 are possible"),
    ("required", None, "required", "tool_choice", "tool_choice is 'required': there must be tools to choose from"),
    ("required of none", [], "required", "tool_choice", "there must be tools to choose from"),
    (
        "named of none",
        None,
        NAMED,
        "tool_choice.function.name",
        "'f': expected that tool among the tools, but there are no",
    ),
    ("named", [tool("g")], NAMED, "tool_choice.function.name", "is 'f': expected one of the tools: g"),
    ("word", [tool()], "any", "tool_choice", "tool_choice is 'any': expected 'none', 'auto', 'required' or {"),
    ("number", [tool()], 5, "tool_choice", "tool_choice is 5: expected 'none'"),
    (
        "allowed",
        [tool()],
        {"type": "allowed_tools"},
        "tool_choice.type",
        "tool_choice.type is 'allowed_tools': expected",
    ),
    ("choice more", [tool()], {**NAMED, "x": 1}, "tool_choice", "tool_choice has the key 'x'"),
    (
        "unhashable",
        [tool()],
        {"type": "function", "function": {"name": ["f"]}},
        "tool_choice.function.name",
        "is a list",
    ),
]


@pytest.mark.parametrize(("tools", "choice", "param", "text"), [r[1:] for r in REFUSED], ids=[r[0] for r in REFUSED])
def test_a_tool_that_cannot_be_called_is_refused(tools: Any, choice: Any, param: str, text: str) -> None:
    with pytest.raises(ConversationError) as caught:
        validate_messages(USER, tools=tools, tool_choice=choice)
    assert text in str(caught.value)
    assert caught.value.param == param


def test_schemas_are_bounded_in_depth() -> None:
    schema: Any = {}
    for _ in range(100):
        schema = {"items": schema}
    with pytest.raises(ConversationError, match="nested deeper than 64 levels"):
        validate_messages(USER, tools=[tool(parameters=schema)])
