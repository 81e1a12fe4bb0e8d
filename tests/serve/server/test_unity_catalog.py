"""Functions of a Unity Catalog server, against a local one that answers as its documentation shows."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from fake_async_engine import FakeEngine

from mlc_llm.runtime.errors import RequestError
from mlc_llm.serve.server.errors import HTTPError
from mlc_llm.serve.server.unity_catalog import function_tool

ADD = {
    "name": "add", "catalog_name": "main", "schema_name": "default", "full_name": "main.default.add",
    "comment": "Adds two numbers.",
    "input_params": {"parameters": [
        {"name": "a", "type_text": "int", "type_name": "INT", "position": 0, "comment": "The first."},
        {"name": "b", "type_text": "double", "type_name": "DOUBLE", "position": 1, "parameter_default": "1"},
        {"name": "day", "type_text": "date", "type_name": "DATE", "position": 2},
    ]},
}  # fmt: skip
ANSWERS: dict[str, tuple[int, bytes]] = {
    "main.default.add": (200, json.dumps(ADD).encode()),
    "main.default.bare": (200, b'{"name": "bare"}'),
    "main.default.broken": (200, b"<html>"),
    "main.default.list": (200, b"[]"),
    "main.default.odd": (200, b'{"input_params": {"parameters": [1]}}'),
    "main.default.large": (200, b" " * (1 << 21)),
    "main.default.fails": (500, b""),
}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        prefix, _, name = self.path.rpartition("/")
        assert prefix == "/api/2.1/unity-catalog/functions"
        status, body = ANSWERS.get(name, (404, b"{}"))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture(scope="module")
def catalog() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_function_becomes_a_tool(catalog: str) -> None:
    assert function_tool(catalog + "/", "main.default.add") == {
        "type": "function",
        "function": {
            "name": "main__default__add",
            "description": "Adds two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "The first."},
                    "b": {"type": "number"},
                    "day": {"type": "string", "description": "(date)"},
                },
                "required": ["a", "day"],
            },
        },
    }
    assert function_tool(catalog, "main.default.bare")["function"]["parameters"]["properties"] == {}


@pytest.mark.parametrize("name", ["main.default.absent", "add", "../../x", "a.b.c/d", "a.b.c?d=1", ""])
def test_a_function_that_is_not_there_is_a_wrong_request(name: str, catalog: str) -> None:
    with pytest.raises(RequestError, match="uc_function"):
        function_tool(catalog, name)


@pytest.mark.parametrize("name", ["broken", "list", "odd", "large", "fails"])
def test_a_catalog_that_answers_badly_is_a_502(name: str, catalog: str) -> None:
    with pytest.raises(HTTPError, match="502"):
        function_tool(catalog, f"main.default.{name}")


def test_a_catalog_that_is_not_there_is_a_502() -> None:
    with pytest.raises(HTTPError, match="cannot be reached"):
        function_tool("http://127.0.0.1:1", "main.default.add")


def test_the_gateway_asks_the_catalog(catalog: str, serve: Callable[..., Any]) -> None:
    path = "/api/v1/compatibility/openai/v1/chat/completions"
    tools = [{"type": "uc_function", "uc_function": {"name": "main.default.absent"}}]
    body = {"messages": [{"role": "user", "content": "hi"}], "tools": tools}
    asked = serve(FakeEngine(), gateway=True, unity_catalog_url=catalog).client.post(path, json=body)
    assert (asked.status_code, asked.json()["detail"][0]["loc"]) == (422, ["body", "tools"])
    assert "not in the catalog" in asked.json()["detail"][0]["msg"]
    without = serve(gateway=True).client.post(path, json=body)
    assert (without.status_code, without.json()["detail"][0]["type"]) == (422, "unsupported_value")
    assert "--unity-catalog-url" in without.json()["detail"][0]["msg"]
