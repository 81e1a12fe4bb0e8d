"""What MLC's runtime wants to know of a tokenizer, read from its tokenizer.json.

Source of the rules: MLC-LLM, cpp/tokenizers/tokenizers.cc, `DetectTokenizerInfo`. Newer files say the same with a
Metaspace pre-tokenizer and decoder, which are read here too.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import tokenizers

from ..runtime.artifact import TokenizerInfo, read_json
from ..runtime.errors import ModelFileError

_SPACE = "\u2581"  # SentencePiece's mark for a space


def read_tokenizer_json(folder: Path) -> dict[str, Any] | None:
    """The folder's tokenizer.json, None where it has none. Raises ModelFileError."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return None
    content = read_json(path, "tokenizer")
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise ModelFileError(f"{path} has no object 'model': expected a tokenizer of the tokenizers library")
    try:
        tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more specific
        raise ModelFileError(f"{path} is not a usable tokenizer ({' '.join(str(error).split())}): "
                             "fetch the file again") from None  # fmt: skip
    return content


def detect_tokenizer_info(tokenizer: Mapping[str, Any]) -> TokenizerInfo:
    """How tokens become text, by the steps that `tokenizer` (a tokenizer.json) lists."""
    decoders = list(_steps(tokenizer.get("decoder"), "decoders"))
    encoders = [
        *_steps(tokenizer.get("normalizer"), "normalizers"),
        *_steps(tokenizer.get("pre_tokenizer"), "pretokenizers"),
    ]
    byte_level = any(step.get("type") == "ByteLevel" for step in decoders)
    return TokenizerInfo(
        token_postproc_method="byte_level" if byte_level else "byte_fallback",
        prepend_space_in_encode=any(map(_prepends_space, encoders)),
        strip_space_in_decode=any(map(_strips_space, decoders)),
    )


def active_vocab_size(tokenizer: Mapping[str, Any], vocab_size: int) -> int:
    """One more than the highest token id in use: logits beyond it belong to padding. At most `vocab_size`."""
    vocab = tokenizer["model"].get("vocab")
    highest = -1
    if isinstance(vocab, dict):
        highest = max((index for index in vocab.values() if isinstance(index, int)), default=-1)
    elif isinstance(vocab, list):
        highest = len(vocab) - 1
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and isinstance(token.get("id"), int):
            highest = max(highest, token["id"])
    return min(highest + 1, vocab_size) if highest >= 0 else vocab_size


def token_id(tokenizer: Mapping[str, Any], content: str) -> int | None:
    """The id of a token by its text, None where there is none."""
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else []:
        if isinstance(token, dict) and token.get("content") == content and isinstance(token.get("id"), int):
            return int(token["id"])
    vocab = tokenizer["model"].get("vocab")
    index = vocab.get(content) if isinstance(vocab, dict) else None
    return index if isinstance(index, int) else None


def _steps(step: Any, children: str) -> Iterator[Mapping[str, Any]]:
    """A step, or those of a sequence of them."""
    if isinstance(step, dict):
        nested = step.get(children)
        if step.get("type") == "Sequence" and isinstance(nested, list):
            yield from (item for item in nested if isinstance(item, dict))
        else:
            yield step


def _prepends_space(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Prepend":
        return bool(step.get("prepend") == _SPACE)
    if step.get("type") == "Metaspace":
        scheme = step.get("prepend_scheme", "always" if step.get("add_prefix_space", True) else "never")
        return bool(scheme != "never")
    return False


def _strips_space(step: Mapping[str, Any]) -> bool:
    if step.get("type") == "Strip":
        return (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)
    return _prepends_space(step)
