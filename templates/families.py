"""How the rows of the template library are written: one function for each family of formats."""

from collections.abc import Sequence
from typing import Any

from .conversation import ConvTemplate

SYSTEM = "{system_message}"


def template(
    name: str,
    roles: Sequence[str],
    seps: Sequence[str],
    content_sep: str = "",
    empty_sep: str | None = None,
    *,
    system: str = "",
    system_template: str = SYSTEM,
    prefix: Sequence[int] | None = None,
    stop: Sequence[str] = (),
    stop_ids: Sequence[int] = (),
    **fields: Any,
) -> ConvTemplate:
    """One row of the library. `roles` are user, assistant and, where the format has it, tool."""
    return ConvTemplate(
        name=name,
        system_template=system_template,
        system_message=system,
        system_prefix_token_ids=None if prefix is None else tuple(prefix),
        roles=dict(zip(("user", "assistant", "tool"), roles, strict=False)),
        seps=tuple(seps),
        role_content_sep=content_sep,
        role_empty_sep=content_sep if empty_sep is None else empty_sep,
        stop_str=tuple(stop),
        stop_token_ids=tuple(stop_ids),
        **{"role_templates": None, **fields},
    )


def chatml(
    name: str, system: str, stop_ids: Sequence[int], *, tool: bool = False, opening: str = "", **fields: Any
) -> ConvTemplate:
    """`<|im_start|>role`, content, `<|im_end|>`: ChatML, by OpenAI; used by Qwen, Hermes, SmolLM2 and many more.

    `opening` is how every answer begins.
    """
    return template(
        name,
        ["<|im_start|>user", f"<|im_start|>assistant{opening}", *(["<|im_start|>tool"] if tool else [])],
        ["<|im_end|>\n"],
        "\n",
        **{
            "system": system,
            "system_template": f"<|im_start|>system\n{SYSTEM}<|im_end|>\n",
            "stop": ["<|im_end|>"],
            "stop_ids": stop_ids,
            **fields,
        },
    )


def llama3(name: str, tool: bool, stop: Sequence[str], stop_ids: Sequence[int]) -> ConvTemplate:
    """Llama 3's headers, with the tool role that 3.1 added."""
    roles = ["user", "assistant", "ipython"][: 3 if tool else 2]
    return template(
        name,
        [f"<|start_header_id|>{role}" for role in roles],
        ["<|eot_id|>"],
        "<|end_header_id|>\n\n",
        system="You are a helpful, respectful and honest assistant.",
        system_template=f"<|start_header_id|>system<|end_header_id|>\n\n{SYSTEM}<|eot_id|>",
        prefix=[128000],
        stop=stop,
        stop_ids=stop_ids,
    )


def gemma(name: str, end_of_turn: int) -> ConvTemplate:
    """Gemma's turns; `end_of_turn` is the id of `<end_of_turn>`."""
    roles = ["<start_of_turn>user", "<start_of_turn>model"]
    stop = ["<end_of_turn>"]
    return template(name, roles, ["<end_of_turn>\n"], "\n", prefix=[2], stop=stop, stop_ids=[1, end_of_turn])


def deepseek3(name: str, model: str, stop_id: int) -> ConvTemplate:
    """DeepSeek V3 and R1."""
    return template(
        name,
        ["<｜User｜>", "<｜Assistant｜>"],
        ["", "<｜end▁of▁sentence｜>"],
        system=f"You are Deepseek-{model}, an AI assistant created exclusively by the Chinese Company DeepSeek. "
        "You'll provide helpful, harmless, and detailed responses to all user inquiries.",
        system_template=f"<｜begin▁of▁sentence｜>{SYSTEM}",
        stop_ids=[stop_id],
    )
