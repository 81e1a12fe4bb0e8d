"""The Ray Serve application as far as it does not need Ray: arguments, and the way of a request to a replica."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from fake_async_engine import FakeEngine
from pydantic import ValidationError
from starlette.requests import Request
from starlette.types import Message

from mlc_llm.runtime.errors import EngineError, UsageError
from mlc_llm.serve import AsyncMLCEngine, EngineConfig, async_engine
from mlc_llm.serve.ray_app import Engine, Ingress, RayArguments, Whole, app
from mlc_llm.serve.ray_arguments import Plan
from mlc_llm.serve.server.app import create_app
from mlc_llm.serve.server.limits import RequestLimits
from mlc_llm.serve.server.replicas import Forwarded, prefix_key
from mlc_llm.serve.server.settings import Settings


def test_arguments_come_as_text_from_a_command_line() -> None:
    arguments = RayArguments.model_validate(
        {
            "model": "dist/tiny", "num_replicas": "2", "max_batch_size": "8", "ray_actor_options": {"num_cpus": 4},
            "overrides": "speculative_mode=disable; gpu_memory_utilization=0.5", "limits": "max_output_tokens=64",
        }
    )  # fmt: skip
    assert arguments.settings.limits == RequestLimits(max_output_tokens=64)
    assert arguments.scaling() == {"num_replicas": 2, "max_ongoing_requests": 16}
    assert arguments.engine_config == EngineConfig(
        max_num_sequence=8, num_threads=4, gpu_memory_utilization=0.5, speculative_mode="disable"
    )


def test_bounds_turn_autoscaling_on() -> None:
    scaling = RayArguments(model="m", mode="interactive", min_replicas=0, max_replicas=3).scaling()
    bounds = {"min_replicas": 0, "max_replicas": 3, "target_ongoing_requests": 1}
    assert scaling == {"num_replicas": "auto", "max_ongoing_requests": 2, "autoscaling_config": bounds}
    automatic = RayArguments(model="m", num_replicas="auto", target_ongoing_requests=7).scaling()
    assert automatic["autoscaling_config"] == {"target_ongoing_requests": 7}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"overrides": "speed=9"}, "overrides has 'speed': expected some of max_num_sequence"),
        ({"overrides": "speculative_mode=always"}, "overrides: speculative_mode: Input should be 'prompt_lookup'"),
        ({"limits": "max_n=9"}, "limits has 'max_n': expected some of max_choices"),
        ({"limits": "max_choices=few"}, "limits: max_choices: Input should be a valid integer"),
        ({"limits": {"max_choices": 0}}, "max_choices is 0: expected at least 1"),
        ({"num_replicas": 2, "max_replicas": 3}, "num_replicas is 2, and max_replicas asks for autoscaling"),
        ({"api_key": "a b"}, "the API key"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(fields: dict[str, Any], message: str) -> None:
    arguments = RayArguments(model="m", **fields)
    with pytest.raises(UsageError, match=message):
        _ = arguments.engine_config, arguments.settings, arguments.scaling()


@pytest.mark.parametrize("fields", [{}, {"model": "m", "modell": "n"}, {"model": "m", "num_replicas": 0}])
def test_arguments_are_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        RayArguments.model_validate(fields)


def test_paths_are_absolute_since_replicas_run_elsewhere(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent.parent)
    name = f"{folder.parent.name}/{folder.name}"
    plan = Plan.of(RayArguments(model=name, model_lib="libs/tiny.so", embedding_model=name))
    assert plan.model == plan.embedding_model == str(folder.resolve())
    assert plan.model_lib == str(Path("libs/tiny.so").resolve())
    assert Plan.of(RayArguments(model="/only/on/the/cluster")).model == "/only/on/the/cluster"
    assert Plan.of(RayArguments(model="HF://org/name")).model == "HF://org/name"
    assert RayArguments(model=name).settings.model_name == name


def test_the_key_comes_from_the_environment_and_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLC_SERVE_API_KEY", "sk-environment")
    assert RayArguments(model="m").settings.api_key == "sk-environment"
    arguments = RayArguments(model="m", api_key="sk-argument")
    assert arguments.settings.api_key == "sk-argument"
    assert "sk-" not in repr(arguments) + repr(arguments.settings)


def test_without_ray_the_application_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"pip install 'mlc-aot\[ray\]'"):
        app(RayArguments(model="m"))


def test_an_engine_whose_thread_has_ended_is_not_healthy(scripted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = scripted("hello")._loaded()
    monkeypatch.setattr(async_engine, "load_model", lambda *_: model)
    replica = Engine.__new__(Engine)
    with pytest.raises(EngineError):  # nothing is loaded
        replica.check_health()
    replica._engine = AsyncMLCEngine("dist/tiny")
    replica.check_health()
    replica.__del__()
    with pytest.raises(EngineError, match="thread of the engine"):
        replica.check_health()


class BackPressureError(Exception):
    """As Ray's."""


class DeploymentUnavailableError(Exception):
    """As Ray's."""


class RayActorError(Exception):
    """As Ray's."""


class Handle:
    """Stands for Ray's handle of a deployment: its replicas run here."""

    def __init__(self, *apps: Any, error: Exception | None = None, after: int = 0) -> None:
        self.replicas = [Engine.__new__(Engine) for _ in apps]
        for number, (replica, replica_app) in enumerate(zip(self.replicas, apps, strict=True)):
            replica._replica, replica._app = f"r{number}", replica_app
        self.error, self.after = error, after
        self.asked: list[dict[str, Any]] = []
        self.cancelled = 0

    def options(self, **options: Any) -> "Handle":
        self.asked.append(options)
        return self

    def remote(self, request: Forwarded) -> "Handle":
        self._request = request
        return self

    async def __aiter__(self) -> AsyncIterator[Message]:
        count = 0
        if self.error is None or self.after:
            async for message in self.replicas[0].answer(self._request):
                yield message
                count += 1
                if self.error is not None and count == self.after:
                    break
        if self.error is not None:
            raise self.error

    def cancel(self) -> None:
        self.cancelled += 1
        if self.error is not None:
            raise self.error

    def broadcast(self, method: str, request: Forwarded) -> Any:
        async def results(return_exceptions: bool) -> list[Whole | Exception]:
            assert return_exceptions
            if not self.replicas:
                raise self.error or AssertionError("there is nobody to ask")
            dead = [] if self.error is None else [self.error]
            return [*dead, *[await getattr(replica, method)(request) for replica in self.replicas]]

        return SimpleNamespace(results_async=results)


@pytest.fixture
def ray_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The modules with Ray's errors, which need not be installed."""
    for name, errors in {
        "ray": [], "ray.serve": [], "ray.exceptions": [RayActorError],
        "ray.serve.exceptions": [BackPressureError, DeploymentUnavailableError],
    }.items():  # fmt: skip
        module = ModuleType(name)
        for error in errors:
            setattr(module, error.__name__, error)
        monkeypatch.setitem(sys.modules, name, module)


class Answer:
    """What an ingress sends."""

    def __init__(self, handle: Handle, path: str, body: bytes | None, settings: Settings, characters: int = 256):
        asyncio.run(self._ask(Ingress(handle, settings, characters), path, body))

    async def _ask(self, ingress: Ingress, path: str, body: bytes | None) -> None:
        self.sent: list[Message] = []
        headers = [(b"content-type", b"application/json"), (b"host", b"localhost"), (b"x-request-id", b"one")]
        scope = {
            "type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": headers,
            "client": None, "server": None,
        }  # fmt: skip

        async def receive() -> Message:
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: Message) -> None:
            self.sent.append(message)

        response = await ingress(Request(scope, receive, send))
        await response(scope, receive, send)

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        pairs = self.sent[0]["headers"]
        assert len(pairs) == len(dict(pairs))
        return dict(pairs)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


def chat(text: str, **fields: Any) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": text}], **fields}).encode()


CHAT = "/v1/chat/completions"
SETTINGS = Settings(host="0.0.0.0")


def replica() -> Any:
    return create_app(FakeEngine(), SETTINGS)


def test_a_request_is_answered_by_a_replica_that_is_named() -> None:
    handle = Handle(replica())
    answer = Answer(handle, CHAT, chat("hello world"), SETTINGS)
    assert answer.status == 200
    assert json.loads(answer.body)["choices"][0]["message"]["content"] == "hello world "
    assert answer.headers[b"x-replica"] == b"r0"
    assert b"x-request-id" not in answer.headers  # Ray adds it
    assert handle.cancelled == 1


def test_a_stream_is_passed_on_in_pieces() -> None:
    answer = Answer(Handle(replica()), CHAT, chat("a b c", stream=True), SETTINGS)
    assert [message["body"] for message in answer.sent if message.get("body")][-1] == b"data: [DONE]\n\n"
    assert len(answer.sent) > 5


def test_requests_go_where_their_beginning_is_known() -> None:
    handle = Handle(replica())
    body = chat("hello")
    Answer(handle, CHAT, body, SETTINGS)
    Answer(handle, "/v1/models", None, SETTINGS)
    Answer(handle, CHAT, body, SETTINGS, characters=0)
    expected = {"method_name": "answer", "stream": True}
    assert handle.asked == [{**expected, "session_id": prefix_key(body, 256)}, expected, expected]


def test_a_body_that_is_too_large_goes_no_further() -> None:
    handle = Handle(replica())
    answer = Answer(handle, CHAT, chat("x" * 100), Settings(max_body_bytes=50))
    assert (answer.status, handle.asked) == (413, [])
    assert json.loads(answer.body)["error"]["code"] == "body_too_large"


@pytest.mark.usefixtures("ray_errors")
def test_figures_are_those_of_all_replicas_that_live() -> None:
    answer = Answer(Handle(replica(), replica(), error=RayActorError()), "/metrics", None, SETTINGS)
    assert answer.status == 200
    assert answer.headers[b"content-type"].startswith(b"text/plain")
    for name in ("r0", "r1"):
        assert f'mlc_kv_cache_pages{{model="tiny",replica="{name}"}} 64.0'.encode() in answer.body


@pytest.mark.usefixtures("ray_errors")
def test_figures_need_the_key_too() -> None:
    guarded = create_app(FakeEngine(), Settings(api_key="sk-1"))
    answer = Answer(Handle(guarded, guarded), "/metrics", None, SETTINGS)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.usefixtures("ray_errors")
def test_without_replicas_there_are_no_figures() -> None:
    answer = Answer(Handle(error=DeploymentUnavailableError()), "/metrics", None, SETTINGS)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (503, "model_loading")


@pytest.mark.usefixtures("ray_errors")
@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (BackPressureError(), 503, "overloaded"),
        (DeploymentUnavailableError(), 503, "replica_gone"),
        (RayActorError(), 503, "replica_gone"),
        (KeyError("a bug"), 500, "internal_error"),
    ],
)
def test_what_ray_cannot_do_is_told_as_the_server_tells_it(error: Exception, status: int, code: str) -> None:
    answer = Answer(Handle(replica(), error=error), CHAT, chat("hello"), SETTINGS)
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert (b"retry-after" in answer.headers) == (status == 503)


@pytest.mark.usefixtures("ray_errors")
def test_a_stream_whose_replica_dies_ends_with_an_error() -> None:
    handle = Handle(replica(), error=RayActorError(), after=3)
    answer = Answer(handle, CHAT, chat("a b c d", stream=True), SETTINGS)
    last = answer.sent[-1]["body"].decode()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_gone"
    assert handle.cancelled == 1


@pytest.mark.usefixtures("ray_errors")
def test_an_answer_that_breaks_off_is_not_ended_as_if_it_were_whole() -> None:
    with pytest.raises(RayActorError):
        Answer(Handle(replica(), error=RayActorError(), after=1), CHAT, chat("a b"), SETTINGS)
