"""The options of `mlc serve` that are the server's own, and the settings that they mean."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .options import number_option
from .values import read_names, read_size

if TYPE_CHECKING:
    from ..serve.server.settings import Settings

Function = TypeVar("Function", bound=Callable[..., Any])


def _names_option(*flags: str, default: str | None = None, help: str) -> Callable[[Function], Function]:
    """An option that takes a JSON list of names."""
    shown = default is not None
    return click.option(*flags, callback=read_names, default=default, show_default=shown, metavar="JSON", help=help)


def _size_option(flag: str, *, default: str, help: str) -> Callable[[Function], Function]:
    """An option that takes a number of bytes."""
    return click.option(flag, callback=read_size, default=default, show_default=True, metavar="BYTES", help=help)


_OPTIONS = (
    click.option("--host", default="127.0.0.1", show_default=True, metavar="HOST", help="Address to listen on."),
    click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8000,
        show_default=True,
        metavar="PORT",
        help="Port to listen on; 0 takes one that is free.",
    ),
    click.option("--api-key", metavar="KEY", help="Key that every path but /health asks for, as a bearer token."),
    click.option("--allow-credentials", is_flag=True, help="Let web pages of the named origins send credentials."),
    _names_option(
        "--allowed-origins",
        "--allow-origins",
        default='["*"]',
        help="Origins of web pages that may call the server: a JSON list.",
    ),
    _names_option(
        "--allowed-methods", "--allow-methods", default='["*"]', help="Methods that they may use: a JSON list."
    ),
    _names_option(
        "--allowed-headers", "--allow-headers", default='["*"]', help="Headers that they may send: a JSON list."
    ),
    _names_option(
        "--allowed-hosts",
        help="Names that a Host header may have: a JSON list. Default: those of the loopback when it is what the "
        "server listens on, else all.",
    ),
    click.option(
        "--gateway", is_flag=True, help="Answer MLflow's gateway path too, by its contract; see docs/server.md."
    ),
    click.option("--unity-catalog-url", metavar="URL", help="Unity Catalog server that describes uc_function tools."),
    click.option(
        "--enable-tracing", is_flag=True, help="Record what the engine does when, for /debug/dump_event_trace."
    ),
    click.option("--enable-debug", is_flag=True, help="Answer /debug/...: traces, figures, reset."),
    number_option(
        "--max-concurrent-requests",
        1,
        100_000,
        default=256,
        help="Requests in the works at a time, waiting ones included; more get 429.",
    ),
    number_option(
        "--max-waiting", 1, 100_000, default=1024, help="Answers that may wait for their turn; more get 503."
    ),
    number_option(
        "--max-choices", 1, 128, default=128, help="Answers that one request may ask for: n for each of its prompts."
    ),
    number_option(
        "--max-output-tokens", 1, None, help="Tokens that an answer may have. Default: what the context holds."
    ),
    number_option("--max-messages", 1, 100_000, default=4096, help="Messages that a conversation may have."),
    number_option("--max-stop", 0, 16, default=16, help="Texts in `stop` that end an answer."),
    number_option(
        "--max-logprobs", 0, 20, default=20, help="Log-probabilities that a request may ask for beside each token."
    ),
    _size_option("--max-grammar-size", default="128K", help="Largest response_format, and tools, of a request."),
    number_option("--max-inputs", 1, 2048, default=2048, help="Texts that one request for embeddings may have."),
    _size_option("--max-body-size", default="16M", help="Largest body of a request."),
    _size_option("--max-header-size", default="32K", help="Largest headers of a request."),
    click.option(
        "--shutdown-timeout",
        type=click.FloatRange(0, 86400),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="How long running answers may take to end after the first SIGTERM or Ctrl-C.",
    ),
)


def server_options(function: Function) -> Function:
    """All of them."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def settings_of(model: str, host: str, flags: dict[str, Any]) -> "Settings":
    """The settings that flags mean. Raises UsageError."""
    from ..serve.server.limits import RequestLimits
    from ..serve.server.settings import CrossOrigin, Settings

    return Settings(
        host=host,
        api_key=flags["api_key"],
        cross_origin=CrossOrigin(
            flags["allowed_origins"], flags["allowed_methods"], flags["allowed_headers"], flags["allow_credentials"]
        ),
        allowed_hosts=flags["allowed_hosts"],
        model_name=model,
        embedding_model_name=flags["embedding_model"],
        debug=flags["enable_debug"],
        gateway=flags["gateway"],
        unity_catalog_url=flags["unity_catalog_url"],
        limits=RequestLimits(
            max_choices=flags["max_choices"],
            max_output_tokens=flags["max_output_tokens"],
            max_messages=flags["max_messages"],
            max_stop=flags["max_stop"],
            max_logprobs=flags["max_logprobs"],
            max_grammar_bytes=flags["max_grammar_size"],
            max_inputs=flags["max_inputs"],
        ),
        max_body_bytes=flags["max_body_size"],
        max_header_bytes=flags["max_header_size"],
        max_concurrent_requests=flags["max_concurrent_requests"],
        shutdown_timeout=flags["shutdown_timeout"],
    )
