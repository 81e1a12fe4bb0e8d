"""Choosing the next token of one request from the model's logits."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .errors import EngineError
from .lazy_array import LazyArray
from .philox import philox, round_keys
from .sampling_kernels import Cuts, Logits, SamplingKernels
from .sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_GREEDY_TEMPERATURE = 1e-5  # at or below, the softmax has all its weight on the largest logit
_FORBIDDEN_BIAS = -100.0


@dataclass(frozen=True)
class Sampled:
    """A chosen token. With `logprobs`, its log-probability and `top_logprobs` pairs of token and log-probability."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] = field(default_factory=list)


class Sampler:
    """Samples the tokens of one request, and counts them for the penalties.

    Each call of `sample` does, in this order:

    1. logit bias is added; a bias of -100 forbids the token outright;
    2. presence_penalty and count * frequency_penalty are subtracted for tokens that were generated (OpenAI's rule);
       then repetition_penalty divides positive and multiplies negative logits of tokens in the prompt or generated
       (CTRL, https://arxiv.org/abs/1909.05858, as Hugging Face's RepetitionPenaltyLogitsProcessor);
    3. logits / temperature, softmax;
    4. top_k, then top_p of what is left (https://arxiv.org/abs/1904.09751), then min_p
       (https://arxiv.org/abs/2407.01082), in Hugging Face's order; equal probabilities rank by token id;
    5. one draw. Its number is that of a counter-based generator (Philox) with the seed as key and the position in
       the answer as counter, so it depends on nothing else: not on the batch, nor on other requests.

    Greedy requests (temperature 0, top_p 0 or top_k 1) take the largest logit after step 2.

    Log-probabilities are those of the model itself: the log-softmax of the logits as given, before bias, penalties
    and temperature (vLLM's default). So they stay comparable between requests, and are finite for forbidden tokens.
    """

    def __init__(
        self, params: SamplingParams, vocab_size: int, kernels: SamplingKernels, prompt_ids: Sequence[int] = ()
    ) -> None:
        """`params` are validated ones; `kernels` those of the model; `prompt_ids` count for repetition_penalty only.

        Raises RequestError for invalid params, EngineError for prompt tokens outside the vocabulary.
        """
        params.validate(vocab_size)
        self._params = params
        self._vocab_size = vocab_size
        self._greedy = params.temperature <= _GREEDY_TEMPERATURE or params.top_p == 0 or params.top_k == 1
        self._seed = (int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)) % 2**64
        self._step = 0
        self._kernels = kernels
        top_k = params.top_k if params.top_k < vocab_size else 0
        self._cuts = Cuts() if self._greedy else Cuts(params.temperature, top_k, params.top_p, params.min_p)
        self._round_keys = round_keys(self._seed)
        self._counts: dict[int, int] = {}
        self._counts_tokens = bool(params.presence_penalty or params.frequency_penalty)
        self._repeated = dict.fromkeys(prompt_ids) if params.repetition_penalty != 1 else {}
        if self._repeated and not 0 <= min(self._repeated) <= max(self._repeated) < vocab_size:
            raise EngineError(f"the prompt has a token outside the model's vocabulary of {vocab_size}")

    def sample(self, logits: Logits) -> Sampled:
        """Choose the next token from `logits` [vocab_size], which are left as they are.

        Raises EngineError when they are not usable: another size, NaN, infinite, or every token forbidden.
        """
        if logits.shape != (self._vocab_size,):
            raise EngineError(f"the model gave logits of shape {logits.shape}; expected [{self._vocab_size}]")
        if not isinstance(logits, LazyArray):
            import numpy as np

            logits = np.ascontiguousarray(logits)
        adjusted = self._adjust(logits)
        token, largest = self._kernels.sample(adjusted, self._cuts, 0.0 if self._greedy else self._uniform())
        if not math.isfinite(largest):
            if largest == -math.inf:
                raise EngineError("no token is left to choose: every one has the logit -inf")
            raise EngineError(
                f"the model gave the logit {largest} for token {token}: its weights or its library are damaged"
            )
        self._record(token)
        if not self._params.logprobs:
            return Sampled(token)
        from .logprobs import logprobs

        values = logits.numpy() if isinstance(logits, LazyArray) else logits
        return Sampled(token, *logprobs(values, token, self._params.top_logprobs, self._kernels))

    def _record(self, token: int) -> None:
        self._step += 1
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.repetition_penalty != 1:
            self._repeated[token] = None

    def _adjust(self, logits: Logits) -> Logits:
        """Logits after bias and penalties: a copy, or `logits` itself when there is nothing to do."""
        if not (self._params.logit_bias or self._counts or self._repeated):
            return logits
        import numpy as np

        adjusted = np.array(logits, np.float32)
        # Overflow is as good as the infinity that it gives; a NaN is found later.
        with np.errstate(over="ignore", invalid="ignore"):
            self._apply(adjusted)
        return adjusted

    def _apply(self, adjusted: "npt.NDArray[np.float32]") -> None:
        import numpy as np

        params = self._params
        for token, bias in params.logit_bias.items():
            adjusted[token] += np.float32(-math.inf if bias <= _FORBIDDEN_BIAS else bias)
        if self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            adjusted[ids] -= params.presence_penalty + counts * params.frequency_penalty
        if self._repeated:
            ids = np.fromiter(self._repeated, np.int64, len(self._repeated))
            seen, penalty = adjusted[ids], params.repetition_penalty
            adjusted[ids] = np.where(seen < 0, seen * penalty, seen / penalty)

    def _uniform(self) -> float:
        """This step's number in [0, 1)."""
        return (philox(self._step + 1, self._round_keys) >> 11) * 2.0**-53
