"""Finds a model folder's conversation template: MLC's object in its config, or a file beside the tokenizer."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .jinja import MAX_TEMPLATE_CHARS, JinjaTemplate
from .prompt import ConversationError, Template, shown

MAX_JSON_BYTES = 64 << 20
_TOKENIZER_CONFIG = "tokenizer_config.json"
# Where Hugging Face folders keep chat templates; the first that exists counts, as in transformers.
_JINJA_FILE = "chat_template.jinja"
_JINJA_FOLDER = "additional_chat_templates"
_JSON_FILES = ("chat_template.json", _TOKENIZER_CONFIG)


def load_template(
    folder: Path, *, conv_template: Mapping[str, Any] | str | None = None, prompt_format: str | None = None
) -> Template:
    """The template of a model folder. Raises ConversationError.

    `conv_template` and `prompt_format` are fields of `mlc-chat-config.json`: with "jinja" the folder's chat template is
    taken, with "conv_template" the object, with None the object where there is one and else the chat template. Folders
    of early 2024 have MLC's name of a template in place of the object.
    """
    if prompt_format not in (None, "jinja", "conv_template"):
        raise ConversationError(f"prompt_format is {shown(prompt_format)}: expected 'jinja' or 'conv_template'")
    if prompt_format != "jinja" and conv_template is not None:
        if isinstance(conv_template, str):
            from .library import named_template  # a long table that few folders need

            return named_template(conv_template)
        from .conversation import ConvTemplate  # imports pydantic

        return ConvTemplate.from_dict(conv_template)
    if prompt_format == "conv_template":
        raise ConversationError(f"{folder}: prompt_format is 'conv_template', but there is no conv_template object")
    template = load_jinja_template(folder)
    if template is None:
        raise ConversationError(
            f"{folder} has no conversation template: neither a conv_template in mlc-chat-config.json nor a "
            f"chat_template in {_TOKENIZER_CONFIG} or {_JINJA_FILE}; compile the model again with --conv-template NAME"
        )
    return template


def load_jinja_template(folder: Path) -> JinjaTemplate | None:
    """The chat template of a Hugging Face folder; None where it has none. Raises ConversationError for bad files."""
    config = _read_json_object(folder / _TOKENIZER_CONFIG)
    source: Any = _read_jinja_files(folder)
    name = _JINJA_FILE
    for file in _JSON_FILES:
        if source is None:
            source, name = _read_json_object(folder / file).get("chat_template"), file
    if source is None:
        return None
    tokens = {**_special_tokens(_read_json_object(folder / "special_tokens_map.json")), **_special_tokens(config)}
    return JinjaTemplate(source, name=str(folder / name), **tokens)


def _read_jinja_files(folder: Path) -> dict[str, str] | None:
    named = {path.stem: path for path in sorted((folder / _JINJA_FOLDER).glob("*.jinja"))[:64]}
    if (folder / _JINJA_FILE).exists():
        named["default"] = folder / _JINJA_FILE
    return {name: _read_text(path, 4 * MAX_TEMPLATE_CHARS) for name, path in named.items()} or None


def _special_tokens(config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token`, `eos_token`, ... of a config: each is a text, or an object whose `content` is the text."""
    tokens = {}
    for key, value in config.items():
        text = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(text, str):
            tokens[key] = text
    return tokens


def _read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, {} where there is no such file."""
    if not path.exists():
        return {}
    try:
        value = json.loads(_read_text(path, MAX_JSON_BYTES))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ConversationError):
            raise
        raise ConversationError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ConversationError(f"{path} is {shown(value)}: expected a JSON object")
    return value


def _read_text(path: Path, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise ConversationError(f"{path} is longer than {max_bytes} bytes")
        return data.decode("utf-8")
    except OSError as error:
        raise ConversationError(f"{path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConversationError(f"{path} is not UTF-8 text: byte {error.start}") from None
