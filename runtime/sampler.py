"""Choosing the next token of one request from the model's logits."""

import itertools
import math
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .errors import EngineError
from .lazy_array import LazyArray
from .philox import philox, round_keys
from .sampling_kernels import Cuts, Logits, SamplingKernels
from .sampling_params import SamplingParams
from .token_mask import TokenMask, masked

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_GREEDY_TEMPERATURE = 1e-5  # at or below, the softmax has all its weight on the largest logit
_FORBIDDEN_BIAS = -100.0
_NUMBERS_AT_ONCE = 16


class Sampled(NamedTuple):
    """A chosen token. With `logprobs`, its log-probability and `top_logprobs` pairs of token and log-probability."""

    token: int
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()


class Sampler:
    """Samples the tokens of one request, and counts them for the penalties.

    Each call of `sample` does, in this order:

    1. logit bias is added; a bias of -100 forbids the token outright;
    2. presence_penalty and count * frequency_penalty are subtracted for tokens that were generated (OpenAI's rule);
       then repetition_penalty divides positive and multiplies negative logits of tokens in the prompt or generated
       (CTRL, https://arxiv.org/abs/1909.05858, as Hugging Face's RepetitionPenaltyLogitsProcessor);
       tokens that end the answer are forbidden while it has fewer than min_tokens; so are those that a mask does not
       allow;
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
        self,
        params: SamplingParams,
        vocab_size: int,
        kernels: SamplingKernels,
        prompt_ids: Sequence[int] = (),
        end_ids: Collection[int] = (),
    ) -> None:
        """`params` are validated ones; `kernels` those of the model; `prompt_ids` count for repetition_penalty only,
        `end_ids`, which end the answer, for min_tokens.

        Raises RequestError for invalid params, EngineError for prompt tokens outside the vocabulary.
        """
        params.validate(vocab_size)
        self._params = params
        self.vocab_size, self.kernels = vocab_size, kernels
        self.seed = params.seed  # None where one is drawn
        greedy = params.temperature <= _GREEDY_TEMPERATURE or params.top_p == 0 or params.top_k == 1
        top_k = params.top_k if params.top_k < vocab_size else 0
        self.cuts = Cuts() if greedy else Cuts(params.temperature, top_k, params.top_p, params.min_p)
        self.draws = kernels.draws([self.cuts], vocab_size)
        seed = (int.from_bytes(os.urandom(8), "little") if params.seed is None else int(params.seed)) % 2**64
        self._uniforms = itertools.repeat(0.0) if greedy else _uniforms(seed)
        self.uniform = next(self._uniforms)  # the number of [0, 1) that decides the next draw
        self._counts: dict[int, int] = {}
        self._counts_tokens = bool(params.presence_penalty or params.frequency_penalty)
        repeats = params.repetition_penalty != 1
        self._repeated = dict.fromkeys(prompt_ids) if repeats else {}
        if self._repeated and not 0 <= min(self._repeated) <= max(self._repeated) < vocab_size:
            raise EngineError(f"the prompt has a token outside the model's vocabulary of {vocab_size}")
        self._always_adjusts = bool(params.logit_bias) or self._counts_tokens or repeats
        self._end_ids = [token for token in end_ids if 0 <= token < vocab_size]
        self._early = params.min_tokens if self._end_ids else 0  # how many more tokens may not end the answer

    @property
    def adjusts(self) -> bool:
        """Whether logits change beforehand."""
        return self._always_adjusts or self._early > 0

    @property
    def plain(self) -> bool:
        """Whether logits serve for nothing but the draw, so that it can be a part of the model's pass: see `accept`."""
        return not (self._always_adjusts or self._early or self._params.logprobs)

    def sample(self, logits: Logits, mask: TokenMask | None = None) -> Sampled:
        """Choose the next token from `logits` [vocab_size], which are left as they are, among those of the mask.

        Raises EngineError when they are not usable: another size, NaN, infinite, or every token forbidden.
        """
        if logits.shape != (self.vocab_size,):
            raise EngineError(f"the model gave logits of shape {logits.shape}; expected [{self.vocab_size}]")
        adjusted = LazyArray.over(self.adjusted(logits, mask))
        (token,) = self.draws.choose(adjusted, [self.uniform])
        return self.take(token, adjusted, logits)

    def accept(self, token: int) -> Sampled:
        """Take down what a pass of the model has chosen for a `plain` request, with its `draws` and `uniform`.

        Raises EngineError when the logits were not usable.
        """
        if token < 0:
            raise EngineError(
                f"the logit of token {-1 - token} is not finite: the model's weights or its library are damaged"
            )
        self.uniform = next(self._uniforms)
        return Sampled(token)

    def take(self, token: int, adjusted: Logits, logits: Logits) -> Sampled:
        """Take down what the kernel has chosen from adjusted logits. Raises EngineError as `sample` does."""
        if token < 0:
            raise _unusable(-1 - token, adjusted)
        self.uniform = next(self._uniforms)
        if self.plain:
            return Sampled(token)
        if self._early:
            self._early -= 1
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.repetition_penalty != 1:
            self._repeated[token] = None
        if not self._params.logprobs:
            return Sampled(token)
        from .logprobs import logprobs

        values = logits.numpy() if isinstance(logits, LazyArray) else logits
        return Sampled(token, *logprobs(values, token, self._params.top_logprobs, self.kernels))

    def score(self, logits: "npt.NDArray[np.float32]", token: int) -> Sampled:
        """A token that was not chosen here, with the log-probability that the model gives it."""
        from .logprobs import logprobs

        return Sampled(token, *logprobs(logits, token, self._params.top_logprobs, self.kernels))

    def spend(self) -> float:
        """A number of [0, 1) for a draw that is not the sampler's own."""
        number, self.uniform = self.uniform, next(self._uniforms)
        return number

    def adjusted(self, logits: Logits, mask: TokenMask | None = None) -> Logits:
        """The logits after bias, penalties and mask: a copy, where these change anything."""
        if mask is None and not self.adjusts:
            return logits
        import numpy as np

        if not self.adjusts and mask is not None:
            return masked(logits.numpy() if isinstance(logits, LazyArray) else logits, mask)
        adjusted = np.array(logits, np.float32)
        # Overflow is as good as the infinity that it gives; a NaN is found later.
        with np.errstate(over="ignore", invalid="ignore"):
            self._apply(adjusted)
        return adjusted if mask is None else masked(adjusted, mask)

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
        if self._early:
            adjusted[self._end_ids] = -math.inf


class BatchSampler:
    """Samples the tokens of several requests of one model at once, with one call of the kernels for all of them.

    What it chooses is what the samplers would choose; they can go on by themselves, or in another batch.
    """

    def __init__(self, samplers: Sequence[Sampler]) -> None:
        self._samplers = samplers
        self.draws = samplers[0].kernels.draws([sampler.cuts for sampler in samplers], samplers[0].vocab_size)
        self._shape = len(samplers), samplers[0].vocab_size

    @property
    def plain(self) -> bool:
        """Whether all of them are."""
        return all(sampler.plain for sampler in self._samplers)

    def uniforms(self) -> list[float]:
        """The numbers that decide the next draws."""
        return [sampler.uniform for sampler in self._samplers]

    def accept(self, tokens: Sequence[int]) -> "list[Sampled | EngineError]":
        """Take down what a pass of the model has chosen for `plain` requests, with `draws` and `uniforms`."""
        return [_accepted(sampler, token) for sampler, token in zip(self._samplers, tokens, strict=True)]

    def sample(self, logits: Logits, masks: Sequence[TokenMask | None] = ()) -> "list[Sampled | EngineError]":
        """The next token of each request, from its row of `logits` [requests, vocab_size], or what is wrong with it.

        `masks` has one for each request, None for those that may choose any token; it is empty when none has one.
        Raises EngineError for logits of another shape.
        """
        if logits.shape != self._shape:
            raise EngineError(f"the model gave logits of shape {logits.shape}; expected {list(self._shape)}")
        masks = masks or [None] * len(self._samplers)
        needs_all = any(mask is None and not one.adjusts for one, mask in zip(self._samplers, masks, strict=True))
        tokens = self.draws.choose(LazyArray.over(logits), self.uniforms()) if needs_all else [0] * len(masks)
        rows = enumerate(zip(self._samplers, tokens, masks, strict=True))
        return [_row(sampler, token, logits[i], mask) for i, (sampler, token, mask) in rows]


def sample_or_error(sampler: Sampler, logits: Logits, mask: TokenMask | None = None) -> Sampled | EngineError:
    """What `sampler.sample` returns, or raises."""
    try:
        return sampler.sample(logits, mask)
    except EngineError as error:
        return error


def _accepted(sampler: Sampler, token: int) -> Sampled | EngineError:
    try:
        return sampler.accept(token)
    except EngineError as error:
        return error


def _row(sampler: Sampler, token: int, logits: Logits, mask: TokenMask | None) -> Sampled | EngineError:
    try:
        if mask is not None or sampler.adjusts:
            return sampler.sample(logits, mask)
        return sampler.take(token, logits, logits)
    except EngineError as error:
        return error


def _uniforms(seed: int) -> Iterator[float]:
    """The numbers of a request's steps, several of them at a time: code that has just run is many times faster."""
    keys = round_keys(seed)

    def some(first: int) -> list[float]:
        return [(philox(step, keys) >> 11) * 2.0**-53 for step in range(first, first + _NUMBERS_AT_ONCE)]

    return itertools.chain.from_iterable(map(some, itertools.count(1, _NUMBERS_AT_ONCE)))


def _unusable(token: int, logits: Logits) -> EngineError:
    """What is wrong with logits of which `token`'s is the largest."""
    largest = float(logits[token])
    if largest == -math.inf:
        return EngineError("no token is left to choose: every one has the logit -inf")
    return EngineError(f"the model gave the logit {largest} for token {token}: its weights or its library are damaged")
