r"""How a byte-level vocabulary splits text before merging, by `tokenizer.ggml.pre`.

A GGUF file only names its rule. The rules here are those of the models' own tokenizer.json, which decide what
the reference token ids are; llama.cpp's src/llama-vocab.cpp, which defines the names, is close to but not always
equal to them (it has no Unicode normalization, and reads `falcon3` as Llama 3's rule).
"""

from dataclasses import dataclass
from typing import Any

_CONTRACTION = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_UPPER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORD_START = r"[^\r\n\p{L}\p{N}]?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_LLAMA3 = rf"{_CONTRACTION}|{_WORD_START}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORD_START}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_SPACES}"
_TEKKEN = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+|{_WORD_START}{_UPPER}+{_LOWER}*"
    rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_GPT4O = (
    rf"{_WORD_START}{_UPPER}*{_LOWER}+{_CONTRACTION}?|{_WORD_START}{_UPPER}+{_LOWER}*{_CONTRACTION}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_SPACES}"
)
_CJK = "[一-龥\u0800-一가-\ud7ff]+"
# Some letters are written as escapes because their canonical forms, which editors may save, are others.
_DEEPSEEK_LETTERS = (
    r"\s?"
    "[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-\u1f7dᾀ-ᾴᾶ-ᾼ\u1fbe"
    "ῂ-ῄῆ-ῌῐ-\u1fd3ῖ-\u1fdbῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\u2126ℨ\u212a-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ"
    "𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK3_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    rf"| ?[\p{{P}}\p{{S}}]+[\r\n]*|{_SPACES}"
)


@dataclass(frozen=True)
class PreTokenizer:
    """`steps` and `normalizer` in tokenizer.json's terms.

    `ignore_merges`: a whole word that is in the vocabulary is one token, whatever the merges say.
    `add_bos`: whether llama.cpp starts texts with the beginning token where the file does not say.
    """

    steps: tuple[dict[str, Any], ...]
    normalizer: dict[str, Any] | None = None
    ignore_merges: bool = False
    add_bos: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"type": "Sequence", "pretokenizers": list(self.steps)} if len(self.steps) > 1 else dict(self.steps[0])


def _split(regex: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}


def _digits(*, individual: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": individual}


def _byte_level(*, regex: bool) -> dict[str, Any]:
    return {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": regex}


_NFC = {"type": "NFC"}
_PUNCTUATION = {"type": "Punctuation", "behavior": "Contiguous"}
_BYTES, _GPT2_WORDS = _byte_level(regex=False), _byte_level(regex=True)

_llama3 = PreTokenizer((_split(_LLAMA3), _BYTES), ignore_merges=True, add_bos=True)
_llama3_merging = PreTokenizer((_split(_LLAMA3), _BYTES))
_gpt2 = PreTokenizer((_GPT2_WORDS,))
_gpt4o = PreTokenizer((_split(_GPT4O), _BYTES))
_falcon = PreTokenizer((_PUNCTUATION, _GPT2_WORDS, _digits(individual=False), _split("[0-9][0-9][0-9]")))
_single_digits = PreTokenizer((_digits(individual=True), _GPT2_WORDS))

PRE_TOKENIZERS = {
    "command-r": PreTokenizer((_digits(individual=True), _GPT2_WORDS), normalizer=_NFC),
    "dbrx": _llama3_merging,
    "deepseek-coder": PreTokenizer(
        (_split("[\r\n]"), _split(r"\s?\p{L}+"), _split(r"\s?\p{P}+"), _split(_CJK), _digits(individual=True), _BYTES)
    ),
    "deepseek-llm": PreTokenizer(
        (_split("[\r\n]"), _split(_DEEPSEEK_LETTERS), _split("\\s?[!-/:-~！-／：-～‘-‟\u3000-。]+"), _split(r"\s+$"),
         _split(_CJK), _digits(individual=True), _BYTES)
    ),
    "deepseek-r1-qwen": PreTokenizer((_split(_QWEN2), _BYTES)),
    "deepseek-v3": PreTokenizer(
        (_split(r"\p{N}{1,3}"), _split("[一-龥\u3040-ゟ゠-ヿ]+"), _split(_DEEPSEEK3_WORDS), _BYTES)
    ),
    "default": _falcon,
    "falcon": _falcon,
    "falcon3": PreTokenizer((_PUNCTUATION, _GPT2_WORDS, _digits(individual=True))),
    "gpt-2": _gpt2,
    "gpt-4o": _gpt4o,
    "llama-bpe": _llama3,
    "llama-v3": _llama3,
    "llama3": _llama3,
    "llama4": _gpt4o,
    "phi-2": _gpt2,
    "qwen2": PreTokenizer((_split(_QWEN2), _BYTES), normalizer=_NFC),
    "refact": _single_digits,
    "smaug-bpe": _llama3_merging,
    "smollm": _single_digits,
    "starcoder": _single_digits,
    "tekken": PreTokenizer((_split(_TEKKEN), _BYTES), ignore_merges=True, add_bos=True),
}  # fmt: skip
