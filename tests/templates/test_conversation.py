"""MLC's conv_template objects render as MLC-LLM's `Conversation.as_prompt` renders them."""

import json
from typing import Any

import pytest

from mlc_llm.templates import ConversationError, ConvTemplate, named_template

USER = {"role": "user", "content": "Hi"}
SYSTEM = {"role": "system", "content": "Be brief."}
TURNS = [USER, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Bye"}]
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
MINIMAL: dict[str, Any] = {"roles": {"user": "U", "assistant": "A"}, "seps": ["\n"]}


def text(template: ConvTemplate, *messages: dict[str, Any], **options: Any) -> str:
    return template.render(messages, **options).text


def custom(**fields: Any) -> ConvTemplate:
    return ConvTemplate.from_dict({**MINIMAL, **fields})


# What MLC-LLM's own class answers for the same conversations.
@pytest.mark.parametrize(
    ("name", "messages", "prefix", "expected"),
    [
        (
            "llama-2",
            [SYSTEM, *TURNS],
            (1,),
            "[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\nHi [/INST] Hello </s><s>[INST] Bye [/INST] ",
        ),
        (
            "llama-2",
            [USER],
            (1,),
            "[INST] <<SYS>>\nYou are a helpful, respectful and honest assistant.\n<</SYS>>\n\nHi [/INST] ",
        ),
        (
            "llama-3",
            [SYSTEM, USER],
            (128000,),
            "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "chatml",
            [SYSTEM, *TURNS],
            (),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"
            "<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
        ),
        ("mistral_default", [SYSTEM, *TURNS], (1,), "[INST] Be brief.Hi [/INST] Hello [INST] Bye [/INST]"),
        (
            "gemma_instruction",
            TURNS,
            (2,),
            "<start_of_turn>user\nHi<end_of_turn>\n<start_of_turn>model\nHello<end_of_turn>\n"
            "<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n",
        ),
        ("phi-3", [SYSTEM, USER], (1,), "<|system|>\nBe brief.<|user|>\nHi<|end|>\n<|assistant|>\n"),
        ("LM", [USER], (1,), "Hi"),
        ("plain", [USER], (), "Hi"),
        ("deepseek", [SYSTEM, USER], (100000,), "Be brief.User: Hi\n\nAssistant:"),
        (
            "gorilla-openfunctions-v2",
            [SYSTEM, USER],
            (100000,),
            "Be brief.### Instruction: <<function>>\n<<question>>Hi\n### Response: ",
        ),
    ],
)
def test_renders_as_mlc_does(name: str, messages: list[dict[str, Any]], prefix: tuple[int, ...], expected: str) -> None:
    prompt = named_template(name).render(messages)
    assert prompt.text == expected
    assert prompt.prefix_token_ids == prefix


def test_without_a_generation_prompt_the_text_ends_with_the_last_message() -> None:
    assert text(named_template("qwen2"), SYSTEM, USER, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
    )


def test_one_separator_serves_all_and_the_second_of_two_follows_the_assistant() -> None:
    one = custom(roles={"user": "U", "assistant": "A", "tool": "T"}, seps=["|"])
    two = custom(roles={"user": "U", "assistant": "A", "tool": "T"}, seps=["|", "!"])
    messages = [*TURNS, {"role": "tool", "content": "4"}]
    assert text(one, *messages) == "UHi|AHello|UBye|T4|A"
    assert text(two, *messages) == "UHi|AHello!UBye|T4|A"


def test_a_role_is_left_out_only_after_a_system_text() -> None:
    template = custom(add_role_after_system_message=False, role_content_sep=":", role_empty_sep=";")
    assert text(template, USER) == "U:Hi\nA;"
    assert text(template, SYSTEM, USER) == "Be brief.Hi\nA;"
    assert text(template, {"role": "system", "content": ""}, USER) == "U:Hi\nA;"


def test_messages_of_the_object_come_before_the_conversation() -> None:
    template = custom(messages=[["user", "x"], ["assistant", "y"], ["user", None]], role_empty_sep="?")
    assert text(template, USER) == "Ux\nAy\nU?UHi\nA?"


def test_functions_go_where_the_last_placeholder_is() -> None:
    template = custom(
        system_template="{system_message}{function_string}[{function_string}]",
        role_templates={"user": "{user_message} {function_string}"},
    )
    functions = json.dumps([{"description": None, "name": "f", "parameters": {"type": "object"}}])
    assert text(template, SYSTEM, *TURNS, tools=[TOOL]) == f"Be brief.[]UHi \nAHello\nUBye {functions}\nA"
    assert text(template, SYSTEM, USER) == "Be brief.[]UHi \nA"


@pytest.mark.parametrize("name", ["{system_message}", "{user_message}", "{function_string}"])
def test_placeholders_in_a_message_are_only_text(name: str) -> None:
    template = custom(system_template="{system_message}.", role_templates={"user": "{user_message} {function_string}"})
    system, user = {"role": "system", "content": f"s{name}"}, {"role": "user", "content": f"u{name}"}
    assert text(template, system, user) == f"s{name}.Uu{name} \nA"


def test_reasoning_is_dropped_from_answers_before_the_last_question() -> None:
    thought = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nb"}
    plain, strict = named_template("qwen2"), named_template("qwen3")
    assert "hm" in text(plain, USER, thought, USER)
    assert text(strict, USER, thought, USER) == text(strict, USER, {"role": "assistant", "content": "b"}, USER)
    assert "hm" in text(strict, USER, thought)


def test_stop_conditions_are_those_of_the_object() -> None:
    template = custom(name=None, stop_str=["</s>", ""], stop_token_ids=[2])
    assert (template.name, template.stop_strings, template.stop_token_ids) == ("conv_template", ("</s>",), (2,))


def test_an_object_survives_being_written() -> None:
    written = json.loads(json.dumps(named_template("llama-2").to_dict()))
    assert ConvTemplate.from_dict(written) == named_template("llama-2")
    assert written["seps"] == [" ", " </s>"]
    assert written["role_templates"]["tool"] == "{tool_message}"


@pytest.mark.parametrize(
    ("messages", "options", "param"),
    [
        ([{"role": "tool", "content": "4", "tool_call_id": "1"}], {}, "messages[0].role"),
        ([USER, {"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}], {}, "messages[1].tool_calls"),
        ([{"role": "user", "content": None}], {}, "messages[0].content"),
        ([{"role": None, "content": "x"}], {}, "messages[0].role"),
        ([USER], {"tools": [TOOL]}, "tools"),
    ],
)
def test_what_the_object_cannot_express_is_refused(
    messages: list[dict[str, Any]], options: dict[str, Any], param: str
) -> None:
    with pytest.raises(ConversationError) as caught:
        custom().render(messages, **options)
    assert caught.value.param == param


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seps": []}, "conv_template.seps: Tuple should have at least 1 item after validation, not 0"),
        ({"seps": ["a", "b", "c"]}, "conv_template.seps: Tuple should have at most 2 items after validation, not 3"),
        ({"roles": {"user": "U"}}, "conv_template.roles: Value error, has no 'assistant'"),
        ({"roles": "U"}, "conv_template.roles: Input should be a valid dictionary"),
        ({"role_templates": 5}, "conv_template.role_templates: Input should be a valid dictionary"),
        ({"stop_token_ids": [-1]}, "conv_template.stop_token_ids.0: Input should be greater than or equal to 0"),
        (
            {"system_template": "x" * 65537},
            "conv_template.system_template: String should have at most 65536 char",
        ),
    ],
)
def test_a_damaged_object_is_one_line_that_names_the_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        custom(**fields)
    assert str(caught.value).startswith(message)


def test_a_template_that_repeats_a_message_endlessly_is_refused() -> None:
    template = custom(role_templates={"user": "{user_message}" * 4000})
    with pytest.raises(ConversationError, match="the prompt is longer than 16777216 characters"):
        template.render([{"role": "user", "content": "x" * 10000}])
