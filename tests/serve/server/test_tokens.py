"""POST /tokenize and /detokenize, with the tokenizer of the tiny model."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_model
from fake_async_engine import FakeEngine

from mlc_llm.serve.loading import load_text


@pytest.fixture(scope="module")
def server(folder: Path, running: Any) -> Iterator[Any]:
    tokenizer, template = load_text(folder, tiny_model.write_folder(folder))
    engine = FakeEngine()
    engine.model = SimpleNamespace(**vars(engine.model), tokenizer=tokenizer, template=template)
    with running(engine) as server:
        yield server


def post(server: Any, path: str, **fields: Any) -> Any:
    return server.client.post(path, json=fields)


def error(response: Any) -> tuple[int, str, str]:
    detail = response.json()["error"]
    return response.status_code, detail["code"], detail["param"]


def test_a_text_is_tokenized_and_back(server: Any) -> None:
    answer = post(server, "/tokenize", model="tiny", prompt="hello <|im_end|> wörld").json()
    tokens = server.engine.model.tokenizer.encode("hello <|im_end|> wörld", add_special_tokens=True)
    assert answer == {"count": len(tokens), "max_model_len": 256, "tokens": tokens}
    assert post(server, "/detokenize", tokens=tokens).json() == {"prompt": "hello <|im_end|> wörld"}


def test_a_conversation_is_tokenized_as_the_model_sees_it(server: Any) -> None:
    answer = post(server, "/tokenize", messages=[{"role": "user", "content": "hi"}]).json()
    text = post(server, "/detokenize", tokens=answer["tokens"]).json()["prompt"]
    assert text == server.engine.model.tokenizer.decode(answer["tokens"], skip_special_tokens=False)
    assert "user\nhi<|im_end|>" in text


def test_nothing_is_no_tokens(server: Any) -> None:
    assert post(server, "/tokenize", prompt="").json()["tokens"] == []
    assert post(server, "/detokenize", tokens=[]).json() == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        ("/tokenize", {}, (400, "missing_field", "prompt")),
        ("/tokenize", {"prompt": "a", "messages": []}, (400, "missing_field", "prompt")),
        ("/tokenize", {"prompt": 1}, (400, "invalid_type", "prompt")),
        ("/tokenize", {"prompt": "a", "promt": "b"}, (400, "unknown_field", "promt")),
        ("/tokenize", {"prompt": "a", "model": "other"}, (404, "model_not_found", "model")),
        ("/tokenize", {"messages": [{"role": "alien", "content": "x"}]}, (400, "invalid_value", "messages[0].role")),
        ("/detokenize", {}, (400, "missing_field", "tokens")),
        ("/detokenize", {"tokens": ["1"]}, (400, "invalid_type", "tokens.0")),
        ("/detokenize", {"tokens": [-1]}, (400, "invalid_value", "tokens")),
        ("/detokenize", {"tokens": [1, 10**30]}, (400, "invalid_value", "tokens")),
        ("/detokenize", {"tokens": [0] * (1 << 20) + [0]}, (400, "invalid_value", "tokens")),
    ],
)
def test_what_is_wrong_is_named(path: str, fields: dict[str, Any], expected: tuple[int, str, str], server: Any) -> None:
    assert error(post(server, path, **fields)) == expected
