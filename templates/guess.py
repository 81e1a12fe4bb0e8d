"""Which of the library's templates a model's own chat template is, so that a folder can carry both."""

from .conversation import ConvTemplate
from .library import NAMED_TEMPLATES
from .prompt import ConversationError, Template

_USER = {"role": "user", "content": "What is two plus two?"}
_SYSTEM = {"role": "system", "content": "Answer in one word."}
_PROBES = (
    [_USER],
    [_USER, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "And three?"}],
    [_SYSTEM, _USER],
    [_SYSTEM, _USER, {"role": "assistant", "content": "Four."}, {"role": "user", "content": "And three?"}],
)


def guess_conv_template(template: Template) -> str | None:
    """The name of the library's template that renders as `template` does; None where none is equal.

    Equality is over conversations with and without a system message, of one and two turns. One that `template` refuses
    (Gemma's refuses system messages) says nothing, but the first must render. A prefix of token ids in the library
    stands for `template`'s `bos_token` in the text.
    """
    wanted = [_text(template, probe) for probe in _PROBES]
    if wanted[0] is None:
        return None
    bos_token = getattr(template, "bos_token", None) or ""
    for name, conv_template in NAMED_TEMPLATES.items():
        candidate = ConvTemplate.from_dict(conv_template)
        prefix = bos_token if candidate.system_prefix_token_ids else ""
        texts = ((text, _text(candidate, probe)) for text, probe in zip(wanted, _PROBES, strict=True))
        if all(text is None or (other is not None and text == prefix + other) for text, other in texts):
            return name
    return None


def _text(template: Template, messages: list[dict[str, str]]) -> str | None:
    try:
        return template.render(messages).text
    except ConversationError:
        return None
