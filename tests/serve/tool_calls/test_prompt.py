"""Tools, calls and results are in the prompt: as the model's template has them, or as text where it has no place."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from tool_cases import TOOLS, parsed
from transformers import PreTrainedTokenizerFast

from mlc_llm.serve.tool_calls import FORMATS, ToolPrompt, find_format
from mlc_llm.templates import NAMED_TEMPLATES, ConvTemplate, JinjaTemplate, validate_messages

FOLDER = Path(__file__).parents[2] / "templates" / "chat_templates"
TEMPLATES = {path.stem: path.read_text() for path in FOLDER.glob("*.jinja") if path.stem != "features"}
SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def call(identifier: str, city: str) -> dict[str, Any]:
    arguments = json.dumps({"city": city})
    return {"id": identifier, "type": "function", "function": {"name": "weather", "arguments": arguments}}


ASKED = [{"role": "user", "content": "Weather?"}]
ANSWERED = validate_messages(
    [
        *ASKED,
        {"role": "assistant", "content": None, "tool_calls": [call("call_1", "Oslo"), call("call_2", "Rome")]},
        {"role": "tool", "content": "sunny in Rome", "tool_call_id": "call_2"},
        {"role": "tool", "content": "snow in Oslo", "tool_call_id": "call_1"},
    ],
    tools=TOOLS,
)
AND_ON = [*ANSWERED, {"role": "assistant", "content": "Snow and sun."}, {"role": "user", "content": "And Paris?"}]


@pytest.fixture(scope="module")
def oracle() -> PreTrainedTokenizerFast:
    vocabulary = {token: index for index, token in enumerate(SPECIAL_TOKENS.values())}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>")), **SPECIAL_TOKENS
    )


def prompt_of(source: str) -> ToolPrompt:
    return ToolPrompt(JinjaTemplate(source, **SPECIAL_TOKENS), find_format(source))


@pytest.mark.parametrize("name", [name for name, source in TEMPLATES.items() if "tools" in source])
def test_templates_with_tools_render_as_transformers_renders_them(oracle: PreTrainedTokenizerFast, name: str) -> None:
    oracle.chat_template = TEMPLATES[name]
    in_order = [*ANSWERED[:2], ANSWERED[3], ANSWERED[2]]
    if name == "mistral":  # whose template insists on short ids
        names = {"call_1": "aaaaaaaaa", "call_2": "bbbbbbbbb"}
        in_order = json.loads(json.dumps(in_order).replace("call_1", "aaaaaaaaa").replace("call_2", "bbbbbbbbb"))
        given = json.loads(json.dumps(ANSWERED).replace("call_1", names["call_1"]).replace("call_2", names["call_2"]))
    else:
        given = ANSWERED
    for tools in (TOOLS, None):
        for ours, theirs in ((ASKED, ASKED), (given, in_order)):
            expected = oracle.apply_chat_template(theirs, tools=tools, tokenize=False, add_generation_prompt=True)
            assert prompt_of(TEMPLATES[name]).render(ours, tools=tools).text == expected


@pytest.mark.parametrize("name", [name for name, source in TEMPLATES.items() if "tools" not in source])
def test_other_templates_get_tools_as_text(oracle: PreTrainedTokenizerFast, name: str) -> None:
    """The prompt is transformers' rendering of messages that have tools, calls and results in their contents."""
    form = find_format(TEMPLATES[name])
    prompt = prompt_of(TEMPLATES[name]).render(AND_ON, tools=TOOLS).text
    written = form.write([("weather", {"city": "Oslo"}), ("weather", {"city": "Rome"})])
    assert [kind for kind, *_ in parsed(form.name, [written])] == ["call", "call"]
    results = "".join(f"<tool_response>\n{text}\n</tool_response>\n" for text in ("snow in Oslo", "sunny in Rome"))
    turns = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": written},
        {"role": "user", "content": results[:-1]},
        *AND_ON[-2:],
    ]
    oracle.chat_template = TEMPLATES[name]
    without = oracle.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt_of(TEMPLATES[name]).render(AND_ON).text == without
    start = prompt.index("# Tools\n")
    end = prompt.index(form.write([("name_of_function", {"name_of_argument": "value"})]), start)
    for tool in TOOLS:
        assert json.dumps(tool["function"]) in prompt[start:end]
    assert prompt.index("Weather?") > end


def test_without_calls_and_tools_a_prompt_is_the_template_s_own() -> None:
    template = JinjaTemplate(TEMPLATES["chatml"], **SPECIAL_TOKENS)
    assert ToolPrompt(template, FORMATS["hermes"]).render(ASKED) == template.render(ASKED)


def test_the_system_message_stays_in_front_of_the_tools() -> None:
    messages = [{"role": "system", "content": "Be brief."}, *ASKED]
    text = prompt_of(TEMPLATES["chatml"]).render(messages, tools=TOOLS).text
    assert "<|im_start|>system\nBe brief.\n\n# Tools\n" in text


def test_a_template_that_refuses_system_messages_has_the_tools_in_the_first_question() -> None:
    text = prompt_of(TEMPLATES["gemma"]).render(ASKED, tools=TOOLS).text
    assert text.startswith("<s><start_of_turn>user\n# Tools\n")
    assert text.endswith("\n\nWeather?<end_of_turn>\n<start_of_turn>model\n")


def test_what_the_user_says_after_a_result_joins_it() -> None:
    messages = [*ANSWERED, {"role": "user", "content": "Hurry!"}]
    text = prompt_of(TEMPLATES["gemma"]).render(messages).text  # which refuses two turns of the user in a row
    assert "sunny in Rome\n</tool_response>\nHurry!<end_of_turn>" in text


def test_mistral_s_ids_are_made_short_and_stay_pairs() -> None:
    text = prompt_of(TEMPLATES["mistral"]).render(ANSWERED, tools=TOOLS).text
    ids = [part[:9] for part in text.split('id": "')[1:]]
    assert len(ids) == 4
    assert ids[:2] == ids[2:]
    assert all(identifier.isalnum() for identifier in ids)


LLAMA = (
    "{% for message in messages %}{% if message.tool_calls %}{% if message.tool_calls | length != 1 %}"
    "{{ raise_exception('one call at a time') }}{% endif %}<|python_tag|>"
    '{"name": "{{ message.tool_calls[0].function.name }}", '
    '"parameters": {{ message.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}{{ message.role }}: {{ message.content }}{% endif %}{{ '\\n' }}{% endfor %}{{ tools | tojson }}"
)


def test_templates_of_one_call_a_message_get_a_message_for_each() -> None:
    text = prompt_of(LLAMA).render(ANSWERED, tools=TOOLS).text
    assert text.splitlines()[1:5] == [
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Oslo"}}',
        "tool: snow in Oslo",
        '<|python_tag|>{"name": "weather", "parameters": {"city": "Rome"}}',
        "tool: sunny in Rome",
    ]


DEEPSEEK = (
    "{% for message in messages %}{% if message['tool_calls'] is defined %}{{ message['content'] + "
    "'<｜tool▁call▁begin｜>' + message['tool_calls'][0]['function']['name'] + '```json' + "
    "message['tool_calls'][0]['function']['arguments'] }}{% else %}{{ message['role'] + message['content'] }}"
    "{% endif %}{% endfor %}"
)


def test_templates_that_add_to_the_content_of_a_call_get_an_empty_one() -> None:
    text = prompt_of(DEEPSEEK).render(ANSWERED).text
    assert '<｜tool▁call▁begin｜>weather```json{"city": "Oslo"}toolsnow in Oslo' in text


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_mlc_s_conversation_templates_can_all_have_tools(name: str) -> None:
    form = find_format(None, name)
    text = ToolPrompt(ConvTemplate.from_dict(NAMED_TEMPLATES[name]), form).render(AND_ON, tools=TOOLS).text
    for part in ("Weather?", "get-time", "Oslo", "snow in Oslo", "Snow and sun.", "And Paris?"):
        assert part in text
    assert text.count("get-time") == 1


def test_gorilla_has_the_functions_where_it_was_trained_to() -> None:
    template = ConvTemplate.from_dict(NAMED_TEMPLATES["gorilla"])
    text = ToolPrompt(template, find_format(None, "gorilla")).render(ASKED, tools=TOOLS).text
    assert "USER: <<question>> Weather? <<function>> [{" in text
    assert "# Tools" not in text


def test_arguments_that_are_no_json_are_shown_as_they_are() -> None:
    broken = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Os'}}
    messages = validate_messages(
        [
            *ASKED,
            {"role": "assistant", "content": "Wait.", "tool_calls": [broken]},
            {"role": "tool", "content": "error", "tool_call_id": "call_1"},
        ]
    )
    text = prompt_of(TEMPLATES["chatml"]).render(messages).text
    assert 'Wait.\n<tool_call>\n{"name": "weather", "arguments": {"arguments": "{\\"city\\": \\"Os"}}\n' in text
