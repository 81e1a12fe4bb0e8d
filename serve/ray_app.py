"""The server as a Ray Serve application: replicas of the engine behind one address.

    serve run mlc_llm.serve.ray_app:app model=dist/SmolLM2-135M-Instruct-q4f16_1-MLC num_replicas=2

Ray Serve listens, starts, scales, watches and ends replicas, and chooses among them; a replica is the engine with the
app of `mlc serve` before it. Needs the extra `ray`. https://docs.ray.io/en/latest/serve/index.html
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..runtime.errors import EngineError, UsageError
from .async_engine import AsyncMLCEngine
from .ray_arguments import MOST_REQUESTS, Plan, RayArguments
from .server.app import create_app
from .server.body import read_body
from .server.errors import HTTPError, busy, error_response, problem
from .server.events import data_event
from .server.replicas import Forwarded, merged_metrics, messages, prefix_key
from .server.settings import Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

__all__ = ["RayArguments", "app"]

REPLICA_HEADER = b"x-replica"

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def app(args: RayArguments) -> "Application":
    """The application, for `serve run`, for `import_path` in a config file, and for `serve.run(app(args))`.

    Raises UsageError.
    """
    try:
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ImportError:
        raise UsageError("ray is not installed: run `pip install 'mlc-aot[ray]'`") from None
    plan, settings, options = Plan.of(args), args.settings, args.scaling()
    if args.prefix_characters:
        # All other replicas stand by when the one of a prefix is full; Ray's default is two.
        spread = {"num_fallback_replicas": MOST_REQUESTS}
        options["request_router_config"] = RequestRouterConfig(
            request_router_class=_ROUTER, request_router_kwargs=spread
        )
    engine = serve.deployment(
        name="Engine",
        max_queued_requests=args.max_waiting,
        graceful_shutdown_timeout_s=args.shutdown_timeout,
        ray_actor_options=args.ray_actor_options,
        **options,
    )(Engine)
    ingress = serve.deployment(
        name="Ingress",
        max_ongoing_requests=MOST_REQUESTS,
        graceful_shutdown_timeout_s=args.shutdown_timeout,
        ray_actor_options={"num_cpus": 0},  # it waits, mostly
    )(Ingress)
    built: Application = ingress.bind(engine.bind(plan, settings), settings, args.prefix_characters)
    return built


@dataclass(frozen=True)
class Whole:
    """An answer in one piece, and the replica that gave it."""

    replica: str
    sent: Sequence[Message]

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent[1:])


class Engine:
    """A replica: the engine, and the app of `mlc serve` before it. Ray calls its methods."""

    _engine: AsyncMLCEngine | None = None

    def __init__(self, plan: Plan, settings: Settings) -> None:
        from ray import serve

        self._replica = str(serve.get_replica_context().replica_id.unique_id)
        self._engine = plan.load()
        self._app = create_app(self._engine, settings)

    async def answer(self, request: Forwarded) -> AsyncGenerator[Message, None]:
        """The messages of an answer, as they come."""
        async with aclosing(messages(self._app, request)) as sent:
            async for message in sent:
                if message["type"] == "http.response.start":
                    named = (REPLICA_HEADER, self._replica.encode())
                    yield {**message, "headers": [*message["headers"], named]}
                else:
                    yield message

    async def answer_whole(self, request: Forwarded) -> Whole:
        """The answer when all of it is there."""
        return Whole(self._replica, [message async for message in self.answer(request)])

    def check_health(self) -> None:
        """Ray replaces a replica for which this raises."""
        if self._engine is None or not self._engine.alive:
            raise EngineError("the thread of the engine has ended")

    def __del__(self) -> None:
        """Ray calls this when the requests of a replica that has to go are answered."""
        if self._engine is not None:
            self._engine.terminate()


class Ingress:
    """Takes requests from Ray's proxies, and has a replica answer each: the one that knows its beginning."""

    def __init__(self, engine: "DeploymentHandle", settings: Settings, prefix_characters: int) -> None:
        self._engine, self._settings, self._characters = engine, settings, prefix_characters

    async def __call__(self, http: Request) -> Response:
        try:
            request = Forwarded.of(http.scope, await read_body(http, self._settings))
        except HTTPError as refusal:
            return error_response(refusal)
        if http.method == "GET" and request.path == "/metrics":
            return await self._metrics(request)
        key = None
        if request.body and self._characters:
            key = await asyncio.to_thread(prefix_key, request.body, self._characters)
        options = {"method_name": "answer", "stream": True, **({"session_id": key} if key else {})}
        return Relayed(self._engine.options(**options), request)

    async def _metrics(self, request: Forwarded) -> Response:
        """The figures of all replicas that answer, if the first one has no objection."""
        answers: list[Whole] = []
        with suppress(_unavailable()):
            results = await self._engine.broadcast("answer_whole", request).results_async(return_exceptions=True)
            answers = [result for result in results if isinstance(result, Whole)]
        if not answers:
            return error_response(busy("no replica is ready: try again soon", 503, "model_loading", retry_after=2))
        first = answers[0]
        body = first.body
        if first.status == 200:
            body = merged_metrics({answer.replica: answer.body.decode() for answer in answers})
        response = Response(body, first.status)
        dropped = (b"content-length", b"x-request-id")
        response.raw_headers += [header for header in first.sent[0]["headers"] if header[0] not in dropped]
        return response


class Relayed(Response):
    """Sends what a replica answers, as it comes. When the client hangs up, Ray cancels this, and this the answer."""

    def __init__(self, engine: "DeploymentHandle", request: Forwarded) -> None:
        self._engine, self._request = engine, request
        self.status_code, self.background, self.raw_headers = 200, None, []
        self._started = self._is_stream = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = self._engine.remote(self._request)
        try:
            async for message in answer:
                await send(self._seen(message))
        except Exception as error:
            told = _refusal(error)
            if not self._started:
                await error_response(told)(scope, receive, send)
            elif self._is_stream:
                await send({"type": "http.response.body", "body": data_event(problem(told).body)})
            else:
                raise
        finally:
            with suppress(Exception):  # what the call has raised, it raises again
                answer.cancel()  # where it is not done

    def _seen(self, message: Message) -> Message:
        if message["type"] != "http.response.start":
            return message
        self._started, self.status_code = True, message["status"]
        # Ray gives every response the request's id itself.
        headers = [header for header in message["headers"] if header[0] != b"x-request-id"]
        self._is_stream = any(header[0] == b"content-type" and b"event-stream" in header[1] for header in headers)
        return {**message, "headers": headers}


def _unavailable() -> type[Exception]:
    """What Ray raises where a deployment has no replica."""
    from ray.serve.exceptions import DeploymentUnavailableError

    unavailable: type[Exception] = DeploymentUnavailableError
    return unavailable


def _refusal(error: Exception) -> Exception:
    """What to tell a client of an error that is Ray's."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError

    if isinstance(error, BackPressureError):
        return busy("too many requests wait: try again later", 503, "overloaded")
    if isinstance(error, (_unavailable(), RayActorError)):
        return busy("the replica that was to answer is gone: try again", 503, "replica_gone")
    return error
