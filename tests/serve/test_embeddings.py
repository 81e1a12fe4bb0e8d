"""`engine.embeddings.create`: OpenAI's response, of every form of input, and refusals that say what is wrong."""

import asyncio
import base64
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tiny_model
from openai.types import CreateEmbeddingResponse

import mlc_llm.serve.async_engine as async_module
from mlc_llm.runtime.artifact import ChatConfig
from mlc_llm.runtime.embedding import Pooling
from mlc_llm.runtime.errors import EngineError, RequestError
from mlc_llm.serve import AsyncMLCEngine, MLCEngine
from mlc_llm.serve.embeddings import pooling

Scripted = Callable[..., MLCEngine]
METADATA = {"model_type": "decoder", "pooling_strategy": "last", "normalize": False}


def test_every_form_of_input(scripted: Scripted) -> None:
    engine = scripted()
    texts = ["hello world", "a"]
    tokens = [engine._loaded().tokenizer.encode(text) for text in texts]
    several = engine.embeddings.create(input=texts, model="dist/tiny", user="me")
    assert [entry.index for entry in several.data] == [0, 1]
    np.testing.assert_allclose(
        [entry.embedding for entry in several.data],
        [engine.embeddings.create(input=form).data[0].embedding for form in (texts[0], tokens[1])],
    )
    assert several.data == engine.embeddings.create(input=tokens).data
    parsed = CreateEmbeddingResponse.model_validate(several.model_dump(), strict=True)
    assert (parsed.model, parsed.object) == ("dist/tiny", "list")
    assert (parsed.usage.prompt_tokens, parsed.usage.total_tokens) == (12, 12)
    assert set(several.model_dump()) == set(CreateEmbeddingResponse.model_fields)


def test_the_mean_of_hidden_states_at_length_1(scripted: Scripted) -> None:
    engine = scripted()
    ids = engine._loaded().tokenizer.encode("hello world")
    rows = [engine.fake._logits(tuple(ids[: end + 1]))[:32] for end in range(len(ids))]  # type: ignore[attr-defined]
    vector = np.mean(np.array(rows, np.float64), 0)
    got = engine.embeddings.create(input="hello world").data[0].embedding
    np.testing.assert_allclose(got, vector / np.linalg.norm(vector), rtol=1e-5)
    shorter = engine.embeddings.create(input="hello world", dimensions=5).data[0].embedding
    np.testing.assert_allclose(shorter, vector[:5] / np.linalg.norm(vector[:5]), rtol=1e-5)


def test_base64_is_float32_in_little_endian_order(scripted: Scripted) -> None:
    engine = scripted()
    numbers = engine.embeddings.create(input="hello", encoding_format="float").data[0].embedding
    text = engine.embeddings.create(input="hello", encoding_format="base64").data[0].embedding
    assert isinstance(text, str)
    np.testing.assert_array_equal(np.frombuffer(base64.b64decode(text), "<f4"), np.array(numbers, np.float32))


def test_the_folder_says_how(scripted: Scripted) -> None:
    engine = scripted(config={"embedding_metadata": METADATA})
    ids = engine._loaded().tokenizer.encode("hello")
    expected = engine.fake._logits(tuple(ids))[:32]  # type: ignore[attr-defined]
    np.testing.assert_allclose(engine.embeddings.create(input="hello").data[0].embedding, expected, rtol=1e-6)


def test_pooling_of_a_folder() -> None:
    def config(**fields: Any) -> ChatConfig:
        base = {"model_type": "tiny", "quantization": "q0f32", "model_config": {}, "vocab_size": 8}
        return ChatConfig.model_validate({**base, "context_window_size": 8, "prefill_chunk_size": 8, **fields})

    assert pooling(config()) == Pooling("mean", True)
    assert pooling(config(model_task="embedding")) == Pooling("last", True)
    encoder = {"model_type": "encoder", "pooling_strategy": "cls", "normalize": True}
    assert pooling(config(model_task="embedding", embedding_metadata=encoder)) == Pooling("cls", True)
    with pytest.raises(ValueError, match="pooling_strategy"):
        config(embedding_metadata={**METADATA, "pooling_strategy": "max"})


@pytest.mark.parametrize(
    ("fields", "param", "code", "says"),
    [
        ({"input": ""}, "input", "invalid_value", "input is empty"),
        ({"input": []}, "input", "invalid_value", "input has 0 entries: expected 1 to 2048"),
        ({"input": ["a", ""]}, "input", "invalid_value", "input[1] is empty"),
        ({"input": [[1], []]}, "input", "invalid_value", "input[1] is empty"),
        ({"input": ["a"] * 2049}, "input", "invalid_value", "input has 2049 entries"),
        ({"input": "a" * 257}, "input", "context_length_exceeded", "input[0] has 257 tokens; the context holds 256"),
        ({"input": [[5], [259]]}, "input", "invalid_value", "token 259 is not in the vocabulary of 259"),
        ({"input": [-1]}, "input", "invalid_value", "token -1"),
        ({"input": [1.5]}, "input", "invalid_type", "input"),
        ({"input": ["a", 1]}, "input", "invalid_type", "input"),
        ({"input": [True]}, "input", "invalid_type", "input"),
        ({"input": {"text": "a"}}, "input", "invalid_type", "input"),
        ({"input": "\ud800"}, None, "invalid_value", "lone surrogate"),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value", "dimensions is 0: expected at least 1"),
        ({"input": "a", "dimensions": 33}, "dimensions", "invalid_value", "dimensions is 33: the embeddings of this"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "invalid_type", "encoding_format is 'int8'"),
        ({"input": "a", "model": "other"}, "model", "model_not_found", "model 'other' is not loaded"),
        ({"input": "a", "extra_body": {"dimension": 2}}, "dimension", "unknown_field", "did you mean 'dimensions'?"),
    ],
)
def test_wrong_requests_are_refused(scripted: Scripted, fields: Any, param: str, code: str, says: str) -> None:
    engine = scripted()
    with pytest.raises(RequestError) as refusal:
        engine.embeddings.create(**fields)
    assert says in str(refusal.value)
    assert (refusal.value.param, refusal.value.code) == (param, code)


def test_a_text_may_fill_the_context(scripted: Scripted) -> None:
    assert scripted().embeddings.create(input="a" * 256).usage.prompt_tokens == 256


def test_a_library_without_embeddings_is_to_be_compiled_again() -> None:
    with MLCEngine(tiny_model.built()) as engine, pytest.raises(RequestError) as refusal:
        engine.embeddings.create(input="hello")
    line = str(refusal.value)
    assert "compiled without embeddings: run `mlc compile " in line
    assert "\n" not in line
    assert refusal.value.param == "model"


def test_a_terminated_engine_says_so(scripted: Scripted) -> None:
    engine = scripted()
    engine.terminate()
    with pytest.raises(EngineError, match="terminated"):
        engine.embeddings.create(input="hello")


def test_the_asynchronous_engine_embeds_beside_answers(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scripted("one two three")
    monkeypatch.setattr(async_module, "load_model", lambda *_: other._loaded())
    expected = other.embeddings.create(input=["first text", "second"]).data

    async def work() -> None:
        async with AsyncMLCEngine("dist/tiny") as engine:
            answer = engine.chat.completions.create(messages=[{"role": "user", "content": "hi"}])
            several = [engine.embeddings.create(input=["first text", "second"]) for _ in range(3)]
            _, *responses = await asyncio.gather(answer, *several)
            assert all(response.data == expected for response in responses)
            engine.terminate()
            with pytest.raises(EngineError, match="terminated"):
                await engine.embeddings.create(input="hello")

    asyncio.run(work())
    assert not other.fake.sequences  # type: ignore[attr-defined]


def test_a_task_that_is_cancelled_leaves_nothing(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    other = scripted()
    monkeypatch.setattr(async_module, "load_model", lambda *_: other._loaded())

    async def work() -> None:
        async with AsyncMLCEngine("dist/tiny") as engine:
            task = asyncio.ensure_future(engine.embeddings.create(input=["a" * 250] * 500))
            while not engine.metrics().running:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.embeddings.create(input="next")  # after the step that ran
            assert engine.metrics().running == 0

    asyncio.run(work())
    assert not other.fake.sequences  # type: ignore[attr-defined]
