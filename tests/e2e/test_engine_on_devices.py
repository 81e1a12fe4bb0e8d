"""An engine whose model runs on a device answers as one on the processor does."""

import asyncio
import gc
import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tokenizers
import torch
import transformers
from device_kernels import KINDS, require_device
from jsonschema import validate
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from mlc_llm import AsyncMLCEngine, MLCEngine
from mlc_llm.compiler.compile import CompileOptions, compile_library, compile_model
from mlc_llm.compiler.library import build_library
from mlc_llm.compiler.target import resolve_target
from mlc_llm.runtime import parameters
from mlc_llm.runtime.artifact import load_chat_config
from mlc_llm.runtime.device_logits import DeviceLogits, DeviceSampler
from mlc_llm.runtime.devices import known_answers
from mlc_llm.runtime.errors import EngineError, ModelFileError
from mlc_llm.runtime.ffi import FFIError
from mlc_llm.runtime.library import ADJUST_AND_SAMPLE, Library
from mlc_llm.runtime.model import Model

TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": ["x", "yz"]}, "b": {"type": "boolean"}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A compiled folder of a random Llama whose tokens are bytes, with its library for the processor in it."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=259, max_position_embeddings=512, bos_token_id=256, eos_token_id=257, initializer_range=0.3,
        tie_word_embeddings=False,
    )  # fmt: skip
    source = tmp_path_factory.mktemp("devices") / "random"
    transformers.LlamaForCausalLM(config).save_pretrained(source)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer(models.BPE({character: i for i, character in enumerate(alphabet)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, special=True) for text in ("<s>", "</s>", "<pad>")])
    backend.save(str(source / "tokenizer.json"))
    (source / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": "</s>"}))
    options = CompileOptions(
        str(source), quantization="q4f32_1", output=source.parent / "out", device="cpu",
        overrides="prefill_chunk_size=64;max_batch_size=8",
    )  # fmt: skip
    return compile_model(options).folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> MLCEngine:
    return MLCEngine(str(folder), "cpu")


@pytest.fixture(scope="module", params=KINDS)
def library(request: pytest.FixtureRequest, folder: Path) -> tuple[str, Path]:
    """A kind of device, and the folder's library for it."""
    require_device(request.param)
    return request.param, compile_library(folder, folder / f"{request.param}.so", device=request.param)


@pytest.fixture(scope="module")
def engine(library: tuple[str, Path], folder: Path) -> MLCEngine:
    device, path = library
    return MLCEngine(str(folder), device, model_lib=str(path))


def ask(engine: MLCEngine, text: str, **fields: Any) -> list[str | None]:
    messages = [{"role": "user", "content": text}]
    request = {"max_tokens": 12, "temperature": 0, **fields}
    answer = engine.chat.completions.create(messages=messages, **request)
    return [choice.message.content for choice in answer.choices]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"logit_bias": {"65": 5.0, "66": -100}},
        {"presence_penalty": 1.0, "extra_body": {"repetition_penalty": 1.4, "min_tokens": 30}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}},
    ],
)
def test_greedy_answers_are_those_of_the_processor(
    engine: MLCEngine, reference: MLCEngine, fields: dict[str, Any]
) -> None:
    fields = {"max_tokens": 40, **fields}
    answers = ask(engine, "hello", **fields)
    assert answers == ask(reference, "hello", **fields)
    if "response_format" in fields:
        validate(json.loads(answers[0] or ""), SCHEMA)


def test_forms_and_penalties_need_no_logits_on_the_host(
    engine: MLCEngine, reference: MLCEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DeviceLogits, "address", property(lambda logits: pytest.fail("a step's logits are copied")))
    form = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}
    for fields in ({"presence_penalty": 1.0}, {"logit_bias": {"65": 5.0}}, {"response_format": form}):
        fields = {"max_tokens": 40, "seed": 1, "n": 2, **fields}
        assert ask(engine, "hello", **fields) == ask(reference, "hello", **fields)


def test_a_library_without_the_function_for_it_leaves_penalties_to_the_host(
    library: tuple[str, Path], folder: Path, reference: MLCEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, path = library
    get = Library.get
    monkeypatch.setattr(Library, "get", lambda self, name: None if name == ADJUST_AND_SAMPLE else get(self, name))
    monkeypatch.setattr("mlc_llm.runtime.model.DeviceLogits", None)  # is not made
    older = MLCEngine(str(folder), device, model_lib=str(path))
    assert ask(older, "hello", presence_penalty=1.0) == ask(reference, "hello", presence_penalty=1.0)


def test_a_device_that_fails_while_it_chooses_ends_the_answer(
    engine: MLCEngine, reference: MLCEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose(*_: object) -> None:
        raise FFIError("the device is lost\nat frame 1")

    with monkeypatch.context() as context:
        context.setattr(DeviceSampler, "choose", lose)
        with pytest.raises(EngineError, match=r"^the model's function 'decode' failed: the device is lost$"):
            ask(engine, "hello", presence_penalty=1.0, seed=1)
    assert ask(engine, "hello", presence_penalty=1.0) == ask(reference, "hello", presence_penalty=1.0)


def test_what_texts_share_is_computed_once(engine: MLCEngine, reference: MLCEngine) -> None:
    for text in ("x" * 70, "x" * 70 + "!", "x" * 50 + "?", "x" * 70):
        assert ask(engine, text) == ask(reference, text)
    answer = engine.chat.completions.create(
        messages=[{"role": "user", "content": "x" * 70 + "."}], max_tokens=2, temperature=0
    )
    assert answer.usage.prompt_tokens_details.cached_tokens >= 64


def test_draws_are_repeatable_and_follow_their_cuts(engine: MLCEngine) -> None:
    draws = [ask(engine, "hello", temperature=1.5, top_p=0.95, seed=seed, n=2) for seed in (1, 2, 1)]
    assert draws[0] == draws[2] != draws[1]
    assert ask(engine, "hello", temperature=1.5, top_p=1e-6, seed=3) == ask(engine, "hello")


def test_logprobs_are_those_of_the_processor(engine: MLCEngine, reference: MLCEngine) -> None:
    found = []
    for one in (engine, reference):
        answer = one.chat.completions.create(
            messages=[{"role": "user", "content": "hi"}], max_tokens=4, temperature=0, logprobs=True, top_logprobs=3
        )
        found.append([[top.logprob for top in token.top_logprobs] for token in answer.choices[0].logprobs.content])
    np.testing.assert_allclose(*found, atol=1e-3)


def test_answers_at_once_are_those_of_each_alone(library: tuple[str, Path], folder: Path, engine: MLCEngine) -> None:
    device, path = library
    texts = ["a", "bc", "x" * 90, "hello there"]

    async def together() -> list[list[str | None]]:
        several = AsyncMLCEngine(str(folder), device, model_lib=str(path))
        requests = [[{"role": "user", "content": text}] for text in texts]
        try:
            answers = await asyncio.gather(
                *(several.chat.completions.create(messages=one, max_tokens=20, temperature=0) for one in requests)
            )
        finally:
            several.terminate()
        return [[answer.choices[0].message.content] for answer in answers]

    assert asyncio.run(together()) == [ask(engine, text, max_tokens=20) for text in texts]


@pytest.fixture(scope="module")
def cut_library(library: tuple[str, Path], folder: Path) -> Path:
    """The same library for a device whose tensors have at most 4 KiB: the larger matrices are in pieces."""
    target = resolve_target(library[0])
    assert target.gpu is not None
    small = replace(target, gpu=replace(target.gpu, largest_buffer=4096))
    path = folder / f"{library[0]}-cut.so"
    metadata = build_library(load_chat_config(folder), path, target=small)
    cut = {param.name: param.pieces for param in metadata.params if param.pieces}
    assert cut["lm_head.q_weight"] == [6, 6, 6]  # tiles of 16 of the 259 rows, in pairs
    assert {name.split(".")[-2] for name in cut} == {"embed_tokens", "lm_head", "gate_up_proj"}
    return path


@pytest.mark.slow
def test_weights_larger_than_the_tensors_of_a_device_give_the_same_logits(
    library: tuple[str, Path], cut_library: Path, folder: Path
) -> None:
    found = []
    for path in (library[1], cut_library):
        model = Model.load(folder, path, max_num_sequence=2, max_total_sequence_length=128)
        one, two = model.add_sequence(), model.add_sequence()
        prefilled = [np.array(model.prefill(one, range(200, 259))), np.array(model.prefill(two, [0, 1, 258]))]
        decoded = [np.array(model.decode([one], [258])), np.array(model.decode([one, two], [100, 31]))]
        found.append([*prefilled, *decoded, np.array(model.verify([two], [list(range(90, 110))]))])
    for whole, cut in zip(*found, strict=True):
        np.testing.assert_array_equal(cut, whole)


@pytest.mark.slow
def test_a_device_whose_tensors_are_smaller_still_is_refused(
    library: tuple[str, Path], cut_library: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parameters, "largest_buffer", lambda device: 2048)
    line = f"device {library[0]} takes tensors of at most 2048 bytes, a weight has 4096: run `mlc compile .* --device"
    with pytest.raises(EngineError, match=line):
        Model.load(folder, cut_library, max_num_sequence=1, max_total_sequence_length=64)


@contextmanager
def served(folder: Path, device: str, *options: str) -> Iterator[httpx.Client]:
    """A client of `mlc serve` with a model on a device; the server ends well when it is told to."""
    command = [sys.executable, "-m", "mlc_llm", "serve", str(folder), "--device", device, *options]
    limits = ["--port", "0", "--mode", "server", "--max-total-seq-length", "1024"]
    with subprocess.Popen([*command, *limits], stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        try:
            ready = re.match(r"(http://\S+) serves ", process.stdout.readline())
            assert ready is not None
            with httpx.Client(base_url=ready[1], timeout=300, trust_env=False) as client:
                yield client
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()
    assert process.returncode == 0


def streamed(client: httpx.Client, body: dict[str, Any]) -> str:
    """The text of a streamed answer."""
    with client.stream("POST", "/v1/chat/completions", json={"stream": True, **body}) as response:
        events = [line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    deltas = [choice["delta"] for event in events[:-1] for choice in json.loads(event)["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def answers_at_once(folder: Path, *options: str) -> list[str]:
    """What a server answers to streams at a time, more than run together and than its cache holds. Some hang up."""
    forms: list[dict[str, Any]] = [
        {}, {"logit_bias": {"65": 5.0}}, {"presence_penalty": 0.7}, {"seed": 3, "temperature": 1.2, "top_p": 1e-6},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": SCHEMA}}},
        {"max_tokens": 60, "ignore_eos": True},
    ]  # fmt: skip
    bodies = [
        {"messages": [{"role": "user", "content": "x" * (25 * i) + str(i)}], "max_tokens": 16, "temperature": 0, **form}
        for i, form in enumerate(2 * forms)
    ]

    def hang_up(client: httpx.Client) -> None:
        body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 200, "ignore_eos": True}
        with client.stream("POST", "/v1/chat/completions", json={"stream": True, **body}) as response:
            next(response.iter_lines())

    with served(folder, *options) as client, ThreadPoolExecutor(len(bodies) + 2) as threads:
        gone = [threads.submit(hang_up, client) for _ in range(2)]
        answers = list(threads.map(lambda body: streamed(client, body), bodies))
        assert [each.result() for each in gone] == [None, None]
        assert client.post("/v1/chat/completions", json={**bodies[0], "max_tokens": -1}).status_code == 400
    return answers


@pytest.fixture(scope="module")
def expected_at_once(folder: Path) -> list[str]:
    return answers_at_once(folder, "cpu")


def test_a_server_answers_many_as_one_on_the_processor(
    library: tuple[str, Path], folder: Path, expected_at_once: list[str]
) -> None:
    device, path = library
    assert answers_at_once(folder, device, "--model-lib", str(path)) == expected_at_once


def test_a_device_that_computes_wrongly_is_noticed(
    library: tuple[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, path = library
    answer = known_answers.matmul
    monkeypatch.setattr(known_answers, "matmul", lambda *given: [value + 1 for value in answer(*given)])
    with pytest.raises(EngineError, match=f"^device {device} fails the self-test of .*: kernel matmul gives"):
        Library.load(path)


def test_a_library_stays_whole_when_another_load_of_its_file_is_over(library: tuple[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "again.so"
    shutil.copyfile(library[1], path)
    first, second = Library.load(path), Library.load(path)
    del first
    gc.collect()
    second._check_device()


def test_a_library_for_another_device_is_refused(library: tuple[str, Path], folder: Path) -> None:
    device, path = library
    other = next(kind for kind in (*KINDS, "cpu") if kind != device)
    with pytest.raises(
        ModelFileError, match=f"was compiled for {device}, the device here is {other}: run `mlc compile"
    ):
        MLCEngine(str(folder), other, model_lib=str(path))
    assert Model.load(folder, path, max_num_sequence=1, max_total_sequence_length=64).metadata.device == device
