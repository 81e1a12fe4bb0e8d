"""Tiny random Llamas, compiled by the whole pipeline and run by the thin runtime: logits equal transformers'."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
import transformers
from device_kernels import KINDS, require_device
from numpy.typing import NDArray

from mlc_llm.compiler.compile import CompileOptions, compile_model
from mlc_llm.compiler.model.registry import get_architecture
from mlc_llm.compiler.quantization.group import dequantize
from mlc_llm.compiler.quantization.scheme import SCHEMES
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.sampling_kernels import Cuts
from mlc_llm.runtime.weights import WeightStore
from mlc_llm.serve import MLCEngine

BASE: dict[str, Any] = {
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied, grouped heads": {},
    "tied, one key-value head, biases": {
        "tie_word_embeddings": True,
        "num_key_value_heads": 1,
        "attention_bias": True,
        "mlp_bias": True,
    },
    "wide heads": {"head_dim": 24, "num_key_value_heads": 4},
    "llama3 scaling": {"rope_parameters": {"rope_theta": 5000.0, **LLAMA3}},
    "linear scaling": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}},
    "dynamic scaling": {"rope_parameters": {"rope_theta": 10000.0, "rope_type": "dynamic", "factor": 2.0}},
    "yarn scaling": {"rope_parameters": {"rope_theta": 10000.0, **YARN}},
}
ON_DEVICES = ("tied, one key-value head, biases", "yarn scaling")

VULKAN_WITHOUT_FLOAT16 = '{"kind": "vulkan", "supports_float16": false, "supports_16bit_buffer": false}'


def random_model(seed: int, **settings: Any) -> transformers.LlamaForCausalLM:
    """A Llama whose every weight, biases and norms too, is random."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**BASE, **settings})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
    return model


def write_model(model: transformers.LlamaForCausalLM, folder: Path) -> Path:
    """Save as a Hugging Face folder with a word tokenizer."""
    model.save_pretrained(folder)
    vocabulary = {f"t{i}": i for i in range(model.config.vocab_size)}
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="t0"))
    words.save(str(folder / "tokenizer.json"))
    return folder


def load(source: Path, output: Path, quantization: str, **options: Any) -> Model:
    result = compile_model(CompileOptions(str(source), quantization=quantization, output=output, **options))
    return Model.load(result.folder, result.library, max_num_sequence=4, max_total_sequence_length=512)


def reference(model: transformers.LlamaForCausalLM, tokens: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        logits: NDArray[np.float32] = model(torch.tensor([tokens])).logits[0].numpy()
    return logits


@pytest.mark.parametrize(
    ("variant", "device"),
    [*((variant, "cpu") for variant in VARIANTS),
     *((variant, device) for device in KINDS for variant in ON_DEVICES)],
)  # fmt: skip
def test_logits_equal_transformers(variant: str, device: str, tmp_path: Path) -> None:
    require_device(device)
    model = random_model(len(variant), **VARIANTS[variant])
    compiled = load(write_model(model, tmp_path / "source"), tmp_path / "out", "q0f32",
                    overrides="prefill_chunk_size=48", device=device)  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, BASE["vocab_size"], 120).tolist()
    expected = reference(model, tokens)
    whole = compiled.add_sequence()
    np.testing.assert_allclose(compiled.logits_of(whole, tokens), expected, atol=2e-4)
    steps = compiled.add_sequence()
    np.testing.assert_allclose(compiled.prefill(steps, tokens[:100]), expected[99], atol=2e-4)
    for i in range(100, 108):
        np.testing.assert_allclose(compiled.decode([steps], [tokens[i]])[0], expected[i], atol=2e-4)
    # two sequences of different length in one step, one of them a fork
    fork = compiled.fork_sequence(steps, 50)
    both = compiled.decode([steps, fork], [tokens[108], tokens[50]])
    np.testing.assert_allclose(both, expected[[108, 50]], atol=2e-4)
    compiled.pop(steps, 9)
    np.testing.assert_allclose(compiled.decode([steps], [tokens[100]])[0], expected[100], atol=2e-4)
    # a pass that chooses tokens itself chooses as the processor does from its logits
    for cuts in ([Cuts(), Cuts(temperature=1.0)], [Cuts(temperature=0.8, top_k=40, top_p=0.9)]):
        draws, sequences = compiled.sampling.draws(cuts, compiled.vocab_size), [steps, fork][: len(cuts)]
        given, uniforms = tokens[: len(cuts)], [0.3, 0.7][: len(cuts)]
        chosen = draws.choose(LazyArray.over(compiled.decode(sequences, given)), uniforms)
        for sequence in sequences:
            compiled.pop(sequence, 1)
        assert compiled.decode_and_sample(sequences, given, draws, uniforms) == chosen


def test_embeddings_equal_transformers(tmp_path: Path) -> None:
    model = random_model(2)
    compiled = load(write_model(model, tmp_path / "source"), tmp_path / "out", "q0f32",
                    overrides="prefill_chunk_size=64")  # fmt: skip
    random = np.random.default_rng(0)
    texts = [random.integers(0, BASE["vocab_size"], count).tolist() for count in (150, 1, 30)]
    with torch.no_grad():
        states = [model.model(torch.tensor([text])).last_hidden_state[0].numpy() for text in texts]
    long, *others = (compiled.add_sequence() for _ in texts)
    begun = compiled.hidden_states([long], [texts[0][:64]])
    np.testing.assert_allclose(begun, states[0][:64], atol=2e-4)
    together = compiled.hidden_states([long, *others], [texts[0][64:90], *texts[1:]])
    np.testing.assert_allclose(together, np.concatenate([states[0][64:90], *states[1:]]), atol=2e-4)

    config = tmp_path / "out" / "mlc-chat-config.json"
    fields = json.loads(config.read_text())
    for strategy, pooled in (("mean", [s.mean(0) for s in states]), ("last", [s[-1] for s in states])):
        fields["embedding_metadata"] = {"pooling_strategy": strategy, "normalize": True}
        config.write_text(json.dumps(fields))
        with MLCEngine(tmp_path / "out") as engine:
            response = engine.embeddings.create(input=texts)
        expected = [vector / np.linalg.norm(vector) for vector in pooled]
        np.testing.assert_allclose([one.embedding for one in response.data], expected, atol=2e-5)
        assert response.usage.prompt_tokens == 181


@pytest.mark.parametrize("device", ["cpu", *KINDS])
def test_a_sliding_window_hides_older_tokens(device: str, tmp_path: Path) -> None:
    require_device(device)
    model = random_model(3)
    source = write_model(model, tmp_path / "source")
    config = (source / "config.json").read_text().rstrip().removesuffix("}")
    (source / "config.json").write_text(f'{config}, "sliding_window": 20}}')
    compiled = load(source, tmp_path / "out", "q0f32", device=device)
    mistral = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            **{**BASE, "sliding_window": 20, "head_dim": 12, "tie_word_embeddings": False},
            rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
            attn_implementation="eager",
        )
    ).eval()
    mistral.load_state_dict(model.state_dict())
    tokens = np.random.default_rng(0).integers(0, BASE["vocab_size"], 90).tolist()
    expected = reference(mistral, tokens)
    sequence = compiled.add_sequence()
    np.testing.assert_allclose(compiled.prefill(sequence, tokens[:40]), expected[39], atol=2e-4)
    np.testing.assert_allclose(compiled.prefill(sequence, tokens[40:70]), expected[69], atol=2e-4)
    for i in range(70, 90):
        np.testing.assert_allclose(compiled.decode([sequence], [tokens[i]])[0], expected[i], atol=2e-4)


@pytest.mark.parametrize(
    ("quantization", "device"),
    [*((quantization, "cpu") for quantization in sorted(set(SCHEMES) - {"q0f32"})),
     ("q4f16_1", "opencl"), ("q3f16_0", "opencl"), ("q4f16_1", "vulkan"), ("q4bf16_0", "vulkan"),
     ("q4f16_1", VULKAN_WITHOUT_FLOAT16)],
)  # fmt: skip
def test_quantized_logits_equal_transformers_on_the_dequantized_weights(
    quantization: str, device: str, tmp_path: Path
) -> None:
    require_device("vulkan" if device == VULKAN_WITHOUT_FLOAT16 else device)
    model = random_model(5, tie_word_embeddings=quantization.endswith("_1"))
    compiled = load(write_model(model, tmp_path / "source"), tmp_path / "out", quantization, device=device)
    scheme = SCHEMES[quantization]
    store = WeightStore(tmp_path / "out")
    architecture = get_architecture("llama")
    state = {}
    for weight in architecture.weights(architecture.from_dict(model.config.to_dict())):
        arrays = [_as_float(store, record.name, scheme.model_dtype) for record in scheme.stored(weight)]
        value = arrays[0]
        if len(arrays) == 2:
            codes = store.read(scheme.stored(weight)[0].name)
            transposed = scheme.is_transposed(weight.kind)
            # the kernels multiply codes and scales in float32, not in the scheme's type
            exact = replace(scheme, model_dtype="float32")
            value = dequantize(codes, arrays[1].astype(np.float32), exact, weight.shape, transposed=transposed)
        rows = [model.state_dict()[source].shape[0] for source in weight.sources]
        for source, part in zip(weight.sources, np.split(value, np.cumsum(rows)[:-1]), strict=True):
            state[source] = torch.from_numpy(part.astype(np.float32))
    tokens = np.random.default_rng(0).integers(0, BASE["vocab_size"], 60).tolist()
    model.load_state_dict(state, strict=False)
    logits = compiled.logits_of(compiled.add_sequence(), tokens)
    # keys, values and queries are rounded to float16 in the cache of float16 schemes
    np.testing.assert_allclose(logits, reference(model, tokens), atol=3e-2 if "f16" in quantization else 1e-3)


def test_keys_and_values_of_eight_bits(tmp_path: Path) -> None:
    model = random_model(9)
    source = write_model(model, tmp_path / "source")
    compiled = load(source, tmp_path / "out", "q0f32", overrides="kv_cache_dtype=int8;prefill_chunk_size=48")
    assert compiled.metadata.kv_cache.dtype == "int8"
    tokens = np.random.default_rng(0).integers(0, BASE["vocab_size"], 120).tolist()
    expected = reference(model, tokens)
    sequence = compiled.add_sequence()
    logits = compiled.logits_of(sequence, tokens[:100])
    steps = [compiled.decode([sequence], [token])[0] for token in tokens[100:]]
    error = np.abs(np.concatenate([logits, steps]) - expected)
    # a row of keys or values is rounded by at most its largest number / 254
    assert error.mean() < 0.02 * expected.std()
    assert np.abs(error[0]).max() < 0.1 * expected.std()


def _as_float(store: Any, name: str, dtype: str) -> NDArray[Any]:
    value: NDArray[Any] = store.read(name)
    if dtype == "bfloat16" and value.dtype == np.uint16:
        return (value.astype(np.uint32) << 16).view(np.float32)
    return value


def test_compiling_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    source = write_model(random_model(7), tmp_path / "source")
    made = []
    for name in ("first", "second"):
        folder = compile_model(CompileOptions(str(source), output=tmp_path / name)).folder
        made.append({path.name: path.read_bytes() for path in folder.iterdir() if path.name[0] != "."})
    first, second = made
    assert {path.suffix for path in map(Path, first)} >= {".so", ".bin", ".json"}
    assert first == second
