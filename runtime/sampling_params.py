"""How a request wants its tokens chosen: the sampling fields of a chat completion, with their ranges."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from reprlib import repr as short_repr

from .errors import RequestError

MAX_LOGIT_BIAS = 300  # entries; OpenAI's limit
MAX_STOP = 16  # OpenAI allows 4
MAX_STOP_CHARACTERS = 1024
MAX_STOP_TOKEN_IDS = 256
MAX_TOP_LOGPROBS = 20

# field: lowest, highest, both allowed
_REAL_RANGES = {
    "temperature": (0.0, 2.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
    "repetition_penalty": (0.01, 2.0),
}
_INTEGER_RANGES = {
    "top_k": (0, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "top_logprobs": (0, MAX_TOP_LOGPROBS),
}
_OPTIONAL = frozenset({"seed", "max_tokens"})
_BOOLEANS = ("ignore_eos", "logprobs")


@dataclass(frozen=True)
class SamplingParams:
    """The sampling fields of one request. The defaults are OpenAI's; call `validate` before use.

    - temperature: 0 to 2; 0 always takes the most likely token.
    - top_p: 0 to 1, keep the fewest most likely tokens whose probabilities reach it; 0 means greedy, as temperature 0.
    - top_k: keep that many most likely tokens; 0 keeps all.
    - min_p: 0 to 1, keep tokens at least that likely relative to the most likely one.
    - frequency_penalty, presence_penalty: -2 to 2, subtracted from the logit of a generated token, for each
      time that it was generated and once.
    - repetition_penalty: 0.01 to 2, Hugging Face's; divides positive and multiplies negative logits of tokens that
      the prompt or the answer has.
    - logit_bias: token id to -100..100, added to the logit; -100 forbids the token. At most 300 entries.
    - seed: any int64; None draws one. max_tokens: None means as far as the context goes.
    - min_tokens: neither an end token nor a stop ends the answer before it has that many.
    - stop: at most 16 strings that end the answer; stop_token_ids: at most 256 tokens that do.
    - ignore_eos: go on after the end-of-sequence token.
    - logprobs, top_logprobs: report log-probabilities of the chosen token and of the 0 to 20 most likely ones.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: bool = False
    top_logprobs: int = 0

    def validate(self, vocab_size: int) -> None:
        """Check every field; token ids must be below `vocab_size`. Raises RequestError that names the field."""
        for name, (low, high) in _REAL_RANGES.items():
            _check_real(name, getattr(self, name), low, high)
        for name, (least, most) in _INTEGER_RANGES.items():
            if name in _OPTIONAL and getattr(self, name) is None:
                continue
            _check_integer(name, getattr(self, name), least, most)
        for name in _BOOLEANS:
            if not isinstance(getattr(self, name), bool):
                raise _invalid(name, getattr(self, name), "true or false")
        if self.top_logprobs and not self.logprobs:
            raise _invalid("top_logprobs", self.top_logprobs, "0 unless logprobs is true")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise _invalid("min_tokens", self.min_tokens, f"at most what max_tokens is, {self.max_tokens}")
        self._check_logit_bias(vocab_size)
        self._check_stop(vocab_size)

    def _check_logit_bias(self, vocab_size: int) -> None:
        if not isinstance(self.logit_bias, Mapping):
            raise _invalid("logit_bias", self.logit_bias, "an object of token id to bias")
        _check_length("logit_bias", self.logit_bias, MAX_LOGIT_BIAS)
        for token, bias in self.logit_bias.items():
            _check_integer("logit_bias", token, 0, vocab_size - 1, "a token id")
            _check_real("logit_bias", bias, -100.0, 100.0, f"the bias of token {token}")

    def _check_stop(self, vocab_size: int) -> None:
        for name, limit in (("stop", MAX_STOP), ("stop_token_ids", MAX_STOP_TOKEN_IDS)):
            if not isinstance(getattr(self, name), tuple):
                raise _invalid(name, getattr(self, name), "a tuple")
            _check_length(name, getattr(self, name), limit)
        for text in self.stop:
            if not isinstance(text, str) or not 1 <= len(text) <= MAX_STOP_CHARACTERS:
                raise _invalid("stop", text, f"strings of 1 to {MAX_STOP_CHARACTERS} characters")
        for token in self.stop_token_ids:
            _check_integer("stop_token_ids", token, 0, vocab_size - 1, "a token id")


def _invalid(name: str, value: object, wanted: str, what: str | None = None) -> RequestError:
    subject = f"{name}: {what}" if what else name
    # Python refuses to write out numbers of thousands of digits.
    seen = "a huge number" if isinstance(value, int) and value.bit_length() > 256 else short_repr(value)
    return RequestError(f"{subject} is {seen}; it must be {wanted}", param=name, code="invalid_value")


def _check_real(name: str, value: object, low: float, high: float, what: str | None = None) -> None:
    # bool is a number to Python, and a NaN passes any test that asks for "too low" or "too high"
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not low <= value <= high:  # type: ignore[operator]
        raise _invalid(name, value, f"a number from {low:g} to {high:g}", what)


def _check_integer(name: str, value: object, low: int, high: int, what: str | None = None) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or not low <= int(value) <= high:
        raise _invalid(name, value, f"a whole number from {low} to {high}", what)


def _check_length(name: str, value: Mapping[int, float] | tuple[object, ...], limit: int) -> None:
    if len(value) > limit:
        message = f"{name} has {len(value)} entries; at most {limit} are allowed"
        raise RequestError(message, param=name, code="invalid_value")
