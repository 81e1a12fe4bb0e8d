"""The demo model, from its wheel to answers: the text and the logits of transformers in float32."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from demo_model import DEMO, PROMPTS, TEXT, log_softmax

from mlc_llm.cli.models import DEMO_QUANTIZATION
from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.compiler.source import open_source
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["q0f32", "q4_1"])
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(model folder, library) of the demo model: its weights as float32, and the blocks of its file as they are."""
    quantization = None if request.param == DEMO_QUANTIZATION else request.param
    output = tmp_path_factory.mktemp("demo") / f"SmolLM2-135M-Instruct-{request.param}-MLC"
    result = compile_model(CompileOptions(DEMO, quantization=quantization, output=output))
    assert result.quantization == request.param
    return result.folder, result.library


@pytest.fixture(scope="module")
def oracle() -> transformers.LlamaForCausalLM:
    """transformers' model with the same weights, in float32."""
    source = open_source(DEMO)
    config = {key: value for key, value in source.config.items() if key != "torch_dtype"}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval().float()
    state = {name: torch.from_numpy(np.array(source.read(name), np.float32)) for name in source.tensors}
    model.load_state_dict(state, strict=False)
    return model


def test_logits_equal_transformers(compiled: tuple[Path, Path], oracle: transformers.LlamaForCausalLM) -> None:
    folder, library = compiled
    ids = Tokenizer.load(folder).encode(TEXT.read_text())[:256]
    model = Model.load(folder, library, max_num_sequence=1, max_total_sequence_length=512)
    logits = model.logits_of(model.add_sequence(), ids)
    with torch.no_grad():
        expected = oracle(torch.tensor([ids])).logits[0].numpy()
    difference = float(np.abs(logits - expected).max())
    p, q = log_softmax(expected), log_softmax(logits)
    divergence = float((np.exp(p) * (p - q)).sum(axis=1).mean())
    print(f"over {len(ids)} positions: largest difference of the logits {difference:.2e}, mean KL {divergence:.2e}")
    assert difference < 2e-3 or "q0f32" not in folder.name
    assert divergence < 1e-4


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_answers_equal_transformers(
    prompt: str, compiled: tuple[Path, Path], oracle: transformers.LlamaForCausalLM
) -> None:
    folder, library = compiled
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        generated = oracle.generate(ids, max_new_tokens=64, do_sample=False, eos_token_id=2, pad_token_id=2)
    expected = tokenizer.decode(generated[0, ids.shape[1] :], skip_special_tokens=True)
    command = [sys.executable, "-m", "mlc_llm", "chat", str(folder), "--model-lib", str(library), "-p", prompt]
    command += ["--temperature", "0", "--max-tokens", "64", "--json"]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    assert json.loads(answer.stdout)["choices"][0]["message"]["content"] == expected
