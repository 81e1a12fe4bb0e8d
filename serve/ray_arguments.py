"""What `mlc_llm.serve.ray_app` is told: arguments as Ray Serve's command line and config files have them."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from ..runtime.artifact import is_address
from ..runtime.errors import UsageError
from .artifacts import local_folder
from .async_engine import AsyncMLCEngine
from .config import EngineConfig, Mode
from .server.limits import RequestLimits
from .server.settings import CrossOrigin, Settings

Fields = TypeVar("Fields", EngineConfig, RequestLimits)

MOST_REQUESTS = 10_000  # in one process that forwards them

_SEQUENCES = {"local": 4, "interactive": 1, "server": 64}  # that run at a time, about, where nobody says


def _pairs(value: object) -> object:
    """`K=V;K=V` as a mapping."""
    if not isinstance(value, str):
        return value
    items = [item.partition("=") for item in value.split(";") if item.strip()]
    return {key.strip(): text.strip() for key, _, text in items}


def _checked(kind: type[Fields], argument: str, given: dict[str, Any]) -> Fields:
    """`given` as the fields of a dataclass. Raises UsageError."""
    unknown = given.keys() - kind.__dataclass_fields__.keys()
    if unknown:
        wanted = ", ".join(kind.__dataclass_fields__)
        raise UsageError(f"{argument} has {min(unknown)!r:.80}: expected some of {wanted}")
    try:
        return TypeAdapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise UsageError(f"{argument}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from None


class RayArguments(BaseModel):
    """What `app` is given: what to load, how to serve it, and how many times. All but `model` may be left out.

    - model, model_lib, device, mode, max_batch_size, max_total_seq_length, prefill_chunk_size, embedding_model,
      embedding_model_lib: as of `mlc serve`. Models are compiled: a folder that every replica can read, or `HF://...`.
    - num_threads: of a replica; default: as many as `num_cpus` of `ray_actor_options` where that is given.
    - overrides: other fields of `EngineConfig`, as a mapping or `K=V;K=V`.
    - limits: what one request may ask for: fields of `RequestLimits`, as a mapping or `K=V;K=V`.
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
    prefill_chunk_size: int | None = Field(None, ge=1)
    embedding_model: str | None = None
    embedding_model_lib: str | None = None
    num_threads: int | None = Field(None, ge=1)
    overrides: Annotated[dict[str, Any], BeforeValidator(_pairs)] = {}
    limits: Annotated[dict[str, Any], BeforeValidator(_pairs)] = {}
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
            "prefill_chunk_size": self.prefill_chunk_size,
            "num_threads": self.num_threads or cpus or None,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return _checked(EngineConfig, "overrides", {**given, **self.overrides})

    @property
    def settings(self) -> Settings:
        """The settings of a replica's app. Raises UsageError."""
        return Settings(
            host="0.0.0.0",  # Ray listens, and where is its affair
            api_key=self.api_key or os.environ.get("MLC_SERVE_API_KEY"),
            cross_origin=CrossOrigin(self.allowed_origins),
            allowed_hosts=self.allowed_hosts,
            model_name=self.model,
            embedding_model_name=self.embedding_model,
            gateway=self.gateway,
            unity_catalog_url=self.unity_catalog_url,
            limits=_checked(RequestLimits, "limits", self.limits),
            max_body_bytes=self.max_body_size,
            max_concurrent_requests=MOST_REQUESTS,  # Ray counts them
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
    embedding_model: str | None
    embedding_model_lib: str | None
    device: str
    mode: Mode
    config: EngineConfig

    @classmethod
    def of(cls, arguments: RayArguments) -> "Plan":
        """Paths become absolute, since replicas run elsewhere. Raises UsageError."""
        embedding = arguments.embedding_model
        return cls(
            model=_absolute_folder(arguments.model),
            model_lib=_absolute(arguments.model_lib),
            embedding_model=None if embedding is None else _absolute_folder(embedding),
            embedding_model_lib=_absolute(arguments.embedding_model_lib),
            device=arguments.device,
            mode=arguments.mode,
            config=arguments.engine_config,
        )

    def load(self) -> AsyncMLCEngine:
        """The engine. Raises UsageError, ModelFileError, EngineError."""
        return AsyncMLCEngine(
            self.model,
            self.device,
            model_lib=self.model_lib,
            mode=self.mode,
            engine_config=self.config,
            embedding_model=self.embedding_model,
            embedding_model_lib=self.embedding_model_lib,
        )


def _absolute_folder(model: str) -> str:
    """A folder that is here by its whole path; what is not may be where the replicas are."""
    folder = None if is_address(model) else local_folder(model)
    return model if folder is None else str(folder.resolve())


def _absolute(path: str | None) -> str | None:
    return None if path is None else str(Path(path).expanduser().resolve())
