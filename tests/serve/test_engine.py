"""MLCEngine with a compiled model, from its files to its answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_model

import mlc_llm
from mlc_llm import serve
from mlc_llm.runtime.errors import ModelFileError, UsageError
from mlc_llm.runtime.library import Library
from mlc_llm.runtime.tokenizer import Tokenizer
from mlc_llm.serve import EngineConfig, MLCEngine, loading

USER = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def engine() -> MLCEngine:
    return MLCEngine(str(tiny_model.built()))


def test_the_public_names() -> None:
    assert mlc_llm.MLCEngine is MLCEngine
    assert serve.EngineConfig is EngineConfig
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        serve.Nothing  # noqa: B018


def greedy(prompt: list[int], count: int) -> list[int]:
    """The answer that the textbook model gives, token by token."""
    tokens = list(prompt)
    for _ in range(count):
        logits = tiny_model.reference_logits(tokens)[-1]
        two = np.sort(logits)[-2:]
        assert two[1] - two[0] > 1e-3, "the oracle cannot tell the two most likely tokens apart"
        tokens.append(int(logits.argmax()))
    return tokens[len(prompt) :]


def test_the_answer_is_the_textbook_s(engine: MLCEngine) -> None:
    tokenizer = Tokenizer.load(tiny_model.built())
    prompt = tokenizer.encode("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")
    expected = greedy(prompt, 24)
    response = engine.chat.completions.create(messages=USER, max_tokens=24, logprobs=True)
    logprobs = response.choices[0].logprobs
    assert logprobs is not None
    assert [bytes(token.bytes or []) for token in logprobs.content] == [tokenizer.token_bytes(t) for t in expected]
    assert response.choices[0].message.content == tokenizer.decode(expected)


def test_an_answer_does_not_depend_on_what_was_asked_before(engine: MLCEngine) -> None:
    """Turns, a rewind and a fork: each answer is the one that a fresh engine gives."""
    long = [{"role": "user", "content": "x" * 70}]
    conversations: list[Any] = [
        USER,
        [*USER, {"role": "assistant", "content": "ok"}, {"role": "user", "content": "more"}],
        long,
        [*long, {"role": "assistant", "content": "y"}, {"role": "user", "content": "z"}],
        [{"role": "user", "content": "x" * 70 + "!"}],
        USER,
    ]
    cached = []
    for messages in conversations:
        request = {"messages": messages, "max_tokens": 8, "temperature": 0}
        answer = engine.chat.completions.create(**request)
        with MLCEngine(str(tiny_model.built())) as fresh:
            expected = fresh.chat.completions.create(**request)
        assert answer.choices[0].message.content == expected.choices[0].message.content
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
    assert cached[1] >= 16
    assert cached[3] > 64


def test_modes_and_config_reach_the_model() -> None:
    for mode, config, sequences, context in (
        ("local", None, 4, tiny_model.CONTEXT),
        ("interactive", None, 1, tiny_model.CONTEXT),
        ("server", EngineConfig(max_num_sequence=2, max_total_sequence_length=64), 2, 64),
    ):
        with MLCEngine(str(tiny_model.built()), "cpu", mode=mode, engine_config=config) as engine:  # type: ignore[arg-type]
            assert engine.context_window_size == context
            assert engine._loaded().generator.model.max_num_sequence == sequences


def test_threads_are_those_that_the_program_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_NUM_THREADS", "4")
    set_to: list[int] = []
    monkeypatch.setattr(Library, "set_threads", lambda library, count: set_to.append(count))
    for config, threads in ((None, 4), (EngineConfig(num_threads=3), 3)):
        with MLCEngine(str(tiny_model.built()), engine_config=config):
            assert set_to[-1] == threads
    with pytest.raises(UsageError, match="num_threads is 0: expected a whole number from 1 to 256"):
        MLCEngine("nowhere", engine_config=EngineConfig(num_threads=0))


def test_little_memory_shrinks_the_context_with_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loading, "available_memory", lambda device: 1 << 34)
    MLCEngine(str(tiny_model.built())).terminate()
    assert capsys.readouterr().err == ""
    limits, note = loading.choose_limits, "memory for 64 tokens is free"
    monkeypatch.setattr(
        loading, "choose_limits", lambda *a: limits(*a)._replace(max_total_sequence_length=64, note=note)
    )
    MLCEngine(str(tiny_model.built())).terminate()
    assert capsys.readouterr().err == "memory for 64 tokens is free\n"


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="device 'tpu' is unknown"):
        MLCEngine(str(tiny_model.built()), "tpu")
    with pytest.raises(UsageError, match="mode is 'fast'"):
        MLCEngine(str(tiny_model.built()), mode="fast")  # type: ignore[arg-type]
    with pytest.raises(ModelFileError, match=r"x\.so is missing: expected a model library"):
        MLCEngine(str(tiny_model.built()), model_lib=str(tmp_path / "x.so"))
    with pytest.raises(ModelFileError, match="run `mlc compile"):
        MLCEngine(str(tmp_path))


def test_a_folder_without_a_template_says_so(tmp_path: Path) -> None:
    tiny_model.write_folder(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    with pytest.raises(ModelFileError, match="has no conversation template"):
        MLCEngine(str(tmp_path))


def test_a_prefix_cache_that_is_off_knows_no_turns_before() -> None:
    with MLCEngine(str(tiny_model.built()), engine_config=EngineConfig(prefix_cache_mode="disable")) as engine:
        answers = [engine.chat.completions.create(messages=USER, max_tokens=4, temperature=0) for _ in range(2)]
    assert [answer.usage.prompt_tokens_details.cached_tokens for answer in answers] == [0, 0]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


@pytest.mark.parametrize("seed", [0, 1])
def test_a_draft_model_changes_no_answer(engine: MLCEngine, tmp_path: Path, seed: int) -> None:
    """With the model itself as its draft every guess is right."""
    tiny_model.write_folder(tmp_path / "draft", seed)
    draft = str(tmp_path / "draft"), str(tiny_model.library_path(tiny_model.built()))
    config = EngineConfig(speculative_mode="small_draft", additional_models=[draft], spec_draft_length=4)
    request: dict[str, Any] = {"messages": USER, "max_tokens": 40, "temperature": 0, "extra_body": {"ignore_eos": True}}
    with MLCEngine(str(tiny_model.built()), engine_config=config) as drafted:
        for n in (1, 3):
            answer = drafted.chat.completions.create(**request, n=n)
            expected = engine.chat.completions.create(**request)
            assert [choice.message.content for choice in answer.choices] == [expected.choices[0].message.content] * n
        metrics = drafted.metrics()
        assert metrics.guessed_tokens > 0
        assert (metrics.right_tokens == metrics.guessed_tokens) == (seed == 0)
        assert metrics.kv_pages_used == 0


def test_a_draft_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    tiny_model.write_folder(tmp_path / "draft")
    words = json.loads((tmp_path / "draft" / "tokenizer.json").read_text())
    words["added_tokens"][0]["content"] = "<|other|>"
    (tmp_path / "draft" / "tokenizer.json").write_text(json.dumps(words))
    config = EngineConfig(speculative_mode="small_draft", additional_models=[str(tmp_path / "draft")])
    with pytest.raises(ModelFileError, match=r"token 256 is '<\|other\|>' to the draft model .*: a draft needs"):
        MLCEngine(str(tiny_model.built()), engine_config=config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"speculative_mode": "small_draft"}, "speculative_mode is 'small_draft' and additional_models has 0"),
        ({"additional_models": ["x"]}, "speculative_mode is 'prompt_lookup' and additional_models has 1"),
        ({"spec_draft_length": 17}, "spec_draft_length is 17: expected 0 to 16"),
        (
            {"speculative_mode": "tree"},
            "speculative_mode is 'tree': expected one of prompt_lookup, small_draft, disable",
        ),
        ({"prefix_cache_mode": "tree"}, "prefix_cache_mode is 'tree': expected one of radix, disable"),
    ],
)
def test_modes_that_do_not_exist_or_go_together_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MLCEngine(str(tiny_model.built()), engine_config=EngineConfig(**fields))
