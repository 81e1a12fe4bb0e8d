"""The state of a server: its engine, whether it takes requests, and the answers in the making."""

import asyncio
import time
from collections.abc import Callable
from enum import Enum

from starlette.requests import Request

from ...runtime.errors import RequestError
from ..completion import is_name
from .engine import ServingEngine
from .errors import busy
from .settings import Settings
from .watch import Histograms

_STOP_TIMEOUT = 5.0  # seconds for cancelled answers to tell their clients


class Phase(Enum):
    """What a server is doing; its value is what /health says."""

    LOADING = "loading"
    READY = "ok"
    DRAINING = "draining"


class Service:
    """One engine behind one server. All methods are called on the event loop."""

    def __init__(self, engine: ServingEngine | None, settings: Settings) -> None:
        self.settings = settings
        self.created = int(time.time())
        self.phase = Phase.LOADING
        self.active = 0
        self.histograms = Histograms()
        self._engine: ServingEngine | None = None
        self._stopped: asyncio.Future[None] | None = None
        self._idle = asyncio.Event()
        if engine is not None:
            self.start(engine)

    def start(self, engine: ServingEngine) -> None:
        """The engine is loaded: take requests."""
        self._engine = engine
        if self.phase is Phase.LOADING:
            self.phase = Phase.READY

    @property
    def has_engine(self) -> bool:
        """Whether the engine is loaded."""
        return self._engine is not None

    @property
    def engine(self) -> ServingEngine:
        """The engine. Raises HTTPError 503 while there is none."""
        if self._engine is None:
            raise busy("the model is being loaded: try again soon", 503, "model_loading", retry_after=2)
        return self._engine

    @property
    def model_name(self) -> str:
        """What the model is called in answers. Raises HTTPError 503 while there is none."""
        known = self.engine.model
        return self.settings.model_name or known.name

    def has_model(self, name: str) -> bool:
        """Whether the model is called that, or has it among the names of its folder."""
        return name == self.model_name or is_name(name, self.engine.model.names)

    def check_model(self, name: str | None) -> None:
        """Raises RequestError for a name of another model."""
        if name is not None and not self.has_model(name):
            message = f"model {name[:200]!r} is not loaded: this server has {self.model_name!r}"
            raise RequestError(message, param="model", code="model_not_found")

    @property
    def embedding_model_name(self) -> str | None:
        """What the model is called that is there for embeddings only. Raises HTTPError 503 while there is none."""
        model = self.engine.embedding_model
        return None if model is None else self.settings.embedding_model_name or model.name

    def check_embedding_model(self, name: str | None) -> str:
        """What the model that answers for embeddings is called. Raises RequestError for the name of another one."""
        known, model = self.embedding_model_name, self.engine.embedding_model
        if known is None or model is None:
            self.check_model(name)
            return self.model_name
        if name is not None and name != known and not is_name(name, model.names):
            message = f"model {name[:200]!r} gives no embeddings: this server has {known!r} for them"
            raise RequestError(message, param="model", code="model_not_found")
        return known

    def take(self) -> Callable[[], None]:
        """Count an answer in the making, for which `drain` waits; what is returned ends it, once.

        Raises HTTPError when no more are taken.
        """
        if self.phase is Phase.DRAINING:
            raise busy("the server is shutting down", 503, "shutting_down")
        limit = self.settings.max_concurrent_requests
        if self.active >= limit:
            raise busy(
                f"{limit} requests are in the works, which is the limit: try again soon", 429, "too_many_requests"
            )
        self.active += 1
        self._idle.clear()
        ended = False

        def end() -> None:
            nonlocal ended
            if ended:
                return
            ended = True
            self.active -= 1
            if self.active == 0:
                self._idle.set()

        return end

    @property
    def stopped(self) -> "asyncio.Future[None]":
        """Done when running answers have to end."""
        if self._stopped is None:
            self._stopped = asyncio.get_running_loop().create_future()
        return self._stopped

    async def drain(self) -> None:
        """Take no more requests, let running answers end for `shutdown_timeout` seconds, then stop them."""
        self.phase = Phase.DRAINING
        if self.active == 0 or await self._idle_within(self.settings.shutdown_timeout):
            return
        self.stopped.set_result(None)
        await self._idle_within(_STOP_TIMEOUT)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except asyncio.TimeoutError:  # another class than TimeoutError before Python 3.11
            return False
        return True


def service_of(http: Request) -> Service:
    """The service behind the app that a request came to."""
    service = http.app.state.service
    assert isinstance(service, Service)
    return service
