"""What a request has to pass: key, host, origin, sizes, types, and room."""

import gzip
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from fake_async_engine import TIMEOUT

JSON = {"content-type": "application/json"}
CHAT = "/v1/chat/completions"


def error(response: Any) -> tuple[int, str, str | None]:
    """Status, code and param; every error has the same shape, and an id."""
    assert response.headers["x-request-id"]
    (detail,) = response.json().values()
    assert set(detail) == {"message", "type", "param", "code"}
    return response.status_code, detail["code"], detail["param"]


def test_without_a_key_everything_is_open(plain: Any) -> None:
    for path in ("/health", "/version", "/v1/models", "/docs", "/openapi.json"):
        assert plain.client.get(path).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/version", "/docs", "/openapi.json", "/metrics", "/", "/nothing"])
@pytest.mark.parametrize(
    "header", [None, "Bearer wrong", "sk-test", "Basic sk-test", "Bearer", "Bearer sk-test2", "Bearer ß"]
)
def test_the_key_covers_everything_but_health(path: str, header: str | None, keyed: Any) -> None:
    headers = {} if header is None else {"authorization": header.encode()}
    response = keyed.client.get(path, headers=headers or {"authorization": ""})
    assert error(response) == (401, "invalid_api_key", None)
    assert response.headers["www-authenticate"] == "Bearer"
    assert keyed.client.get("/health", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def keyed(running: Any) -> Iterator[Any]:
    with running(api_key="sk-test") as server:
        yield server


def test_the_right_key_opens(keyed: Any) -> None:
    assert keyed.chat().status_code == 200
    assert keyed.client.get("/v1/models", headers={"authorization": "bearer sk-test"}).status_code == 200
    assert keyed.client.get("/openapi.json").json()["security"] == [{"key": []}]


def test_a_wrong_key_reaches_no_engine(keyed: Any) -> None:
    before = len(keyed.engine.requests)
    assert keyed.client.post(CHAT, json={}, headers={"authorization": "Bearer x"}).status_code == 401
    assert len(keyed.engine.requests) == before


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "", "127.0.0.1.nip.io"]
)
def test_a_foreign_host_is_refused_on_loopback(host: str, plain: Any) -> None:
    assert error(plain.client.get("/health", headers={"host": host})) == (403, "host_not_allowed", None)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"])
def test_names_of_loopback_are_served(host: str, plain: Any) -> None:
    assert plain.client.get("/health", headers={"host": host}).status_code == 200


def test_hosts_can_be_named(serve: Callable[..., Any]) -> None:
    named, every = serve(allowed_hosts=("llm.example",)), serve(host="0.0.0.0")
    assert named.client.get("/health", headers={"host": "llm.example:80"}).status_code == 200
    assert named.client.get("/health", headers={"host": "localhost"}).status_code == 403
    assert every.client.get("/health", headers={"host": "any.example"}).status_code == 200


def test_a_preflight_needs_no_key_and_an_error_carries_the_origin(keyed: Any) -> None:
    asked = {"origin": "https://app.example", "access-control-request-method": "POST",
             "access-control-request-headers": "authorization"}  # fmt: skip
    preflight = keyed.client.options(CHAT, headers={**asked, "authorization": ""})
    assert preflight.status_code == 200
    assert preflight.headers["x-request-id"]
    assert preflight.headers["access-control-allow-headers"] == "authorization"
    refused = keyed.client.get("/v1/models", headers={"origin": "https://app.example", "authorization": "Bearer x"})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "*")


def test_only_named_origins_get_credentials(serve: Callable[..., Any]) -> None:
    from mlc_llm.serve.server.settings import CrossOrigin

    server = serve(cross_origin=CrossOrigin(origins=("https://app.example",), credentials=True))
    good = server.client.get("/v1/models", headers={"origin": "https://app.example"})
    assert good.headers["access-control-allow-origin"] == "https://app.example"
    assert good.headers["access-control-allow-credentials"] == "true"
    bad = server.client.get("/v1/models", headers={"origin": "https://evil.example"})
    assert "access-control-allow-origin" not in bad.headers


@pytest.mark.parametrize(
    ("content", "code", "param"),
    [
        (b"", "invalid_json", None),
        (b"{", "invalid_json", None),
        (b"[1]", "invalid_type", None),
        (b"null", "invalid_type", None),
        (b'"text"', "invalid_type", None),
        (b'{"messages": NaN}', "invalid_json", None),
        (b'{"messages": "\xff"}', "invalid_json", None),
        (b'{"a": "\\ud800"}', "invalid_json", None),
        (b"[" * 100_000, "invalid_json", None),
        (b'{"a":' * 100_000, "invalid_json", None),
        (b"{}", "missing_field", "messages"),
        (b'{"messages": [], "temprature": 1}', "unknown_field", "temprature"),
        (b'{"messages": 1}', "invalid_type", "messages"),
        (b'{"messages": [], "n": 1e999}', "invalid_type", "n"),
        (b'{"messages": [], "seed": 1' + b"0" * 5000 + b"}", "invalid_json", None),
    ],
)
def test_a_wrong_body_is_a_400(content: bytes, code: str, param: str | None, plain: Any) -> None:
    assert error(plain.client.post(CHAT, content=content, headers=JSON)) == (400, code, param)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", "json"])
def test_a_body_that_is_not_called_json_is_a_415(kind: str, plain: Any) -> None:
    headers = {"content-type": kind} if kind else {}
    assert error(plain.client.post(CHAT, content=b"{}", headers=headers)) == (415, "unsupported_media_type", None)


def test_a_charset_may_follow_the_type(plain: Any) -> None:
    body = json.dumps({"messages": [{"role": "user", "content": "hi"}]})
    assert plain.client.post(CHAT, content=body, headers={"content-type": "Application/JSON; charset=utf-8"}).is_success


def test_a_compressed_body_is_no_json(plain: Any) -> None:
    headers = {**JSON, "content-encoding": "gzip"}
    assert error(plain.client.post(CHAT, content=gzip.compress(b"{}"), headers=headers))[0] == 400


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("size", [1001, 1990, 300_000])
def test_a_large_body_is_a_413(chunked: bool, size: int, serve: Callable[..., Any]) -> None:
    server = serve(max_body_bytes=1000)
    content: Any = iter([b" " * 500] * (size // 500 + 1)) if chunked else b" " * size
    response = server.client.post(CHAT, content=content, headers=JSON)
    assert error(response) == (413, "body_too_large", None)
    assert response.headers["connection"] == "close"


def test_a_body_at_the_limit_is_read(serve: Callable[..., Any]) -> None:
    server = serve(max_body_bytes=1000)
    content = json.dumps({"messages": [{"role": "user", "content": "hi"}]}).encode().ljust(1000)
    assert server.client.post(CHAT, content=content, headers=JSON).status_code == 200


def test_a_large_body_within_the_limit_is_read(plain: Any) -> None:
    assert plain.chat("word" * 20_000).json()["usage"]["completion_tokens"] == 1
    assert error(plain.client.post(CHAT, content=b"[" + b"1," * 40_000, headers=JSON)) == (400, "invalid_json", None)


def test_a_body_that_does_not_come_is_a_408(serve: Callable[..., Any]) -> None:
    server = serve(body_timeout=0.05)
    raw = server.post_raw(b"{", length=10)
    assert raw.makefile("rb").readline() == b"HTTP/1.1 408 Request Timeout\r\n"
    raw.close()


@pytest.mark.parametrize("before", [b"", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
@pytest.mark.parametrize("head", [b"", b"GET /health HT"])
def test_a_head_that_does_not_come_closes_the_connection(before: bytes, head: bytes, serve: Callable[..., Any]) -> None:
    raw = serve(header_timeout=0.05, idle_timeout=0.05).connect()
    raw.sendall(before)
    stream = raw.makefile("rb")
    while before and stream.readline() != b"\r\n":
        pass
    raw.sendall(head)
    assert stream.read().strip() in (b"", b'{"status":"ok"}')  # up to the end of the connection
    raw.close()


@pytest.mark.parametrize("size", [40_000, 60_000])
def test_large_headers_are_a_431(size: int, plain: Any) -> None:
    assert error(plain.client.get("/health", headers={"x": "y" * size})) == (431, "headers_too_large", None)


def test_huge_headers_and_no_http_are_an_error_object(plain: Any) -> None:
    assert error(plain.client.get("/health", headers={"x": "y" * 2_000_000})) == (400, "invalid_http", None)
    raw = plain.connect()
    raw.sendall(b"what is this\r\n\r\n")
    assert b'"code":"invalid_http"' in raw.makefile("rb").read()
    raw.close()


def test_unknown_paths_and_methods_are_error_objects(plain: Any) -> None:
    assert error(plain.client.get("/v2/nothing")) == (404, "not_found", None)
    wrong = plain.client.get(CHAT)
    assert error(wrong) == (405, "method_not_allowed", None)
    assert wrong.headers["allow"] == "POST"


def test_too_many_requests_are_told_when_to_come_back(serve: Callable[..., Any]) -> None:
    server = serve(max_concurrent_requests=1)
    with server.stream("one <wait> two") as response:
        assert server.engine.waiting.get(timeout=TIMEOUT)
        refused = server.chat()
        assert error(refused) == (429, "too_many_requests", None)
        assert refused.headers["retry-after"] == "1"
        assert server.client.get("/health").status_code == 200
        server.engine.release()
        response.read()
    assert server.chat().status_code == 200


def test_a_request_id_is_kept_when_it_is_plain(plain: Any) -> None:
    assert plain.client.get("/health", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    for bad in ("", "a b", "a" * 129, "ä"):
        answered = plain.client.get("/health", headers={"x-request-id": bad.encode()}).headers["x-request-id"]
        assert answered.startswith("req-")
