"""What it takes to stand several servers of one model behind one address, whoever carries the messages.

A request is read at the address, becomes a `Forwarded`, and is answered by the app of one replica.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from pydantic_core import from_json
from starlette.types import ASGIApp, Message, Scope

_SCOPE_KEYS = (
    "type", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path", "client", "server",
)  # fmt: skip


@dataclass(frozen=True)
class Forwarded:
    """A request whose body has been read, in a form that can be sent to another process."""

    scope: dict[str, Any]
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes = field(repr=False)

    @classmethod
    def of(cls, scope: Scope, body: bytes) -> "Forwarded":
        """What of an ASGI scope an app needs; the rest belongs to the process that read it."""
        return cls({key: scope[key] for key in _SCOPE_KEYS if key in scope}, tuple(scope["headers"]), body)

    @property
    def path(self) -> str:
        """Where it goes, below the prefix under which the app stands."""
        return str(self.scope["path"]).removeprefix(self.scope.get("root_path", ""))


async def messages(app: ASGIApp, request: Forwarded) -> AsyncGenerator[Message, None]:
    """What an app sends in answer, as it comes. Closing the generator ends the answer, as a client does that hangs up.

    Raises what the app raises.
    """
    scope = {"asgi": {"version": "3.0"}, **request.scope, "headers": list(request.headers)}
    sent: asyncio.Queue[Message | None] = asyncio.Queue()
    arrived = False

    async def receive() -> Message:
        nonlocal arrived
        if arrived:
            await asyncio.Event().wait()  # nobody else hangs up but who closes the generator
        arrived = True
        return {"type": "http.request", "body": request.body, "more_body": False}

    async def run() -> None:
        try:
            await app(scope, receive, sent.put)
        finally:
            sent.put_nowait(None)

    running = asyncio.ensure_future(run())
    try:
        while (message := await sent.get()) is not None:
            yield message
        await running
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def prefix_key(body: bytes, characters: int) -> str | None:
    """What requests have in common whose texts begin alike, so that they can go where the beginning is known.

    It is made of the first `characters` of the text up to the end of the first message of a user: all turns of a
    conversation have it in common, and so have conversations with the same long system prompt. OpenAI's
    `prompt_cache_key` takes its place where a request has one. None where there is no text, or none that can be read.
    """
    try:
        fields = from_json(body)
    except ValueError:
        return None
    if not isinstance(fields, dict):
        return None
    beginning = fields.get("prompt_cache_key") or _beginning(fields)[:characters]
    return hashlib.sha256(str(beginning).encode(errors="replace")).hexdigest() if beginning else None


def _beginning(fields: Mapping[str, Any]) -> str:
    messages = fields.get("messages", fields.get("input"))
    if not isinstance(messages, list):
        texts = (fields.get("instructions"), fields.get("prompt"), fields.get("input"))
        return "\n".join(str(text) for text in texts if text)
    opening = [str(fields.get("instructions", ""))]
    for message in messages:
        if not isinstance(message, dict):
            opening.append(str(message))
            continue
        opening.append(f"{message.get('role')}\n{message.get('content')}")
        if message.get("role") == "user":
            break
    return "\n".join(opening)


class _Merged(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


def merged_metrics(texts: Mapping[str, str]) -> bytes:
    """The figures of several replicas in one text for Prometheus; each gets its replica's name as label `replica`."""
    families: dict[str, Metric] = {}
    for replica, text in texts.items():
        for family in text_string_to_metric_families(text):
            merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                merged.samples.append(sample._replace(labels={**sample.labels, "replica": replica}))
    registry = CollectorRegistry()
    registry.register(_Merged(list(families.values())))
    return generate_latest(registry)
