"""A model folder's template is found where MLC and Hugging Face keep it, in their order."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlc_llm.templates import (
    NAMED_TEMPLATES,
    ConversationError,
    ConvTemplate,
    JinjaTemplate,
    load_template,
    named_template,
)

USER = [{"role": "user", "content": "Hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
SOURCE = "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"


def write(folder: Path, **files: Any) -> Path:
    for name, content in files.items():
        path = folder / name.replace("__", "/").replace("_DOT_", ".")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


def prompt(folder: Path, **options: Any) -> str:
    return load_template(folder, **{"conv_template": None, "prompt_format": None, **options}).render(USER).text


def test_a_chat_template_is_in_the_tokenizer_config_with_its_special_tokens(tmp_path: Path) -> None:
    config = {"chat_template": SOURCE, "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": False}}
    write(tmp_path, tokenizer_config_DOT_json=config)
    assert prompt(tmp_path) == "<s>Hi</s>"


def test_special_tokens_may_be_in_their_own_file(tmp_path: Path) -> None:
    tokens = {"bos_token": {"content": "<s>"}, "eos_token": "<old>", "additional_special_tokens": ["x"]}
    config = {"chat_template": SOURCE, "eos_token": "</s>", "pad_token": None, "add_bos_token": True}
    write(tmp_path, special_tokens_map_DOT_json=tokens, tokenizer_config_DOT_json=config)
    assert prompt(tmp_path) == "<s>Hi</s>"


def test_a_file_of_its_own_goes_before_the_tokenizer_config(tmp_path: Path) -> None:
    write(tmp_path, tokenizer_config_DOT_json={"chat_template": "config"})
    assert prompt(tmp_path) == "config"
    write(tmp_path, chat_template_DOT_json={"chat_template": "json"})
    assert prompt(tmp_path) == "json"
    write(tmp_path, chat_template_DOT_jinja="jinja")
    assert prompt(tmp_path) == "jinja"


def test_named_templates_are_read_from_a_list_and_from_files(tmp_path: Path) -> None:
    named = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "{{ tools | length }} tool"}]
    write(tmp_path, tokenizer_config_DOT_json={"chat_template": named})
    template = load_template(tmp_path, conv_template=None, prompt_format=None)
    assert (template.render(USER).text, template.render(USER, tools=TOOLS).text) == ("d", "1 tool")
    write(tmp_path, chat_template_DOT_jinja="D", additional_chat_templates__tool_use_DOT_jinja="{{ tools | length }} T")
    template = load_template(tmp_path, conv_template=None, prompt_format=None)
    assert (template.render(USER).text, template.render(USER, tools=TOOLS).text) == ("D", "1 T")


def test_prompt_format_says_which_of_two_counts(tmp_path: Path) -> None:
    write(tmp_path, chat_template_DOT_jinja="jinja")
    both: dict[str, Any] = {"conv_template": NAMED_TEMPLATES["plain"]}
    assert isinstance(load_template(tmp_path, prompt_format=None, **both), ConvTemplate)
    assert isinstance(load_template(tmp_path, prompt_format="conv_template", **both), ConvTemplate)
    assert isinstance(load_template(tmp_path, prompt_format="jinja", **both), JinjaTemplate)
    assert prompt(tmp_path, prompt_format="jinja", **both) == "jinja"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "has no conversation template: neither a conv_template in mlc-chat-config.json nor a chat_template in"),
        ({"prompt_format": "jinja", "conv_template": NAMED_TEMPLATES["plain"]}, "has no conversation template"),
        ({"prompt_format": "conv_template"}, "prompt_format is 'conv_template', but there is no conv_template object"),
        ({"prompt_format": "liquid"}, "prompt_format is 'liquid': expected 'jinja' or 'conv_template'"),
        ({"conv_template": {"roles": {}}}, "conv_template.roles: Value error, has no 'user'"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConversationError) as caught:
        prompt(tmp_path, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "tokenizer_config.json is not valid JSON: Expecting property name"),
        ("[" * 100000, "tokenizer_config.json is not valid JSON: "),
        ("[]", "tokenizer_config.json is a list: expected a JSON object"),
        ({"chat_template": 5}, "tokenizer_config.json is 5: expected a text or a list of named texts"),
        ({"chat_template": "{% if %}"}, "tokenizer_config.json: Expected an expression"),
        ({"chat_template": [{"name": "rag", "template": "x"}]}, "has no template named 'default', only ['rag']"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, content: Any, message: str) -> None:
    write(tmp_path, tokenizer_config_DOT_json=content)
    with pytest.raises(ConversationError) as caught:
        prompt(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_files_are_bounded_and_must_be_text(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ConversationError, match=r"chat_template.jinja is not UTF-8 text: byte 0"):
        prompt(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"x" * (1 << 20) + b"y")
    with pytest.raises(ConversationError, match=r"chat_template.jinja is longer than 1048576 bytes"):
        prompt(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").mkdir()
    with pytest.raises(ConversationError, match=r"chat_template.jinja cannot be read: Is a directory"):
        prompt(tmp_path)


def test_a_folder_of_early_2024_names_one_of_mlcs_templates(tmp_path: Path) -> None:
    expected = named_template("llama-2").render(USER)
    assert load_template(tmp_path, conv_template="llama-2", prompt_format=None).render(USER) == expected
    with pytest.raises(ConversationError, match="llama-2"):
        load_template(tmp_path, conv_template="llama-22")
