"""Choosing the next token of one request from the model's logits."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import EngineError
from .sampling_params import SamplingParams

Logits = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

_GREEDY_TEMPERATURE = 1e-5  # at or below, the softmax has all its weight on the largest logit
_FORBIDDEN_BIAS = -100.0
_FLOORS = (-5.0, -10.0)  # logits, less their maximum, below these are looked at only when too few are above
_FEW = 2048  # candidates that may as well be sorted
_BLOCK = 512


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

    def __init__(self, params: SamplingParams, vocab_size: int, prompt_ids: Sequence[int] = ()) -> None:
        """`params` are validated ones; `prompt_ids` count for repetition_penalty only.

        Raises RequestError for invalid params, EngineError for prompt tokens outside the vocabulary.
        """
        params.validate(vocab_size)
        self._params = params
        self._vocab_size = vocab_size
        self._greedy = params.temperature <= _GREEDY_TEMPERATURE or params.top_p == 0 or params.top_k == 1
        self._seed = (secrets.randbits(64) if params.seed is None else int(params.seed)) % 2**64
        self._step = 0
        self._counts: dict[int, int] = {}
        self._counts_tokens = bool(params.presence_penalty or params.frequency_penalty)
        self._repeated = dict.fromkeys(prompt_ids) if params.repetition_penalty != 1 else {}
        if self._repeated and not 0 <= min(self._repeated) <= max(self._repeated) < vocab_size:
            raise EngineError(f"the prompt has a token outside the model's vocabulary of {vocab_size}")
        self._bias_ids = np.array(list(params.logit_bias), dtype=np.int64)
        self._bias = np.array(
            [-math.inf if bias <= _FORBIDDEN_BIAS else bias for bias in params.logit_bias.values()], dtype=np.float32
        )

    def sample(self, logits: Logits) -> Sampled:
        """Choose the next token from `logits` [vocab_size], which are left as they are.

        Raises EngineError when they are not usable: another size, NaN, infinite, or every token forbidden.
        """
        if logits.shape != (self._vocab_size,):
            raise EngineError(f"the model gave logits of shape {logits.shape}; expected [{self._vocab_size}]")
        # Overflow to -inf is as good as the tiny weight that it stands for; a NaN is found below.
        with np.errstate(over="ignore", invalid="ignore"):
            return self._sample(logits)

    def _sample(self, logits: Logits) -> Sampled:
        adjusted = self._adjust(logits)
        best = int(adjusted.argmax())  # to numpy a NaN is the largest
        largest = adjusted[best]
        if largest == -math.inf:
            raise EngineError("no token is left to choose: every one has the logit -inf")
        if not math.isfinite(largest):
            raise EngineError(
                f"the model gave the logit {largest} for token {best}: its weights or its library are damaged"
            )
        token = best if self._greedy else self._draw(adjusted, largest)
        self._record(token)
        if not self._params.logprobs:
            return Sampled(token)
        return _with_logprobs(token, logits, self._params.top_logprobs)

    def _record(self, token: int) -> None:
        self._step += 1
        if self._counts_tokens:
            self._counts[token] = self._counts.get(token, 0) + 1
        if self._params.repetition_penalty != 1:
            self._repeated[token] = None

    def _adjust(self, logits: Logits) -> Logits:
        """Logits after bias and penalties: a copy, or `logits` itself when there is nothing to do."""
        params = self._params
        if not (self._bias.size or self._counts or self._repeated):
            return logits
        adjusted: Logits = logits.copy()
        adjusted[self._bias_ids] += self._bias
        if self._counts:
            ids = np.fromiter(self._counts, np.int64, len(self._counts))
            counts = np.fromiter(self._counts.values(), np.float32, len(self._counts))
            adjusted[ids] -= params.presence_penalty + counts * params.frequency_penalty
        if self._repeated:
            ids = np.fromiter(self._repeated, np.int64, len(self._repeated))
            seen, penalty = adjusted[ids], params.repetition_penalty
            adjusted[ids] = np.where(seen < 0, seen * penalty, seen / penalty)
        return adjusted

    def _draw(self, logits: Logits, largest: np.float32) -> int:
        """One token of softmax(logits / temperature), cut down by top_k, top_p and min_p."""
        params = self._params
        ids: Ids | None = None  # the tokens that are left, None while these are all
        scaled = logits - largest
        scaled /= np.float32(params.temperature)
        if 0 < params.top_k < scaled.size:
            ids = _largest(scaled, params.top_k)
            scaled = scaled[ids]
        weights: Logits = np.exp(scaled, out=scaled)  # the softmax but for its scale; the largest is 1
        if params.top_p < 1:
            kept = _nucleus(weights, params.top_p)
            weights, ids = weights[kept], kept if ids is None else ids[kept]
        if params.min_p > 0:
            kept = np.flatnonzero(weights >= params.min_p)
            weights, ids = weights[kept], kept if ids is None else ids[kept]
        index = _pick(weights, self._uniform())
        return index if ids is None else int(ids[index])

    def _uniform(self) -> float:
        """This step's number in [0, 1). `random_raw` is the part of numpy's generators that never changes."""
        raw = np.random.Philox(key=self._seed, counter=self._step).random_raw()
        return (int(raw) >> 11) * 2.0**-53


def _first(values: Logits, count: int, threshold: np.float32) -> Ids:
    """Ascending ids of the `count` largest values, the smallest of which is `threshold`; of equals the lowest ids."""
    ids = np.flatnonzero(values >= threshold)
    if surplus := ids.size - count:
        equal = np.flatnonzero(values[ids] == threshold)
        ids = np.delete(ids, equal[-surplus:])
    return ids


def _largest(scaled: Logits, count: int) -> Ids:
    """Ids of the `count` largest of `scaled`, logits less their maximum, ascending."""
    candidates = scaled
    for floor in _FLOORS:
        likely = np.compress(scaled >= floor, scaled)
        if likely.size >= count:
            candidates = likely
            break
    place = candidates.size - count
    return _first(scaled, count, np.partition(candidates, place)[place])


def _nucleus(weights: Logits, top_p: float) -> Ids:
    """Ids of the fewest largest weights whose sum is at least `top_p` of the total, ascending.

    The smallest of them is found as quickselect finds it: split the candidates at their mean, go on with the side
    that has it, and sort when few are left. So the work is that of a few passes, not that of a sort; the range of
    float32 leaves no room for a distribution that takes many.
    """
    missing = top_p * float(weights.sum(dtype=np.float64))
    candidates, above = weights, 0  # `above` weights that are larger than all candidates are in
    while candidates.size > _FEW:
        is_larger = candidates > candidates.mean()
        larger = np.compress(is_larger, candidates)
        if not 0 < larger.size < candidates.size:
            break  # all are equal
        mass = float(larger.sum(dtype=np.float64))
        if mass >= missing:
            candidates = larger
        else:
            missing -= mass
            above += larger.size
            candidates = np.compress(~is_larger, candidates)
    ordered = np.sort(candidates)[::-1]
    place = int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), missing))
    place = min(place, ordered.size - 1)  # the sums are rounded and may stay just below `missing`
    return _first(weights, above + place + 1, ordered[place])


def _pick(weights: Logits, uniform: float) -> int:
    """The index whose share of the running sum covers `uniform` of [0, 1); never one of weight 0.

    The sum runs over blocks first: numpy's cumulative sums are slow.
    """
    sums = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)), dtype=np.float64)
    target = uniform * float(sums[-1])
    block = _covering(sums, target)
    within = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    return block * _BLOCK + _covering(within, target - (float(sums[block - 1]) if block else 0.0))


def _covering(sums: npt.NDArray[np.float64], target: float) -> int:
    """The first index whose running sum is above `target`, which rounding may have lifted to the last sum."""
    return int(np.searchsorted(sums, min(target, np.nextafter(sums[-1], 0)), side="right"))


def _with_logprobs(token: int, logits: Logits, top: int) -> Sampled:
    """The token with its log-probability and those of the `top` most likely tokens; impossible ones are left out."""
    shifted = logits - logits.max()
    log_total = math.log(np.exp(shifted).sum(dtype=np.float64))
    ids = _largest(shifted, min(top, shifted.size)) if top else np.empty(0, np.int64)
    ranked = ids[np.argsort(-shifted[ids], kind="stable")]
    pairs = [(int(i), float(shifted[i]) - log_total) for i in ranked if shifted[i] > -math.inf]
    return Sampled(token, float(shifted[token]) - log_total, pairs)
