"""What requests change about logits that lie on a device, against what the sampler does to them in numpy."""

import ctypes
from collections.abc import Sequence
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest
from device_kernels import Kernel, compile_kernel
from device_kernels import device_kind as device_kind

from mlc_llm.compiler.kernels.gpu.sample_adjust import adjust_logits
from mlc_llm.runtime.adjustments import Adjustments
from mlc_llm.runtime.device_logits import written
from mlc_llm.runtime.sampling_params import SamplingParams
from mlc_llm.runtime.token_mask import TokenMask, masked, new_mask

Logits = npt.NDArray[np.float32]

VOCAB = 9001  # three workgroups' part of a mask, and a rest that no word of it divides
SPECIAL = np.array([np.inf, -np.inf, np.nan, 0.0, -0.0, 3e38, -3e38, 1e-30], np.float32)


@cache
def compiled(kind: str) -> Kernel:
    return compile_kernel(adjust_logits(VOCAB), kind)


def adjust(kind: str, logits: Logits, changes: Sequence[bytearray], masks: Sequence[TokenMask | None]) -> Logits:
    words = np.zeros(1 << 16, np.int32)
    words[written(words.data.cast("B"), changes, masks) :] = -1  # is not looked at
    result = logits.copy()
    compiled(kind)(result, words)
    return result


def request(rng: np.random.Generator, kinds: Sequence[str]) -> Adjustments:
    """A request in the middle of its answer."""
    tokens = rng.integers(0, VOCAB, 3000).tolist()
    bias = dict(zip(tokens[:300], rng.choice([-100, -99.5, -1, 0.1, 7, 100], 300).tolist(), strict=True))
    params = SamplingParams(
        logit_bias=bias if "bias" in kinds else {},
        presence_penalty=0.3 if "presence" in kinds else 0.0,
        frequency_penalty=-1.7 if "frequency" in kinds else 0.0,
        repetition_penalty=float(rng.choice([0.01, 0.7, 1.3, 2.0])) if "repetition" in kinds else 1.0,
        min_tokens=130 if "early" in kinds else 1 if "late" in kinds else 0,
    )
    adjustments = Adjustments(params, VOCAB, tokens[200:2500], [tokens[0], tokens[900], VOCAB - 1])
    adjustments.changes()  # kept up from here on
    for token in [*tokens[2400:2500], *tokens[2400:2420], *tokens[:5]]:
        adjustments.take(token)
    return adjustments


def mask_of(allowed: npt.NDArray[np.bool_]) -> TokenMask:
    mask = new_mask(allowed.size)
    bits = np.packbits(allowed, bitorder="little")
    ctypes.memmove(mask, bits.tobytes(), bits.size)
    return mask


KINDS = [
    (), ("bias",), ("presence",), ("frequency",), ("repetition",), ("early",), ("late",),
    ("bias", "presence", "frequency"),
    ("presence", "frequency", "repetition"), ("bias", "presence", "frequency", "repetition", "early"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
def test_logits_become_what_the_sampler_makes_of_them(kind: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits: Logits = (rng.standard_normal((2 * len(KINDS), VOCAB)) * 8).astype(np.float32)
    logits[:, rng.integers(0, VOCAB, 600)] = rng.choice(SPECIAL, 600)
    requests = [request(rng, kinds) for kinds in (*KINDS, *KINDS)]
    allowed = rng.random((len(logits), VOCAB)) < rng.choice([0.0, 0.5, 1.0], (len(logits), 1))
    allowed[:, [seed, VOCAB - 1]] = True
    masks = [None if row % 4 == 0 else mask_of(allowed[row]) for row in range(len(logits))]
    expected = logits.copy()
    for row, (one, mask) in enumerate(zip(requests, masks, strict=True)):
        one.apply(expected[row])
        if mask is not None:
            expected[row] = masked(expected[row], mask)
    changes = [one.changes() for one in requests]
    found = adjust(kind, logits, changes, masks)
    # devices may divide with an error of two units in the last place
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(expected))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(found[~finite], expected[~finite])
    np.testing.assert_array_max_ulp(found[finite], expected[finite], 2)
    exact = [row for row, kinds in enumerate((*KINDS, *KINDS)) if "repetition" not in kinds]
    np.testing.assert_array_equal(found[exact], expected[exact])
    for _ in range(3):
        assert adjust(kind, logits, changes, masks).tobytes() == found.tobytes()


def test_nothing_to_change_leaves_logits_as_they_are(kind: str) -> None:
    logits: Logits = np.random.default_rng(0).standard_normal((3, VOCAB)).astype(np.float32)
    every = mask_of(np.ones(VOCAB, np.bool_))
    assert adjust(kind, logits, [bytearray()] * 3, [None, every, None]).tobytes() == logits.tobytes()
