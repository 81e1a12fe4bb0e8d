"""What a request changes about its logits before a token is chosen: in numpy, and as a list for a device's kernel."""

import math
import struct
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from .errors import EngineError
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_FORBIDDEN_BIAS = -100.0
_CHANGE = struct.Struct("=ifff")  # token, added, subtracted, divisor: CHANGE_WORDS of them
_FLOAT = struct.Struct("=f")


class Adjustments:
    """Bias, penalties and forbidden ends of one request, and the tokens that they depend on: see `Sampler`."""

    def __init__(
        self, params: SamplingParams, vocab_size: int, prompt_ids: Sequence[int], end_ids: Collection[int]
    ) -> None:
        """Raises EngineError for prompt tokens outside the vocabulary."""
        self._params = params
        self._counts: dict[int, int] = {}
        self._counts_tokens = bool(params.presence_penalty or params.frequency_penalty)
        self._repeats = params.repetition_penalty != 1
        self._repeated = dict.fromkeys(prompt_ids) if self._repeats else {}
        if self._repeated and not 0 <= min(self._repeated) <= max(self._repeated) < vocab_size:
            raise EngineError(f"the prompt has a token outside the model's vocabulary of {vocab_size}")
        self._always = bool(params.logit_bias) or self._counts_tokens or self._repeats
        self._end_ids = [token for token in end_ids if 0 <= token < vocab_size]
        self._early = params.min_tokens if self._end_ids else 0  # how many more tokens may not end the answer
        self._changes: Changes | None = None  # made where a device asks for them, and kept up from then on

    @property
    def any(self) -> bool:
        """Whether logits change."""
        return self._always or self._early > 0

    def take(self, token: int) -> None:
        """One more token of the answer."""
        if self._early:
            self._early -= 1
            if not self._early:
                self._changes = None
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._repeats:
            self._repeated[token] = None
        if self._changes is not None and (self._counts_tokens or self._repeats):
            self._changes.put(token, *self._change(token))

    def apply(self, logits: "npt.NDArray[np.float32]") -> None:
        """Change the logits [vocab_size]. Overflow is as good as the infinity that it gives; a NaN is found later."""
        import numpy as np

        params = self._params
        with np.errstate(over="ignore", invalid="ignore"):
            for token, bias in params.logit_bias.items():
                logits[token] += np.float32(-math.inf if bias <= _FORBIDDEN_BIAS else bias)
            if self._counts:
                ids = np.fromiter(self._counts, np.int64, len(self._counts))
                counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
                logits[ids] -= params.presence_penalty + counts * params.frequency_penalty
            if self._repeated:
                ids = np.fromiter(self._repeated, np.int64, len(self._repeated))
                seen, penalty = logits[ids], params.repetition_penalty
                logits[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
            if self._early:
                logits[self._end_ids] = -math.inf

    def changes(self) -> bytearray:
        """The same, as compiler/kernels/gpu/sample_adjust.py reads it."""
        if self._changes is None:
            self._changes = Changes()
            ends = self._end_ids if self._early else ()
            for token in dict.fromkeys((*self._params.logit_bias, *self._counts, *self._repeated, *ends)):
                self._changes.put(token, *self._change(token))
        return self._changes.bytes

    def _change(self, token: int) -> tuple[float, float, float]:
        """What is added to a token's logit, then subtracted, and what it is then divided by; rounded as numpy does."""
        params = self._params
        added = params.logit_bias.get(token, 0.0)
        count, subtracted, divisor = self._counts.get(token, 0), 0.0, 1.0
        if count:
            subtracted = _rounded(params.presence_penalty) + _rounded(count * _rounded(params.frequency_penalty))
        if token in self._repeated:
            divisor = params.repetition_penalty
        if self._early and token in self._end_ids:
            divisor = 0.0
        return -math.inf if added <= _FORBIDDEN_BIAS else added, subtracted, divisor


class Changes:
    """A list with one change for each token that has any."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self._places: dict[int, int] = {}

    def put(self, token: int, added: float, subtracted: float, divisor: float) -> None:
        """Set the change of a token."""
        place = self._places.setdefault(token, len(self._places)) * _CHANGE.size
        self.bytes[place : place + _CHANGE.size] = _CHANGE.pack(token, added, subtracted, divisor)


def _rounded(number: float) -> float:
    """As a float32."""
    value: float = _FLOAT.unpack(_FLOAT.pack(number))[0]
    return value
