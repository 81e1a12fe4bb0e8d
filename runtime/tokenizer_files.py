"""The tokenizer files of a model folder, read into the `tokenizers` package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from .artifact import read_json, read_tokenizer_file
from .errors import ModelFileError

CONFIG_NAME = "tokenizer_config.json"
_ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# vocab.json + merges.txt do not say how text is cut into words; transformers cuts as GPT-2 does for these classes.
_GPT2_CLASSES = frozenset({"GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast"})


def load_backend(folder: Path) -> tokenizers.Tokenizer:
    """Read tokenizer.json, else tokenizer.model, else vocab.json + merges.txt (MLC's priority).

    Raises ModelFileError.
    """
    config = _read_object(folder / CONFIG_NAME) if (folder / CONFIG_NAME).exists() else {}
    path = folder / "tokenizer.json"
    if path.exists():
        backend = _checked(path, lambda: tokenizers.Tokenizer.from_buffer(read_tokenizer_file(path)))
    elif (path := folder / "tokenizer.model").exists():
        from .sentencepiece_model import parse_model, to_tokenizer  # few models need it

        add_bos = config.get("add_bos_token") is not False
        backend = _checked(path, lambda: to_tokenizer(parse_model(read_tokenizer_file(path)), add_bos))
    elif (path := folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        vocab, merges = _read_vocab(path), _read_merges(folder / "merges.txt")
        backend = _checked(path, lambda: _byte_level_bpe(vocab, merges, config))
    else:
        raise ModelFileError(
            f"{folder} has no tokenizer: expected tokenizer.json, tokenizer.model or vocab.json with merges.txt; "
            "copy these files from the model's source"
        )
    _add_declared_tokens(backend, folder, config)
    return backend


def backend_problem(error: BaseException) -> str | None:
    """What `tokenizers` complains of, in one line; None for an error that is not its own, as a KeyboardInterrupt.

    It raises plain Exception, and its panics, which damaged files can cause, are not even that.
    """
    if isinstance(error, Exception) or type(error).__name__ == "PanicException":
        return " ".join(str(error).split())[:200]
    return None


def _checked(path: Path, load: Callable[[], tokenizers.Tokenizer]) -> tokenizers.Tokenizer:
    try:
        return load()
    except ModelFileError:
        raise
    except BaseException as error:
        if problem := backend_problem(error):
            raise ModelFileError(f"{path} is not a usable tokenizer ({problem}); fetch the file again") from None
        raise


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path, "JSON object")
    if not isinstance(value, dict):
        raise ModelFileError(f"{path} holds a {type(value).__name__}; expected a JSON object")
    return value


def _read_vocab(path: Path) -> dict[str, int]:
    """A JSON object of token to id, as vocab.json and added_tokens.json are."""
    vocab = _read_object(path)
    for token, index in vocab.items():
        if type(index) is not int or not 0 <= index < 2**31:
            raise ModelFileError(
                f"{path} gives {token[:80]!r} the id {str(index)[:80]}; expected a whole number from 0"
            )
    return vocab


def _read_merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = read_tokenizer_file(path).decode().split("\n")
    except UnicodeDecodeError as error:
        raise ModelFileError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        left, *rest = line.rstrip("\r").split(" ")
        if len(rest) != 1:
            raise ModelFileError(f"{path} line {number} is {line[:80]!r}; expected two tokens with a space between")
        merges.append((left, rest[0]))
    return merges


def _byte_level_bpe(
    vocab: dict[str, int], merges: list[tuple[str, str]], config: dict[str, Any]
) -> tokenizers.Tokenizer:
    kind = config.get("tokenizer_class", "GPT2Tokenizer")
    if kind not in _GPT2_CLASSES:
        raise ModelFileError(
            f"{CONFIG_NAME} names the tokenizer class {str(kind)[:80]!r}, which vocab.json and merges.txt do not "
            "describe in full; make a tokenizer.json with `save_pretrained` of transformers' AutoTokenizer"
        )
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    add_prefix_space = config.get("add_prefix_space") is True
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    backend.decoder = decoders.ByteLevel()
    return backend


def _add_declared_tokens(backend: tokenizers.Tokenizer, folder: Path, config: dict[str, Any]) -> None:
    """Add what the files beside the tokenizer declare and it lacks, as transformers does, where the ids line up.

    These are added_tokens.json, and of tokenizer_config.json `added_tokens_decoder` and the tokens with a role.
    """
    roles = [_added_token(config[name]) for name in _ROLES if config.get(name)]
    more = config.get("additional_special_tokens")
    roles += [_added_token(entry) for entry in more] if isinstance(more, list) else []
    special = {token.content for token in roles}
    declared: dict[int, AddedToken] = {}
    if (folder / "added_tokens.json").exists():
        for content, index in _read_vocab(folder / "added_tokens.json").items():
            declared[index] = AddedToken(content, normalized=False, special=content in special)
    entries = config.get("added_tokens_decoder", {})
    if not isinstance(entries, dict):
        raise ModelFileError(f"{CONFIG_NAME}: added_tokens_decoder is {str(entries)[:80]!r}; expected an object")
    for key, entry in entries.items():
        if not (key.isdecimal() and len(key) < 10):
            raise ModelFileError(f"{CONFIG_NAME}: added_tokens_decoder has the key {key[:80]!r}; expected a token id")
        declared[int(key)] = _added_token(entry)

    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    for index, token in sorted(declared.items(), key=lambda item: item[0]):
        expected = backend.token_to_id(token.content)
        if token.content not in known and index == (_next_id(backend) if expected is None else expected):
            backend.add_tokens([token])
            known.add(token.content)
    backend.add_tokens(
        [token for token in roles if token.content not in known and backend.token_to_id(token.content) is not None]
    )


def _added_token(entry: object) -> AddedToken:
    """A token as tokenizer_config.json writes it: its string, or an object with `content` and flags."""
    if isinstance(entry, str):
        return AddedToken(entry, normalized=False, special=True)
    if not isinstance(entry, dict) or not isinstance(entry.get("content"), str):
        raise ModelFileError(f"{CONFIG_NAME} has {str(entry)[:80]!r} where a token was expected; fetch the file again")
    flags = {name: entry.get(name) is True for name in ("single_word", "lstrip", "rstrip", "normalized")}
    return AddedToken(entry["content"], special=entry.get("special", True) is True, **flags)


def _next_id(backend: tokenizers.Tokenizer) -> int:
    """The id that the next added token gets."""
    return max(backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in backend.get_added_tokens_decoder()), 0)
