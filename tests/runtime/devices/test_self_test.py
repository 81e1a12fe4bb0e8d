"""The self-test passes on devices that work, and names what does not."""

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy_attention import attention
from numpy_sampling import sample

from mlc_llm.compiler.self_test import build_self_test
from mlc_llm.runtime.devices import known_answers, plugin, self_test
from mlc_llm.runtime.errors import EngineError
from mlc_llm.runtime.ffi import Device
from mlc_llm.runtime.sampling_kernels import Cuts


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("self_test") / "cpu.so"
    build_self_test("cpu", output)
    return output


def test_known_answers_are_right() -> None:
    x, weight = (known_answers.inputs(known_answers.FEATURES, seed) for seed in (1, 2))
    values = np.array(x)
    normed = values / np.sqrt((values**2).mean() + 1e-5) * weight
    np.testing.assert_allclose(known_answers.rms_norm(x, weight), normed, rtol=1e-12)
    gate, up = np.split(values, 2)
    np.testing.assert_allclose(known_answers.silu_mul(x), gate / (1 + np.exp(-gate)) * up, rtol=1e-12)
    dim, heads = known_answers.HEAD_DIM, known_answers.HEADS
    query = np.array(known_answers.inputs(heads * dim, 8)) / 16
    keys, values = (
        np.array([known_answers.inputs(known_answers.KV_HEADS * dim, 10 + 2 * token + kind) for token in range(70)])
        for kind in (0, 1)
    )
    shape = (len(keys), known_answers.KV_HEADS, dim)
    expected = attention(query.reshape(1, heads, dim), keys.reshape(shape), values.reshape(shape), None)
    found = known_answers.attention(query.tolist(), keys.tolist(), values.tolist())
    np.testing.assert_allclose(found, expected.reshape(-1), rtol=1e-9, atol=1e-9)
    weights = known_answers.attention(query.tolist(), keys.tolist(), np.eye(70, shape[1] * dim).tolist())
    assert max(weights) < 0.2  # no token alone decides
    logits = known_answers.inputs(known_answers.VOCAB, 4)
    assert len(set(logits)) > 1000
    for cuts in (Cuts(1.0), Cuts(0.8, 40, 0.9), Cuts(1.0, 7), Cuts(1.0, 0, 0.3)):
        for uniform in (0.1, 0.25, 0.75):
            ours = known_answers.drawn(logits, *cuts[:3], uniform)
            for nearby in (uniform - 1e-5, uniform, uniform + 1e-5):  # no answer depends on rounding
                assert ours == sample(np.array(logits, np.float32), cuts, nearby)


def test_the_processor_passes(library: Path) -> None:
    self_test.run(Device(), library)
    assert self_test.problem("cpu", library) == ""
    assert self_test.problem("cpu", None) == ""


def test_a_wrong_answer_is_named(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_answers, "silu_mul", lambda x: [value + 1 for value in x[: len(x) // 2]])
    with pytest.raises(
        EngineError, match=r"^kernel silu_mul gives [-.\d]+ at 0 in place of [-.\d]+: its driver miscom"
    ):
        self_test.run(Device(), library)


def test_a_process_that_crashes_or_fails_is_told_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "python"
    monkeypatch.setattr(sys, "executable", str(program))
    for body, problem in (
        ("kill -SEGV $$", "its driver ended the process with signal 11: install another version of it"),
        ("echo; echo 'OSError: no room' >&2; exit 3", "the self-test fails: OSError: no room"),
        ("exec sleep 60", "its driver has not answered for 0.2 s: install another version of it"),
    ):
        program.write_text(f"#!/bin/sh\n{body}\n")
        program.chmod(0o755)
        monkeypatch.setattr(self_test, "_TIMEOUT", 0.2 if "sleep" in body else 60)
        assert self_test.problem("cuda", None) == problem


def test_a_device_that_is_not_there() -> None:
    assert re.match(r"(CUDA does not work here|device cuda:9 is not there): ", self_test.problem("cuda:9", None))


@pytest.mark.slow
@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("kind", ["opencl", "vulkan"])
def test_devices_of_this_machine_pass(kind: str, tmp_path: Path) -> None:
    if reason := plugin.problem(kind):
        pytest.skip(reason)
    build_self_test(kind, tmp_path / "kernels.so")
    assert self_test.problem(kind, tmp_path / "kernels.so") == ""
    for answer, kernel in {"matmul": "matmul", "attention": "attention", "drawn": "sample_token"}.items():
        right = getattr(known_answers, answer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known_answers, answer, lambda *given, right=right: _other(right(*given)))
            with pytest.raises(EngineError, match=f"^kernel {kernel} .*: its driver miscompiles it$"):
                self_test.run(Device(kind), tmp_path / "kernels.so")


def _other(answer: Any) -> Any:
    """A wrong answer."""
    return [value + 1 for value in answer] if isinstance(answer, list) else answer + 1
