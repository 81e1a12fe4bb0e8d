"""The server as a Ray Serve application: replicas of the engine behind one address.

    serve run mlc_llm.serve.ray_app:app model=dist/SmolLM2-135M-Instruct-q4f16_1-MLC num_replicas=2

Ray Serve listens, starts, scales, watches and ends replicas, and chooses among them; a replica is the engine with the
app of `mlc serve` before it. Needs the extra `ray`. https://docs.ray.io/en/latest/serve/index.html
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from ..runtime.artifact import is_address
from ..runtime.errors import EngineError, UsageError
from .artifacts import local_folder
from .async_engine import AsyncMLCEngine
from .config import EngineConfig, Mode
from .server.app import create_app
from .server.body import read_body
from .server.errors import HTTPError, busy, error_response, problem
from .server.events import data_event
from .server.replicas import Forwarded, merged_metrics, messages, prefix_key
from .server.settings import CrossOrigin, Settings

if TYPE_CHECKING:
    from ray.serve import Application
    from ray.serve.handle import DeploymentHandle

REPLICA_HEADER = b"x-replica"

_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_SEQUENCES = {"local": 4, "interactive": 1, "server": 64}  # that run at a time, about, where nobody says
_MOST_REQUESTS = 10_000  # in one process that forwards them


def _pairs(value: object) -> object:
    """`K=V;K=V` as a mapping."""
    if not isinstance(value, str):
        return value
    items = [item.partition("=") for item in value.split(";") if item.strip()]
    return {key.strip(): text.strip() for key, _, text in items}


class RayArguments(BaseModel):
    """What `app` is given: what to load, how to serve it, and how many times. All but `model` may be left out.

    - model, model_lib, device, mode, max_batch_size, max_total_seq_length, num_threads: as of `mlc serve`. The model is
      compiled: a folder that every replica can read, or `HF://...`. num_threads: None for as many as `num_cpus` of
      `ray_actor_options` where that is given.
    - overrides: other fields of `EngineConfig`, as a mapping or `K=V;K=V`.
    - api_key, allowed_origins, allowed_hosts, gateway, unity_catalog_url, max_body_size, shutdown_timeout: as of
      `mlc serve`, in bytes and seconds; the key is better given as MLC_SERVE_API_KEY, since Ray's dashboard shows
      arguments.
    - num_replicas: a number, or "auto" for Ray's autoscaling, which min_replicas, max_replicas and
      target_ongoing_requests (for each replica; default: what it runs at a time) turn on too.
    - max_ongoing_requests: of one replica; default: twice what it runs at a time. Requests go to another one then.
    - max_waiting: requests that wait when all replicas have that many; more get 503.
    - prefix_characters: how much of the beginning of requests has to be equal for them to go to the same replica;
      0 for not at all.
    - ray_actor_options: resources of a replica, as of Ray's `@serve.deployment`.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str
    model_lib: str | None = None
    device: str = "auto"
    mode: Mode = "local"
    max_batch_size: int | None = Field(None, ge=1)
    max_total_seq_length: int | None = Field(None, ge=1)
    num_threads: int | None = Field(None, ge=1)
    overrides: Annotated[dict[str, Any], BeforeValidator(_pairs)] = {}
    api_key: str | None = Field(None, repr=False)
    allowed_origins: tuple[str, ...] = ("*",)
    allowed_hosts: tuple[str, ...] | None = None
    gateway: bool = False
    unity_catalog_url: str | None = None
    max_body_size: int = Field(Settings.max_body_bytes, ge=1)
    shutdown_timeout: float = Field(Settings.shutdown_timeout, ge=0)
    num_replicas: Annotated[int, Field(ge=1)] | Literal["auto"] = 1
    min_replicas: int | None = Field(None, ge=0)
    max_replicas: int | None = Field(None, ge=1)
    target_ongoing_requests: float | None = Field(None, gt=0)
    max_ongoing_requests: int | None = Field(None, ge=1)
    max_waiting: int = Field(1024, ge=1)
    prefix_characters: int = Field(256, ge=0)
    ray_actor_options: dict[str, Any] = {}

    @property
    def engine_config(self) -> EngineConfig:
        """The limits of a replica's engine. Raises UsageError."""
        cpus = int(self.ray_actor_options.get("num_cpus") or 0)
        fields = {
            "max_num_sequence": self.max_batch_size,
            "max_total_sequence_length": self.max_total_seq_length,
            "num_threads": self.num_threads or cpus or None,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        unknown = self.overrides.keys() - EngineConfig.__dataclass_fields__.keys()
        if unknown:
            wanted = ", ".join(EngineConfig.__dataclass_fields__)
            raise UsageError(f"overrides has {min(unknown)!r:.80}: expected some of {wanted}")
        try:
            return TypeAdapter(EngineConfig).validate_python({**given, **self.overrides})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise UsageError(f"overrides: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None

    @property
    def settings(self) -> Settings:
        """The settings of a replica's app. Raises UsageError."""
        return Settings(
            host="0.0.0.0",  # Ray listens, and where is its affair
            api_key=self.api_key or os.environ.get("MLC_SERVE_API_KEY"),
            cross_origin=CrossOrigin(self.allowed_origins),
            allowed_hosts=self.allowed_hosts,
            model_name=self.model,
            gateway=self.gateway,
            unity_catalog_url=self.unity_catalog_url,
            max_body_bytes=self.max_body_size,
            max_concurrent_requests=_MOST_REQUESTS,  # Ray counts them
            shutdown_timeout=self.shutdown_timeout,
        )

    def scaling(self) -> dict[str, Any]:
        """How many replicas, and how many requests in each, as Ray calls it."""
        at_a_time = self.max_batch_size or _SEQUENCES[self.mode]
        options: dict[str, Any] = {"max_ongoing_requests": self.max_ongoing_requests or 2 * at_a_time}
        bounds = {
            "min_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing_requests,
        }
        given = {name: value for name, value in bounds.items() if value is not None}
        if not given and self.num_replicas != "auto":
            return {**options, "num_replicas": self.num_replicas}
        if self.num_replicas not in (1, "auto"):
            raise UsageError(f"num_replicas is {self.num_replicas}, and {min(given)} asks for autoscaling: give one")
        autoscaling = {"target_ongoing_requests": at_a_time, **given}
        return {**options, "num_replicas": "auto", "autoscaling_config": autoscaling}


@dataclass(frozen=True)
class Plan:
    """What a replica loads."""

    model: str
    model_lib: str | None
    device: str
    mode: Mode
    config: EngineConfig

    @classmethod
    def of(cls, arguments: RayArguments) -> "Plan":
        """Paths become absolute, since replicas run elsewhere. Raises UsageError."""
        folder = None if is_address(arguments.model) else local_folder(arguments.model)
        library = arguments.model_lib
        return cls(
            model=arguments.model if folder is None else str(folder.resolve()),
            model_lib=None if library is None else str(Path(library).expanduser().resolve()),
            device=arguments.device,
            mode=arguments.mode,
            config=arguments.engine_config,
        )


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
        spread = {"num_fallback_replicas": _MOST_REQUESTS}
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
        max_ongoing_requests=_MOST_REQUESTS,
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
        self._engine = AsyncMLCEngine(
            plan.model, plan.device, model_lib=plan.model_lib, mode=plan.mode, engine_config=plan.config
        )
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
            answer.cancel()  # where it is not done

    def _seen(self, message: Message) -> Message:
        if message["type"] != "http.response.start":
            return message
        self._started, self.status_code = True, message["status"]
        # Ray gives every response the request's id itself.
        headers = [header for header in message["headers"] if header[0] != b"x-request-id"]
        self._is_stream = any(header[0] == b"content-type" and b"event-stream" in header[1] for header in headers)
        return {**message, "headers": headers}


def _refusal(error: Exception) -> Exception:
    """What to tell a client of an error that is Ray's."""
    from ray.exceptions import RayActorError
    from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

    if isinstance(error, BackPressureError):
        return busy("too many requests wait: try again later", 503, "overloaded")
    if isinstance(error, (DeploymentUnavailableError, RayActorError)):
        return busy("the replica that was to answer is gone: try again", 503, "replica_gone")
    return error
