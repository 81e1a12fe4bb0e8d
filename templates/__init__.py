"""Conversation templates: from messages to the text that a model was trained on.

`load_template` finds a folder's template, `validate_messages` checks a conversation, `Template.render` makes its prompt
text. The public names load on first use: importing this package imports neither jinja2 nor pydantic.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .prompt import ConversationError, Prompt, Template

if TYPE_CHECKING:
    from .conversation import ConvTemplate
    from .folder import load_jinja_template, load_template
    from .guess import guess_conv_template
    from .jinja import JinjaTemplate
    from .library import NAMED_TEMPLATES, named_template
    from .messages import validate_messages

__all__ = [
    "NAMED_TEMPLATES",
    "ConvTemplate",
    "ConversationError",
    "JinjaTemplate",
    "Prompt",
    "Template",
    "guess_conv_template",
    "load_jinja_template",
    "load_template",
    "named_template",
    "validate_messages",
]

_MODULES = {
    "ConvTemplate": "conversation",
    "JinjaTemplate": "jinja",
    "NAMED_TEMPLATES": "library",
    "guess_conv_template": "guess",
    "load_jinja_template": "folder",
    "load_template": "folder",
    "named_template": "library",
    "validate_messages": "messages",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(f".{_MODULES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
