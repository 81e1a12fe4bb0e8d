"""`mlc-chat-config.json` of a model: shapes, sampling defaults, end tokens, tokenizer and conversation template."""

import math
from collections.abc import Mapping
from pathlib import Path
from reprlib import repr as short_repr
from typing import Any, Literal

from ..runtime.artifact import ChatConfig
from ..runtime.errors import ModelFileError
from ..templates import ConversationError, guess_conv_template, load_jinja_template, named_template
from .model.architecture import ModelConfig
from .progress import Progress
from .quantization.choice import AnyScheme
from .quantization.kept import BlockScheme
from .source.source import Source
from .tokenizer_info import active_vocab_size, detect_tokenizer_info, read_tokenizer_json, token_id

# Chat formats by the tokens that only they use, for a model that brings no chat template.
_FORMATS_BY_TOKENS = {
    ("<|start_header_id|>", "<|eot_id|>"): "llama-3",
    ("<|im_start|>", "<|im_end|>"): "chatml",
    ("<start_of_turn>", "<end_of_turn>"): "gemma_instruction",
    ("<|user|>", "<|assistant|>", "<|end|>"): "phi-3",
    ("[INST]", "[/INST]"): "mistral_default",
}
PLAIN = "plain"
# Sampling defaults: field -> lowest, highest, whether the lowest itself is allowed
_SAMPLING = {
    "temperature": (0.0, 2.0, True),
    "top_p": (0.0, 1.0, False),
    "repetition_penalty": (0.01, 2.0, True),
    "presence_penalty": (-2.0, 2.0, True),
    "frequency_penalty": (-2.0, 2.0, True),
}


def make_chat_config(
    source: Source,
    model_type: str,
    config: ModelConfig,
    scheme: AnyScheme,
    folder: Path,
    tokenizer_files: list[str],
    *,
    conv_template: str | None,
    progress: Progress,
) -> ChatConfig:
    """The configuration of a model whose tokenizer files have been written to `folder`.

    `conv_template` names the conversation template; None takes the model's chat template where it has one. Raises
    ModelFileError for values of the source that make no sense.
    """
    architecture = config.to_dict()
    published = {**source.config, **source.generation_config}  # the latter wins, as in transformers
    tokenizer = read_tokenizer_json(folder)
    bos = _token_ids(source.name, "bos_token_id", published.get("bos_token_id"), config.vocab_size)
    eos = _token_ids(source.name, "eos_token_id", published.get("eos_token_id"), config.vocab_size)
    pad = published.get("pad_token_id")
    template, prompt_format = _prompt(source.name, folder, tokenizer, conv_template, progress)
    sampling = {name: _sampling_default(source.name, name, published.get(name)) for name in _SAMPLING}
    fields = {
        "model_type": model_type,
        "quantization": scheme.name,
        "weight_formats": dict(scheme.formats) if isinstance(scheme, BlockScheme) else None,
        "model_config": architecture,
        "vocab_size": config.vocab_size,
        "context_window_size": config.context_window_size,
        "sliding_window_size": config.sliding_window_size,
        "prefill_chunk_size": config.prefill_chunk_size,
        "attention_sink_size": config.attention_sink_size,
        "active_vocab_size": active_vocab_size(tokenizer, config.vocab_size) if tokenizer else config.vocab_size,
        **{name: value for name, value in sampling.items() if value is not None},
        "tokenizer_files": tokenizer_files,
        "tokenizer_info": detect_tokenizer_info(tokenizer) if tokenizer else None,
        "conv_template": _with_own_tokens(template, tokenizer, bos, eos) if template else None,
        "prompt_format": prompt_format,
        "pad_token_id": pad if isinstance(pad, int) and 0 <= pad < config.vocab_size else 0,
        "bos_token_id": bos[0] if bos else None,
        "eos_token_id": eos[0] if len(eos) == 1 else eos,
    }
    return ChatConfig.model_validate(fields)


def _sampling_default(source: str, name: str, value: Any) -> float | None:
    """A sampling default of generation_config.json, None where it is absent. Raises ModelFileError out of range."""
    if value is None:
        return None
    low, high, inclusive = _SAMPLING[name]
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if not (low <= number <= high) or (number == low and not inclusive):
        wanted = f"a number in {'[' if inclusive else '('}{low:g}, {high:g}]"
        raise ModelFileError(f"{source}'s configuration: {name} = {short_repr(value)}: expected {wanted}")
    return number


def _token_ids(source: str, name: str, value: Any, vocab_size: int) -> list[int]:
    """One id, several or none, as Hugging Face writes them. Raises ModelFileError for what is no token id."""
    ids = value if isinstance(value, list) else [] if value is None else [value]
    for index in ids:
        if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < vocab_size:
            raise ModelFileError(f"{source}'s configuration: {name} = {short_repr(value)}: "
                                 f"expected token ids in 0..{vocab_size - 1}")  # fmt: skip
    return list(dict.fromkeys(ids))


def _prompt(
    name: str, folder: Path, tokenizer: Mapping[str, Any] | None, conv_template: str | None, progress: Progress
) -> tuple[dict[str, Any] | None, Literal["jinja", "conv_template"]]:
    """The conversation template as MLC's object, and which of the folder's two formats is authoritative."""
    if conv_template is not None:
        return named_template(conv_template).to_dict(), "conv_template"
    try:
        chat_template = load_jinja_template(folder)
    except ConversationError as error:
        raise ModelFileError(f"{str(error).removesuffix('.')}: name another with --conv-template") from None
    if chat_template is not None:
        # The object is for MLC's runtime alone: the same format where the library has it, else the nearest one.
        nearest = guess_conv_template(chat_template) or _name_by_tokens(name, tokenizer)
        return None if nearest == PLAIN else named_template(nearest).to_dict(), "jinja"
    known = _name_by_tokens(name, tokenizer)
    progress.note(f"{name} brings no chat template: {known!r} is used; --conv-template NAME chooses another")
    return named_template(known).to_dict(), "conv_template"


def _name_by_tokens(name: str, tokenizer: Mapping[str, Any] | None) -> str:
    """The named template of a model that brings none, by its special tokens or its name; else the text as it is."""
    if tokenizer is not None:
        for tokens, known in _FORMATS_BY_TOKENS.items():
            if all(token_id(tokenizer, token) is not None for token in tokens):
                return known
    lower = name.lower()
    return "llama-2" if "llama-2" in lower and "chat" in lower else PLAIN


def _with_own_tokens(
    template: Mapping[str, Any], tokenizer: Mapping[str, Any] | None, bos: list[int], eos: list[int]
) -> dict[str, Any]:
    """`template` with this model's token ids in place of those of the family's first tokenizer."""
    prefix, stops = template.get("system_prefix_token_ids"), list(eos)
    if tokenizer is not None:
        stops += [i for text in template.get("stop_str", ()) if (i := token_id(tokenizer, text)) is not None]
    return {
        **template,
        "system_prefix_token_ids": bos[:1] if bos and prefix is not None and len(prefix) == 1 else prefix,
        "stop_token_ids": list(dict.fromkeys(stops)) or list(template.get("stop_token_ids", ())),
    }
