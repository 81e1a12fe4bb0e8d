"""The demo model on devices: the processor's text for ten prompts, through `mlc chat`, and its logits."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from demo_model import DEMO, PROMPTS, TEXT, log_softmax
from device_kernels import KINDS, require_device

from mlc_llm.compiler.compile import CompileOptions, compile_library, compile_model
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as `mlc chat` compiles it for the processor."""
    output = tmp_path_factory.mktemp("demo") / "SmolLM2-135M-Instruct-MLC"
    return compile_model(CompileOptions(DEMO, output=output, device="cpu")).folder


@pytest.fixture(scope="module", params=KINDS)
def library(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    """A kind of device, and the library for it."""
    require_device(request.param)
    return request.param, compile_library(folder, folder / f"demo-{request.param}.so", device=request.param)


@pytest.fixture(scope="module")
def answers(folder: Path) -> list[str]:
    """The processor's answers to the prompts."""
    return [chat(folder, "-p", prompt, "--device", "cpu") for prompt in PROMPTS]


def chat(folder: Path, *options: str) -> str:
    command = [sys.executable, "-m", "mlc_llm", "chat", str(folder), "--temperature", "0", "--max-tokens", "20"]
    answer = subprocess.run([*command, "--json", *options], check=True, capture_output=True, text=True, timeout=600)
    text: str = json.loads(answer.stdout)["choices"][0]["message"]["content"]
    return text


def test_greedy_answers_are_those_of_the_processor(library: tuple[str, Path], folder: Path, answers: list[str]) -> None:
    device, _ = library
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        assert chat(folder, "-p", prompt, "--device", device) == answer


def test_logits_are_those_of_the_processor(library: tuple[str, Path], folder: Path) -> None:
    _, path = library
    ids = Tokenizer.load(folder).encode(TEXT.read_text())[:96]
    exact = compile_library(folder, folder / "exact.so", device="cpu", opt="O2;activation_bits=32")
    logits = []
    for compiled in (exact, path):
        model = Model.load(folder, compiled, max_num_sequence=1, max_total_sequence_length=256)
        sequence = model.add_sequence()
        prompt = model.logits_of(sequence, ids[:80])
        steps = [np.array(model.decode([sequence], [token])) for token in ids[80:]]
        logits.append(np.concatenate([prompt, *steps]))
    p, q = map(log_softmax, logits)
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    difference = float(np.abs(logits[0] - logits[1]).max())
    print(f"largest difference of the logits {difference:.2e}, mean KL {divergence:.2e}")
    # keys and values are float16 in the cache of the processor and of Vulkan, float32 in OpenCL's
    assert difference < 0.1
    assert divergence < 1e-5
