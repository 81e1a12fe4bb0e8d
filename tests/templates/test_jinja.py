"""Chat templates render as transformers renders them; whatever a template does wrong is one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from mlc_llm.templates import ConversationError, JinjaTemplate, Prompt

TEMPLATES = {path.stem: path.read_text() for path in (Path(__file__).parent / "chat_templates").glob("*.jinja")}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "Weather <now> & here, é",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]


def said(role: str, content: str | None, **fields: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **fields}


CALL = {"id": "abcdefghi", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}
CALLED = [said("user", "Weather?"), said("assistant", None, tool_calls=[CALL])]
CONVERSATIONS = {
    "one question": [said("user", "Hi")],
    "system": [said("system", "Be <b>brief</b> & kind."), said("user", "  Hi\n there \n")],
    "turns": [
        said("user", "a"),
        said("assistant", "b"),
        said("user", "c"),
        said("assistant", "d"),
        said("user", "é🙂'\""),
    ],
    "system and turns": [said("system", "s"), said("user", "a"), said("assistant", " b "), said("user", "c")],
    "thoughts": [said("user", "a"), said("assistant", "<think>\nhm\n</think>\n\nb"), said("user", "c")],
    "reasoning": [said("user", "a"), said("assistant", "b", reasoning_content="hm"), said("user", "c")],
    "wrong order": [said("user", "a"), said("user", "b")],
    "tool call": [*CALLED, said("tool", '{"degrees": 20}', tool_call_id="abcdefghi", name="weather")],
    "after a tool call": [
        *CALLED,
        said("tool", "20", tool_call_id="abcdefghi"),
        said("assistant", "20 degrees"),
        said("user", "Thanks"),
    ],
}


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS.values())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), **SPECIAL_TOKENS
    )


def outcome(render: Callable[[], str]) -> str | None:
    """The rendered text, None for an error of whatever type."""
    try:
        return render()
    except Exception:
        return None


@pytest.mark.parametrize("generate", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_renders_as_transformers_does(
    oracle: PreTrainedTokenizerFast, name: str, conversation: str, generate: bool
) -> None:
    messages = CONVERSATIONS[conversation]
    ours = JinjaTemplate(TEMPLATES[name], **SPECIAL_TOKENS)
    oracle.chat_template = TEMPLATES[name]
    for tools in (None, TOOLS) if "tools" in TEMPLATES[name] else (None,):
        expected = outcome(
            lambda tools=tools: oracle.apply_chat_template(
                messages, tools=tools, tokenize=False, add_generation_prompt=generate
            )
        )
        actual = outcome(lambda tools=tools: ours.render(messages, tools=tools, add_generation_prompt=generate).text)
        assert actual == expected


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_oracle_is_not_silent(oracle: PreTrainedTokenizerFast, name: str) -> None:
    """Every template renders something: otherwise the comparison above would compare errors with errors."""
    oracle.chat_template = TEMPLATES[name]
    assert oracle.apply_chat_template(CONVERSATIONS["turns"], tokenize=False)
    assert JinjaTemplate(TEMPLATES[name], **SPECIAL_TOKENS).render(CONVERSATIONS["turns"]).text


def test_special_tokens_are_in_the_text_and_not_before_it() -> None:
    template = JinjaTemplate(TEMPLATES["llama-3"], bos_token="<|begin_of_text|>", eos_token=None)
    prompt = template.render([said("user", "Hi")])
    assert prompt == Prompt(
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert template.bos_token == "<|begin_of_text|>"
    assert (template.stop_strings, template.stop_token_ids) == ((), ())


@pytest.mark.parametrize("container", [dict, lambda named: [{"name": k, "template": v} for k, v in named.items()]])
def test_of_named_templates_the_one_for_tools_is_taken_when_there_are_tools(container: Callable[..., Any]) -> None:
    template = JinjaTemplate(container({"default": "plain", "tool_use": "{{ tools[0].function.name }}", "rag": "rag"}))
    assert template.render([said("user", "Hi")]).text == "plain"
    assert template.render([said("user", "Hi")], tools=TOOLS).text == "weather"


def test_an_empty_list_of_tools_is_no_tools() -> None:
    template = JinjaTemplate("{{ 'none' if tools is none else 'some' }}")
    assert template.render([said("user", "Hi")], tools=[]).text == "none"


def test_tools_are_refused_where_the_template_never_looks_at_them() -> None:
    with pytest.raises(ConversationError, match=r"chat_template has no place for tools") as caught:
        JinjaTemplate(TEMPLATES["chatml"]).render([said("user", "Hi")], tools=TOOLS)
    assert caught.value.param == "tools"


def test_a_template_that_wants_arguments_as_text_gets_json() -> None:
    template = JinjaTemplate("{{ 'args: ' + messages[1].tool_calls[0].function.arguments }}")
    assert template.render(CALLED).text == 'args: {"city": "Zürich"}'


def test_a_template_cannot_change_the_callers_messages() -> None:
    messages = [said("user", "Hi", name=None)]
    JinjaTemplate("{{ messages[0].name is defined }}").render(messages)
    assert messages == [{"role": "user", "content": "Hi", "name": None}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% if %}", "t: Expected an expression, got 'end of statement block'"),
        ("{{ 1 | no_such_filter }}", "t: No filter named 'no_such_filter'."),
        ("{% raise %}", "t: Encountered unknown tag 'raise'."),
        ("x" * (256 * 1024 + 1), "t has 262145 characters; a template has at most 262144"),
        ({"tool_use": "x"}, "t has no template named 'default', only ['tool_use']"),
        ({"default": 5}, "t: template 'default' is 5: expected a text"),
        (7, "t is 7: expected a text or a list of named texts"),
        (["x"], "t is a list: expected a text or a list of named texts"),
    ],
)
def test_text_that_is_no_template_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        JinjaTemplate(source, name="t")
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('Roles\n must alternate') }}", "t: Roles must alternate"),
        ("{{ messages[5].content.upper() }}", "t: list object has no element 5"),
        ("{{ 1 / 0 }}", "t: ZeroDivisionError: division by zero"),
        ("{{ 1 + 'a' }}", "t: TypeError: unsupported operand type(s) for +: 'int' and 'str'"),
        ("{{ raise_exception('x' * 1000) }}", "t: " + "x" * 297 + "..."),
        (r"{{ '\ud800' }}", "t: the prompt has a lone surrogate at character 0: expected text that UTF-8 can encode"),
    ],
)
def test_what_a_template_raises_is_one_line_about_the_messages(source: str, message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        JinjaTemplate(source, name="t").render([said("user", "Hi")])
    assert str(caught.value) == message
    assert caught.value.param == "messages"
