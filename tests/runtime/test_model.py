"""A compiled model computes what the textbook says, whatever the way in which its cache was filled."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

from mlc_llm.runtime.artifact import load_chat_config
from mlc_llm.runtime.errors import EngineError, ModelFileError, RequestError, UsageError
from mlc_llm.runtime.lazy_array import LazyArray
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.model import Model
from mlc_llm.runtime.sampling_kernels import Cuts

TOKENS = np.random.default_rng(7).integers(0, 256, 100).tolist()
CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.fixture(scope="module")
def library() -> Library:
    folder = tiny_model.built()
    return Library.load(tiny_model.library_path(folder), config=load_chat_config(folder))


@pytest.fixture
def model(library: Library) -> Model:
    return Model.load(tiny_model.built(), library, max_num_sequence=4, max_total_sequence_length=512)


@pytest.fixture(scope="module")
def expected() -> np.ndarray[Any, Any]:
    return tiny_model.reference_logits(TOKENS)


def test_prefill_in_chunks(model: Model, expected: np.ndarray[Any, Any]) -> None:
    assert len(TOKENS) > 3 * tiny_model.CHUNK
    logits = model.prefill(model.add_sequence(), TOKENS)
    assert logits.shape == (tiny_model.ACTIVE,)
    np.testing.assert_allclose(logits, expected[-1], **CLOSE)


def test_prefill_in_smaller_chunks(library: Library, expected: np.ndarray[Any, Any]) -> None:
    model = Model.load(
        tiny_model.built(), library, max_num_sequence=1, max_total_sequence_length=512, prefill_chunk_size=7
    )
    passes = []
    forward = model._forward
    model._forward = lambda name, ids, tokens: passes.append(len(tokens[0])) or forward(name, ids, tokens)  # type: ignore[method-assign, func-returns-value]
    np.testing.assert_allclose(model.prefill(model.add_sequence(), TOKENS), expected[-1], **CLOSE)
    assert passes == [7] * 14 + [2]


def test_decode_one_token_at_a_time(model: Model, expected: np.ndarray[Any, Any]) -> None:
    sequence = model.add_sequence()
    model.prefill(sequence, TOKENS[:80])
    for place in range(80, 100):
        logits = model.decode([sequence], [TOKENS[place]])
        assert logits.shape == (1, tiny_model.ACTIVE)
        np.testing.assert_allclose(logits[0], expected[place], **CLOSE)


def test_decode_several_sequences_at_once(model: Model, expected: np.ndarray[Any, Any]) -> None:
    lengths = [17, 32, 60]
    sequences = [model.add_sequence() for _ in lengths]
    for sequence, length in zip(sequences, lengths, strict=True):
        model.prefill(sequence, TOKENS[:length])
    for step in range(3):
        logits = model.decode(sequences, [TOKENS[length + step] for length in lengths])
        np.testing.assert_allclose(logits, expected[[length + step for length in lengths]], **CLOSE)


def test_tokens_chosen_within_a_pass_are_those_that_its_logits_give(model: Model) -> None:
    lengths = [17, 60]
    vocab = tiny_model.ACTIVE - 9  # a tokenizer may know fewer tokens than the model
    cuts = [Cuts(), Cuts(temperature=0.8, top_k=20, top_p=0.9)]
    uniforms = [0.0, 0.7]
    for rows in (slice(0, 2), slice(1, 2)):
        draws = model.sampling.draws(cuts[rows], vocab)
        sequences, others = ([model.add_sequence() for _ in lengths[rows]] for _ in range(2))
        for sequence, length in zip([*sequences, *others], lengths[rows] * 2, strict=True):
            model.prefill(sequence, TOKENS[:length])
        tokens = [TOKENS[length] for length in lengths[rows]]
        for _ in range(3):
            logits = np.asarray(model.decode(others, tokens))[:, :vocab]
            expected = draws.choose(LazyArray.over(logits), uniforms[rows])
            tokens = model.decode_and_sample(sequences, tokens, draws, uniforms[rows])
            assert tokens == expected
        for sequence in (*sequences, *others):
            model.remove_sequence(sequence)


def test_logits_of_all_positions(model: Model, expected: np.ndarray[Any, Any]) -> None:
    sequence = model.add_sequence()
    first = model.logits_of(sequence, TOKENS[:70])
    second = model.logits_of(sequence, TOKENS[70:])
    np.testing.assert_allclose(np.concatenate([first, second]), expected, **CLOSE)


def test_several_sequences_are_checked_in_one_pass(model: Model, expected: np.ndarray[Any, Any]) -> None:
    long, short = model.add_sequence(), model.add_sequence()
    model.prefill(long, TOKENS[:90])
    model.prefill(short, TOKENS[:20])
    logits = model.verify([long, short], [TOKENS[90:], TOKENS[20:23]])
    np.testing.assert_allclose(logits, np.concatenate([expected[90:], expected[20:23]]), **CLOSE)


@pytest.mark.parametrize("kept", [0, 1, 16, 37, 64, 99])
def test_tokens_taken_back_leave_no_trace(model: Model, expected: np.ndarray[Any, Any], kept: int) -> None:
    sequence = model.add_sequence()
    model.prefill(sequence, TOKENS[:kept] + [5] * (100 - kept))
    model.pop(sequence, 100 - kept)
    np.testing.assert_allclose(model.prefill(sequence, TOKENS[kept:]), expected[-1], **CLOSE)


@pytest.mark.parametrize("position", [0, 16, 37, 60])
def test_forks_share_a_beginning_and_go_their_own_ways(
    model: Model, expected: np.ndarray[Any, Any], position: int
) -> None:
    parent = model.add_sequence()
    model.prefill(parent, TOKENS[:60])
    child = model.fork_sequence(parent, position)
    np.testing.assert_allclose(model.prefill(child, TOKENS[position:]), expected[-1], **CLOSE)
    np.testing.assert_allclose(model.decode([parent], [TOKENS[60]])[0], expected[60], **CLOSE)
    model.remove_sequence(parent)
    model.pop(child, 40)
    np.testing.assert_allclose(model.prefill(child, TOKENS[60:]), expected[-1], **CLOSE)


def test_room_is_known_before_it_is_needed(model: Model) -> None:
    room = model.available_tokens()
    assert room >= 512
    sequence = model.add_sequence()
    for _ in range(room // 100):
        model.prefill(sequence, TOKENS)
    left = model.available_tokens()
    with pytest.raises(EngineError, match=f"the KV cache is full: {left} tokens are free, 96 are needed"):
        model.prefill(sequence, TOKENS)
    model.remove_sequence(sequence)
    assert model.available_tokens() == room


def test_a_full_cache_can_still_be_rewound_and_forked(model: Model, expected: np.ndarray[Any, Any]) -> None:
    sequence = model.add_sequence()
    model.prefill(sequence, TOKENS)
    other = model.add_sequence()
    model.prefill(other, (TOKENS * 6)[: model.available_tokens()])
    assert model.available_tokens() == 0
    model.pop(sequence, 20)
    np.testing.assert_allclose(model.prefill(sequence, TOKENS[80:]), expected[-1], **CLOSE)
    child = model.fork_sequence(sequence, 10)
    with pytest.raises(EngineError, match="the KV cache is full: 0 tokens are free, 16 are needed"):
        model.decode([child], TOKENS[10:11])  # takes a copy of the page that it shares
    model.remove_sequence(other)
    np.testing.assert_allclose(model.decode([child], TOKENS[10:11])[0], expected[10], **CLOSE)


def test_sequences_run_out(model: Model) -> None:
    for _ in range(4):
        sequence = model.add_sequence()
    for attempt in (model.add_sequence, lambda: model.fork_sequence(sequence, 0)):
        with pytest.raises(EngineError, match="all 4 sequences of the KV cache are in use"):
            attempt()


def test_what_the_cache_does_not_have(model: Model) -> None:
    with pytest.raises(EngineError, match="sequence 99 is not in the KV cache"):
        model.remove_sequence(99)
    sequence = model.add_sequence()
    model.prefill(sequence, TOKENS[:10])
    with pytest.raises(EngineError, match="has 10 tokens; 11 cannot be taken back"):
        model.pop(sequence, 11)
    with pytest.raises(EngineError, match="has 10 tokens; it cannot be forked at 11"):
        model.fork_sequence(sequence, 11)


@pytest.mark.parametrize("token", [-1, tiny_model.VOCAB, 1 << 40])
def test_a_token_outside_the_vocabulary_is_never_looked_up(model: Model, token: int) -> None:
    sequence = model.add_sequence()
    for compute in (model.prefill, model.logits_of):
        with pytest.raises(RequestError, match=f"token {token} is not in the vocabulary of {tiny_model.VOCAB}"):
            compute(sequence, [1, token, 2])
    with pytest.raises(RequestError, match="the prompt is empty"):
        model.prefill(sequence, [])


def test_each_sequence_takes_one_token(model: Model) -> None:
    sequence = model.add_sequence()
    for sequences, tokens in (([sequence], [1, 2]), ([sequence, sequence], [1, 2])):
        with pytest.raises(EngineError, match="2 tokens for 1 sequences: each takes one"):
            model.decode(sequences, tokens)


@pytest.mark.parametrize(("raised", "expected_error"), [(RuntimeError("bad\n frames"), EngineError),
                                                        (KeyboardInterrupt(), KeyboardInterrupt)])  # fmt: skip
def test_a_pass_that_fails_removes_its_sequences(
    model: Model, raised: BaseException, expected_error: type[BaseException]
) -> None:
    sequence = model.add_sequence()

    def fail(*arguments: object) -> None:
        raise raised

    model._functions["prefill"] = fail
    with pytest.raises(expected_error) as caught:
        model.prefill(sequence, TOKENS)
    if expected_error is EngineError:
        assert str(caught.value) == "the model's function 'prefill' failed: bad"
    with pytest.raises(EngineError, match="is not in the KV cache"):
        model.decode([sequence], [1])


def test_the_context_is_the_smaller_of_model_and_cache(library: Library) -> None:
    for tokens, context in ((512, tiny_model.CONTEXT), (64, 64)):
        model = Model.load(tiny_model.built(), library, max_num_sequence=1, max_total_sequence_length=tokens)
        assert model.context_window == context


def test_a_cache_that_cannot_be_made_is_one_line(library: Library) -> None:
    with pytest.raises(EngineError, match="a KV cache of 4398046511104 tokens failed: at most 2147483647 can be"):
        Model.load(tiny_model.built(), library, max_num_sequence=1, max_total_sequence_length=1 << 42)


def test_a_library_runs_on_the_device_that_it_was_compiled_for() -> None:
    folder, sizes = tiny_model.built(), {"max_num_sequence": 1, "max_total_sequence_length": 64}
    with pytest.raises(ModelFileError, match=r"was compiled for cpu, the device here is vulkan: .* --device vulkan"):
        Model.load(folder, tiny_model.library_path(folder), device="vulkan", **sizes)
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        Model.load(folder, tiny_model.library_path(folder), device="tpu", **sizes)


def test_a_library_is_loaded_by_its_path_and_must_fit_the_folder(tmp_path: Path) -> None:
    path = tiny_model.library_path(tiny_model.built())
    progress: list[tuple[int, int]] = []
    Model.load(tiny_model.built(), path, max_num_sequence=1, max_total_sequence_length=64,
               progress=lambda done, total: progress.append((done, total)))  # fmt: skip
    assert progress[-1] == (6, 6)
    tiny_model.write_folder(tmp_path, quantization="q0f16")
    with pytest.raises(ModelFileError, match="was compiled for another model"):
        Model.load(tmp_path, path, max_num_sequence=1, max_total_sequence_length=64)


def test_generating_needs_neither_tvm_nor_the_compiler() -> None:
    code = (
        "import sys; from mlc_llm import MLCEngine\n"
        "with MLCEngine(sys.argv[1]) as engine:\n"
        "    answer = engine.chat.completions.create(messages=[{'role': 'user', 'content': 'Hi'}], max_tokens=8)\n"
        "print(answer.usage.completion_tokens)\n"
        "print([name for name in sys.modules if f'{name}.'.startswith(('tvm.', 'torch.', 'mlc_llm.compiler.'))])"
    )
    command = [sys.executable, "-c", code, str(tiny_model.built())]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["8", "[]"]
    assert run.stderr == ""
