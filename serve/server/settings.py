"""What an operator decides about a server."""

from dataclasses import dataclass, field

from ...runtime.errors import UsageError
from .limits import RequestLimits

LOOPBACK_HOSTS = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class CrossOrigin:
    """Which web pages may call the server from a browser; `*` is any. https://fetch.spec.whatwg.org/#http-cors-protocol"""

    origins: tuple[str, ...] = ("*",)
    methods: tuple[str, ...] = ("*",)
    headers: tuple[str, ...] = ("*",)
    credentials: bool = False

    def __post_init__(self) -> None:
        if self.credentials and "*" in self.origins:
            raise UsageError(
                "credentials are allowed for every origin, so any web page could use them: name the origins, as in "
                """--allowed-origins '["https://example.org"]'"""
            )


@dataclass(frozen=True)
class Settings:
    """Address, protection and bounds of a server.

    - api_key: what `Authorization: Bearer ...` must carry; covers every path but /health.
    - allowed_hosts: names that a `Host` header may have, so that a web page cannot reach a server on loopback under a
      name of its own (DNS rebinding). None: the loopback's names on a loopback address, anything elsewhere.
    - model_name, embedding_model_name: what to call the models in answers. None: as the engine does.
    - debug: answer MLC-LLM's paths under /debug.
    - gateway: answer MLflow's gateway path too; unity_catalog_url: where it asks for tools of kind `uc_function`.
    - limits: what one request may ask for.
    - max_concurrent_requests: answers in the making, waiting ones included; more get 429.
    - keep_alive_interval: seconds without an event after which a stream gets a comment.
    - idle_timeout: seconds that a connection may be kept without a request.
    - header_timeout, body_timeout: seconds that a client may take to send them.
    - shutdown_timeout: seconds that running answers have to end after the first signal.
    """

    host: str = "127.0.0.1"
    api_key: str | None = field(default=None, repr=False)
    cross_origin: CrossOrigin = field(default_factory=CrossOrigin)
    allowed_hosts: tuple[str, ...] | None = None
    model_name: str | None = None
    embedding_model_name: str | None = None
    debug: bool = False
    gateway: bool = False
    unity_catalog_url: str | None = None
    limits: RequestLimits = field(default_factory=RequestLimits)
    max_body_bytes: int = 16 << 20
    max_header_bytes: int = 32 << 10
    max_concurrent_requests: int = 256
    keep_alive_interval: float = 15.0
    header_timeout: float = 20.0
    idle_timeout: float = 30.0
    body_timeout: float = 60.0
    shutdown_timeout: float = 30.0

    def __post_init__(self) -> None:
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and " " not in key):
            raise UsageError("the API key is empty or has characters that a header cannot carry: use printable ASCII")

        catalog = self.unity_catalog_url
        if catalog is not None and not catalog.startswith(("http://", "https://")):
            raise UsageError(
                f"the address of the Unity Catalog server is {catalog[:200]!r}: expected http:// or https://"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names that are accepted in `Host`, in lower case and without port; None accepts all."""
        if self.allowed_hosts is not None:
            return None if "*" in self.allowed_hosts else frozenset(name.lower() for name in self.allowed_hosts)
        is_loopback = self.host in LOOPBACK_HOSTS or self.host.startswith("127.")
        return frozenset((*LOOPBACK_HOSTS, self.host)) if is_loopback else None
