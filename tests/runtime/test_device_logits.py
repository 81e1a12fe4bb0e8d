"""Tokens that are chosen where a pass has left its logits are those that the host chooses from the same logits."""

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from compiled_sampling import compiled_sampling
from device_kernels import device_kind as device_kind
from device_sampling import device_sampler, on_device

from mlc_llm.runtime.device_logits import DeviceLogits
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.lazy_array import first_columns
from mlc_llm.runtime.sampler import BatchSampler, Sampler
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.token_mask import TokenMask, new_mask

Logits = npt.NDArray[np.float32]

VOCAB, TOKENS = 3011, 3003  # of the model; those that its tokenizer knows
ENDS = [7, 2999]
PARAMS: list[dict[str, Any]] = [
    {},
    {"temperature": 0, "presence_penalty": 1.5, "frequency_penalty": 0.3},
    {"temperature": 0.8, "logit_bias": {11: 20, 12: 19, 13: -100, 3002: 100}},
    {"repetition_penalty": 1.3, "top_p": 0.9},
    {"temperature": 0, "repetition_penalty": 0.6, "min_tokens": 9},
    {"min_tokens": 4, "logit_bias": {7: 100, 2999: 99.5}, "top_k": 3},
    {"frequency_penalty": -2, "presence_penalty": 0.1, "repetition_penalty": 2.0, "min_p": 0.1},
    {"temperature": 0, "logit_bias": {7: -3, 100: 2.5}, "presence_penalty": 2, "repetition_penalty": 1.01},
]


def samplers(seed: int, count: int) -> list[Sampler]:
    prompt = np.random.default_rng(seed).integers(0, TOKENS, 200).tolist()
    return [
        Sampler(SamplingParams(seed=seed + row, **fields), TOKENS, compiled_sampling(), prompt, ENDS)
        for row, fields in enumerate(PARAMS[:count])
    ]


def there(kind: str, logits: Logits, errors: list[BaseException] | None = None) -> DeviceLogits:
    failed = [].append if errors is None else errors.append
    return DeviceLogits(on_device(logits, kind), VOCAB, device_sampler(kind, VOCAB), failed)


def steps(seed: int, rows: int, count: int) -> list[tuple[Logits, list[TokenMask | None]]]:
    """Logits, and masks for some rows: of a few tokens, of half of them, of one."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        logits: Logits = (np.round(rng.standard_normal((rows, VOCAB)) * 24) / 8).astype(np.float32)
        logits[:, TOKENS:] = 1e30  # not looked at
        masks = [None if share == 0 else masked(rng.random(TOKENS) < share, rng) for share in shares(rng, rows)]
        made.append((logits, masks if any(masks) else []))
    return made


def shares(rng: np.random.Generator, rows: int) -> list[float]:
    return rng.choice([0, 0, 0.5, 0.01, 1e-9], rows).tolist()


def masked(allowed: npt.NDArray[np.bool_], rng: np.random.Generator) -> TokenMask:
    allowed[rng.integers(0, TOKENS)] = True
    mask = new_mask(TOKENS)
    bits = np.packbits(allowed, bitorder="little")
    ctypes.memmove(mask, bits.tobytes(), bits.size)
    return mask


def chosen(batch: BatchSampler, logits: Any, masks: Sequence[TokenMask | None]) -> list[Any]:
    """Tokens, or what is wrong."""
    sampled = batch.sample(first_columns(logits, TOKENS), masks)
    return [str(one) if isinstance(one, EngineError) else one.token for one in sampled]


@pytest.mark.parametrize(("seed", "rows"), [(0, 8), (1, 8), (2, 1), (3, 5)])
def test_tokens_are_those_of_the_host(kind: str, seed: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    work = steps(seed, rows, 12)
    host = BatchSampler(samplers(seed, rows))
    expected = [chosen(host, logits, masks) for logits, masks in work]
    monkeypatch.setattr(DeviceLogits, "address", property(lambda logits: pytest.fail("logits are copied to the host")))
    for _ in range(3):
        device = BatchSampler(samplers(seed, rows))
        assert [chosen(device, there(kind, logits), masks) for logits, masks in work] == expected


def test_answers_move_between_batches(kind: str) -> None:
    work = steps(4, 8, 6)
    host, device = samplers(4, 8), samplers(4, 8)
    for step, (logits, masks) in enumerate(work):
        rows = [slice(step, step + 2), slice(0, 8), slice(7, 8)][step % 3]
        found = chosen(BatchSampler(device[rows]), there(kind, logits[rows]), masks[rows])
        assert found == chosen(BatchSampler(host[rows]), logits[rows], masks[rows])


def test_what_is_wrong_is_said_as_on_the_host(kind: str) -> None:
    ((logits, _),) = steps(5, 8, 1)
    logits[0, 3], logits[1, 40], logits[3, [70, 71]] = np.nan, np.inf, -np.inf
    forbidden, every = new_mask(TOKENS), masked(np.ones(TOKENS, np.bool_), np.random.default_rng(0))
    masks = [every, None, forbidden, every, None, forbidden, None, None]
    errors: list[BaseException] = []
    found = chosen(BatchSampler(samplers(5, 8)), there(kind, logits, errors), masks)
    assert found == chosen(BatchSampler(samplers(5, 8)), logits, masks)
    assert found[0] == "the model gave the logit nan for token 3: its weights or its library are damaged"
    assert found[2] == found[5] == "no token is left to choose: every one has the logit -inf"
    assert [isinstance(one, int) for one in found] == [False, False, False, True, True, False, True, True]
    assert errors == []


def test_long_lists_find_room(kind: str) -> None:
    def batch() -> BatchSampler:
        prompts: list[Sequence[int]] = [[1], range(TOKENS), [], range(0, TOKENS, 3)]
        params = SamplingParams(seed=1, repetition_penalty=1.5)
        return BatchSampler([Sampler(params, TOKENS, compiled_sampling(), prompt) for prompt in prompts])

    ((logits, masks),) = steps(6, 4, 1)
    assert chosen(batch(), there(kind, logits), masks) == chosen(batch(), logits, masks)


def test_log_probabilities_are_of_logits_as_they_were(kind: str) -> None:
    def batch() -> BatchSampler:
        some = [SamplingParams(seed=1, logprobs=True, top_logprobs=2, logit_bias={5: 30.0}), SamplingParams(seed=2)]
        return BatchSampler([Sampler(params, TOKENS, compiled_sampling()) for params in some])

    ((logits, _),) = steps(7, 2, 1)
    found = batch().sample(first_columns(there(kind, logits), TOKENS))
    assert found == batch().sample(logits[:, :TOKENS])
    assert len(found[0].top) == 2  # type: ignore[union-attr]


def test_the_host_sees_the_same_numbers(kind: str) -> None:
    ((logits, _),) = steps(8, 3, 1)
    lying = there(kind, logits)
    assert lying.shape == (3, VOCAB)
    np.testing.assert_array_equal(np.asarray(first_columns(lying, 5)), logits[:, :5])
    np.testing.assert_array_equal(lying[1].numpy(), logits[1])
    np.testing.assert_array_equal(np.array(lying), logits)


def test_who_made_the_logits_is_told_when_the_device_fails(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ((logits, masks),) = steps(9, 2, 1)
    errors: list[BaseException] = []
    lost = OSError("device lost")

    def fail(*_: object) -> None:
        raise lost

    lying = there(kind, logits, errors)
    monkeypatch.setattr(type(lying._sampler), "choose", fail)
    with pytest.raises(OSError, match="device lost"):
        chosen(BatchSampler(samplers(9, 2)), lying, masks)
    assert errors == [lost]
