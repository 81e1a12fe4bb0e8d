"""`engine.completions.create`: texts continued, echoed and scored."""

import math
from typing import Any

import numpy as np
import pytest
from openai.types import Completion

from mlc_llm.runtime.errors import RequestError

PROMPT = "Once upon"


def test_a_text_is_continued(scripted: Any) -> None:
    response = scripted(" a time").completions.create(prompt=PROMPT)
    openai = Completion.model_validate(response.model_dump())
    assert openai.choices[0].text == " a time"
    assert openai.choices[0].finish_reason == "stop"
    assert openai.usage is not None
    assert openai.usage.completion_tokens == len(" a time") + 1


def test_without_a_limit_it_is_openai_s(scripted: Any) -> None:
    assert scripted().completions.create(prompt=PROMPT).usage.completion_tokens == 16


def test_chunks_add_up_to_the_whole(scripted: Any, tokenizer: Any) -> None:
    engine = scripted()
    request = {"prompt": PROMPT, "seed": 3, "max_tokens": 12, "logprobs": 2, "echo": True}
    whole = engine.completions.create(**request)
    chunks = list(engine.completions.create(**request, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].text for chunk in chunks[:-1]) == whole.choices[0].text
    assert chunks[-1].usage == whole.usage
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    logprobs = whole.choices[0].logprobs
    places = len(tokenizer.encode(PROMPT)) + 12
    columns = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert [len(column) for column in columns] == [places] * 4


def test_each_prompt_gets_its_answers(scripted: Any, tokenizer: Any) -> None:
    engine = scripted()
    prompts = [PROMPT, "The", "A much longer prompt than the others"]
    response = engine.completions.create(prompt=prompts, n=2, seed=1, max_tokens=6, echo=True, temperature=1.0)
    assert [choice.index for choice in response.choices] == list(range(6))
    for index, choice in enumerate(response.choices):
        prompt = prompts[index // 2]
        alone = engine.completions.create(prompt=prompt, seed=1 + index % 2, max_tokens=6, temperature=1.0)
        assert choice.text == prompt + alone.choices[0].text
    assert response.usage.prompt_tokens == sum(len(tokenizer.encode(prompt)) for prompt in prompts)
    tokens = [tokenizer.encode(prompt) for prompt in prompts]
    as_tokens = engine.completions.create(prompt=tokens, n=2, seed=1, max_tokens=6, echo=True, temperature=1.0)
    assert [choice.text for choice in as_tokens.choices] == [choice.text for choice in response.choices]


def test_a_scored_prompt_has_the_model_s_own_probabilities(scripted: Any, tokenizer: Any) -> None:
    """What evaluation harnesses ask for: tokens in, their log-probabilities out."""
    engine = scripted()
    tokens = tokenizer.encode("The quick brown fox jumps over the lazy dog, and the dog does not mind at all. " * 2)
    engine.completions.create(prompt=tokens, max_tokens=1)  # keeps pages, which a scored prompt cannot use
    response = engine.completions.create(prompt=[tokens], max_tokens=1, logprobs=1, echo=True, temperature=0)
    logprobs = response.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None
    assert logprobs.top_logprobs[0] is None
    size = tokenizer.vocab_size_within(engine.fake.vocab_size)
    for place in range(1, len(tokens)):
        logits = engine.fake._hashed(tuple(tokens[:place]))[:size].astype(np.float64)
        expected = logits - math.log(np.exp(logits).sum())
        assert logprobs.token_logprobs[place] == pytest.approx(expected[tokens[place]], abs=1e-5)
        assert list(logprobs.top_logprobs[place].values()) == [pytest.approx(expected.max(), abs=1e-5)]
    assert "".join(logprobs.tokens[: len(tokens)]) == tokenizer.decode(tokens)
    assert logprobs.text_offset[: len(tokens)] == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"suffix": "end"}, "suffix is 'end', which is not supported yet"),
        ({"best_of": 3}, "best_of is 3"),
        ({"logprobs": 6}, "logprobs is 6: expected 0 to 5"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": [[]]}, "the prompt is empty"),
        ({"prompt": ["a"] * 129}, "prompt has 129 entries"),
        ({"prompt": ["a"] * 64, "n": 3}, "prompt has 64 entries with 3 answers each"),
        ({"prompt": [70000]}, "70000"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "x" * 300}, "shorten"),
        ({"n": 0}, "n is 0"),
        ({"tools": []}, "'tools' is not a field of a completion"),
    ],
)
def test_what_is_refused(scripted: Any, fields: dict[str, Any], message: str) -> None:
    engine = scripted()
    request = {"prompt": PROMPT, **fields}
    for stream in (False, True):
        with pytest.raises(RequestError, match=message):
            engine.completions.create(**request, stream=stream)
    assert not engine.fake.sequences


def test_the_models_of_an_engine(scripted: Any) -> None:
    assert [model.id for model in scripted().models.list().data] == ["dist/tiny"]
