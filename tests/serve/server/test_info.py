"""/health, /version, /v1/models, /docs and /openapi.json."""

import time
from collections.abc import Callable
from typing import Any

import openai
import pytest

import mlc_llm


def test_health_says_whether_requests_are_taken(serve: Callable[..., Any]) -> None:
    server = serve(loaded=False)
    loading = server.client.get("/health")
    assert (loading.status_code, loading.json()) == (503, {"status": "loading"})
    for response in (
        server.chat(),
        server.client.get("/v1/models"),
        server.client.post("/tokenize", json={"prompt": "a"}),
    ):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "model_loading")
        assert int(response.headers["retry-after"]) > 0
    server.loop.call_soon_threadsafe(server.service.start, server.engine)
    deadline = time.monotonic() + 30
    while server.client.get("/health").status_code != 200:
        assert time.monotonic() < deadline
    assert server.chat().status_code == 200


def test_version(plain: Any) -> None:
    assert plain.client.get("/version").json() == {"version": mlc_llm.__version__}


def test_openais_client_lists_and_retrieves_the_model(plain: Any, openai_client: Any) -> None:
    client = openai_client(plain)
    (model,) = client.models.list().data
    assert (model.id, model.object) == ("tiny", "model")
    assert client.models.retrieve("dist/tiny") == model
    with pytest.raises(openai.NotFoundError) as unknown:
        client.models.retrieve("other")
    assert unknown.value.code == "model_not_found"


def test_docs_and_openapi_describe_the_bodies(plain: Any) -> None:
    assert "swagger" in plain.client.get("/docs").text
    document = plain.client.get("/openapi.json").json()
    operation = document["paths"]["/v1/chat/completions"]["post"]
    schemas = document["components"]["schemas"]
    name = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    assert schemas[name]["required"] == ["messages"]
    assert set(operation["responses"]) == {"200", "4XX", "5XX"}
    assert not any("HTTPValidationError" in name for name in schemas)
    references = [word.strip('"}],') for word in plain.client.get("/openapi.json").text.split('"$ref":')[1:]]
    assert {reference.split('"')[0].rpartition("/")[2] for reference in references} <= set(schemas)
