"""POST /v1/embeddings: what OpenAI's client asks for, and refusals with the error objects of the other routes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import openai
import pytest

from mlc_llm.serve.server.limits import RequestLimits

Start = Callable[..., Any]


def test_openais_client_gets_numbers(start: Start, openai_client: Any) -> None:
    server = start()
    client = openai_client(server)
    response = client.embeddings.create(model="dist/tiny", input=["hello", "world"])  # as base64
    plain = client.embeddings.create(model="dist/tiny", input=["hello", "world"], encoding_format="float")
    assert [one.index for one in response.data] == [0, 1]
    np.testing.assert_allclose([one.embedding for one in response.data], [one.embedding for one in plain.data])
    np.testing.assert_allclose(np.linalg.norm(response.data[0].embedding), 1, rtol=1e-6)
    assert response.usage == plain.usage
    assert (response.usage.prompt_tokens, response.model) == (10, "dist/tiny")


def test_the_name_of_the_command_line_is_the_models(start: Start) -> None:
    server = start(settings={"model_name": "mine"})
    reply = server.client.post("/v1/embeddings", json={"input": "a"})
    assert (reply.status_code, reply.json()["model"]) == (200, "mine")


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({}, 400, "missing_field", "input"),
        ({"input": ""}, 400, "invalid_value", "input"),
        ({"input": ["a"] * 5}, 400, "invalid_value", "input"),
        ({"input": [1, "a"]}, 400, "invalid_type", "input"),
        ({"input": "a", "encoding_format": "hex"}, 400, "invalid_type", "encoding_format"),
        ({"input": "a", "dimensions": 1000}, 400, "invalid_value", "dimensions"),
        ({"input": "a", "model": "other"}, 404, "model_not_found", "model"),
        ({"input": "a", "stream": True}, 400, "unknown_field", "stream"),
        ({"input": "a" * 300}, 400, "context_length_exceeded", "input"),
    ],
)
def test_wrong_requests(start: Start, fields: Any, status: int, code: str, param: str) -> None:
    server = start(settings={"limits": RequestLimits(max_inputs=4)})
    reply = server.client.post("/v1/embeddings", json=fields)
    error = reply.json()["error"]
    assert (reply.status_code, error["code"], error["param"]) == (status, code, param)
    assert error["type"] == "invalid_request_error"
    if code == "context_length_exceeded":
        assert "300" in error["message"]
        assert "256" in error["message"]


def test_the_schema_names_the_route(plain: Any) -> None:
    document = plain.client.get("/openapi.json").json()
    assert "EmbeddingRequest" in document["components"]["schemas"]
    body = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["$ref"].endswith("/EmbeddingRequest")


def test_a_second_model_answers_for_embeddings(start: Start, openai_client: Any) -> None:
    server = start(embedding_model="dist/embedder", settings={"embedding_model_name": "embedder"})
    client = openai_client(server)
    said = [{"role": "user", "content": "hi"}]
    answer = client.chat.completions.create(model="dist/tiny", messages=said, max_tokens=3)  # type: ignore[arg-type]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3
    assert [model.id for model in client.models.list()] == ["dist/tiny", "embedder"]
    assert client.models.retrieve("embedder").id == "embedder"
    assert client.models.retrieve("dist/tiny").id == "dist/tiny"
    response = client.embeddings.create(model="embedder", input="hello")
    assert response.model == "embedder"
    with pytest.raises(openai.NotFoundError, match="'embedder'"):
        client.embeddings.create(model="dist/other", input="hello")
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="embedder", messages=[{"role": "user", "content": "hi"}])
