"""The library of named templates, and finding which of them a model's own chat template is."""

from pathlib import Path
from typing import Any

import pytest

from mlc_llm.templates import (
    NAMED_TEMPLATES,
    ConversationError,
    ConvTemplate,
    JinjaTemplate,
    guess_conv_template,
    named_template,
)

FOLDER = Path(__file__).parent / "chat_templates"
MESSAGES = [{"role": "system", "content": "S1"}, {"role": "user", "content": "U1"}]


def jinja(name: str, **special_tokens: str) -> JinjaTemplate:
    return JinjaTemplate((FOLDER / f"{name}.jinja").read_text(), **special_tokens)


@pytest.mark.parametrize("name", NAMED_TEMPLATES)
def test_every_template_is_whole_and_renders_what_it_is_given(name: str) -> None:
    template = named_template(name)
    assert template.name == name
    assert template.to_dict() == NAMED_TEMPLATES[name]
    rendered = template.render(MESSAGES).text
    assert rendered.count("U1") == 1
    assert rendered.count("S1") == (0 if name == "llama-4" else 1)  # MLC's llama-4 has no place for a system message
    assert rendered.endswith(template.roles["assistant"] + template.role_empty_sep)
    assert "{" not in rendered


def test_the_formats_that_a_user_may_ask_for_are_there() -> None:
    wanted = "llama-2 llama-3 llama-3_1 chatml mistral_default gemma_instruction phi-3 qwen2 LM plain tinyllama_v1_0"
    assert set(wanted.split()) <= set(NAMED_TEMPLATES)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("llama2", "did you mean llama-2 or "),
        ("ChatML", "did you mean chatml or chatml_nosystem?"),
        ("gemma", "did you mean gemma_instruction"),
        ("zzz", "the names are LM, aya-23, chatml,"),
        ("x" * 1000, "unknown conversation template 'xxx"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_ones(name: str, hint: str) -> None:
    with pytest.raises(ConversationError) as caught:
        named_template(name)
    assert hint in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert caught.value.param == "conv_template"


@pytest.mark.parametrize(
    ("template", "name"),
    [
        (jinja("smollm2"), "smollm2"),
        (jinja("qwen2"), "qwen2"),
        (jinja("gemma", bos_token="<bos>"), "gemma_instruction"),
        (jinja("chatml"), None),  # MLC's chatml always has a system message
        (jinja("llama-3", bos_token="<|begin_of_text|>"), None),
        (JinjaTemplate("{{ raise_exception('never') }}"), None),
    ],
)
def test_a_chat_template_is_recognised_only_when_it_renders_the_same(template: JinjaTemplate, name: str | None) -> None:
    assert guess_conv_template(template) == name


@pytest.mark.parametrize("name", ["llama-3", "olmo2", "llm-jp", "deepseek_r1_qwen"])
def test_a_library_template_recognises_itself(name: str) -> None:
    assert guess_conv_template(named_template(name)) == name


def test_a_guess_renders_the_same_conversations() -> None:
    ours, theirs = named_template("smollm2"), jinja("smollm2")
    conversation: list[dict[str, Any]] = [{"role": "user", "content": " 1 "}, {"role": "assistant", "content": "\n"}]
    assert ours.render([*conversation, *conversation]).text == theirs.render([*conversation, *conversation]).text


def test_the_library_holds_plain_objects_for_a_config_file() -> None:
    assert all(ConvTemplate.from_dict(template).to_dict() == template for template in NAMED_TEMPLATES.values())
    assert NAMED_TEMPLATES["qwen2"]["roles"] == {"user": "<|im_start|>user", "assistant": "<|im_start|>assistant"}
