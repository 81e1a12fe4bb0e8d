"""Choosing the next token of one request from the model's logits."""

import itertools
import math
import os
from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from .adjustments import Adjustments
from .device_logits import DeviceLogits
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
        self._adjustments = Adjustments(params, vocab_size, prompt_ids, end_ids)
        self._always_plain = not (self._adjustments.any or params.logprobs)

    @property
    def adjusts(self) -> bool:
        """Whether logits change beforehand."""
        return self._adjustments.any

    @property
    def plain(self) -> bool:
        """Whether logits serve for nothing but the draw, so that it can be a part of the model's pass: see `accept`."""
        return self._always_plain or not (self._adjustments.any or self._params.logprobs)

    @property
    def reads_logits(self) -> bool:
        """Whether logits serve for more than the choice of a token."""
        return self._params.logprobs

    def changes(self) -> bytearray:
        """What logits are changed by beforehand, as a device's kernel takes it."""
        return self._adjustments.changes() if self.adjusts else bytearray()

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
        self._adjustments.take(token)
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
        self._adjustments.apply(adjusted)
        return adjusted if mask is None else masked(adjusted, mask)


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
        if isinstance(logits, DeviceLogits) and not any(sampler.reads_logits for sampler in self._samplers):
            return self._sample_there(logits, masks)
        needs_all = any(mask is None and not one.adjusts for one, mask in zip(self._samplers, masks, strict=True))
        tokens = self.draws.choose(LazyArray.over(logits), self.uniforms()) if needs_all else [0] * len(masks)
        rows = enumerate(zip(self._samplers, tokens, masks, strict=True))
        return [_row(sampler, token, logits[i], mask) for i, (sampler, token, mask) in rows]

    def _sample_there(self, logits: DeviceLogits, masks: Sequence[TokenMask | None]) -> "list[Sampled | EngineError]":
        """The same, of logits that need not come to the host; they have been changed when one of them is unusable."""
        changes = [sampler.changes() for sampler in self._samplers]
        tokens = logits.choose(self.draws, self.uniforms(), changes, masks)
        rows = enumerate(zip(self._samplers, tokens, strict=True))
        return [_taken(sampler, token, logits[i] if token < 0 else logits) for i, (sampler, token) in rows]


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
    if mask is not None or sampler.adjusts:
        return sample_or_error(sampler, logits, mask)
    return _taken(sampler, token, logits)


def _taken(sampler: Sampler, token: int, logits: Logits) -> Sampled | EngineError:
    try:
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
