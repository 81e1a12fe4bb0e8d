"""`mlc serve`: OpenAI's API over HTTP."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.errors import UsageError
from .options import FILE_OR_FOLDER, device_option, number_option, refuse, threads_option
from .serve_options import server_options, settings_of

if TYPE_CHECKING:
    from ..serve.server.engine import ServingEngine

# Keys of upstream's --overrides that are limits of the engine, by their name in EngineConfig.
_ENGINE_OVERRIDES: dict[str, tuple[str, Callable[[str], float]]] = {
    "max_num_sequence": ("max_num_sequence", int),
    "max_total_seq_length": ("max_total_sequence_length", int),
    "gpu_memory_utilization": ("gpu_memory_utilization", float),
    "spec_draft_length": ("spec_draft_length", int),
}


@click.command("serve", short_help="Serve a model over HTTP.", context_settings={"auto_envvar_prefix": "MLC_SERVE"})
@click.argument("model", envvar="MLC_SERVE_MODEL")
@click.option("--model-lib", type=FILE_OR_FOLDER, metavar="FILE", help="Model library, instead of the one of MODEL.")
@device_option()
@click.option(
    "--mode",
    type=click.Choice(["local", "interactive", "server"]),
    default="local",
    show_default=True,
    metavar="MODE",
    help="How much memory the KV cache gets: local, interactive (one user) or server.",
)
@number_option("--max-batch-size", 1, None, help="Sequences that run at a time.")
@number_option(
    "--max-total-seq-length", 1, None, help="Tokens whose keys and values are kept, of all sequences together."
)
@number_option(
    "--prefill-chunk-size", 1, None, help="Tokens of a prompt in one pass. Default: as many as the library takes."
)
@click.option(
    "--prefix-cache-mode",
    type=click.Choice(["radix", "disable"]),
    default="radix",
    show_default=True,
    metavar="MODE",
    help="Whether beginnings that prompts share are computed once: radix or disable.",
)
@click.option(
    "--embedding-model", metavar="MODEL", help="A second model, which answers /v1/embeddings in place of MODEL."
)
@click.option(
    "--embedding-model-lib", type=FILE_OR_FOLDER, metavar="FILE", help="Its library, instead of the one beside it."
)
@click.option(
    "--additional-models",
    multiple=True,
    metavar="MODEL[,LIB]",
    help="The model of --speculative-mode small_draft.",
)
@click.option(
    "--speculative-mode",
    type=click.Choice(["prompt_lookup", "disable", "small_draft", "eagle", "medusa"]),
    default="prompt_lookup",
    show_default=True,
    metavar="MODE",
    help="Guessing tokens before they are computed, where it pays: prompt_lookup (from the text so far), small_draft "
    "(by the model of --additional-models) or disable.",
)
@click.option(
    "--overrides",
    default="",
    metavar="K=V;K=V",
    help="max_num_sequence, max_total_seq_length, gpu_memory_utilization, spec_draft_length, or what mlc compile "
    "takes.",
)
@server_options
@threads_option()
def command(
    model: str, model_lib: Path | None, device: str, mode: str, host: str, port: int, overrides: str,
    threads: int | None, max_batch_size: int | None, max_total_seq_length: int | None,
    prefill_chunk_size: int | None, **flags: Any,
) -> None:  # fmt: skip
    """Serve MODEL over HTTP, as OpenAI's API does: chat completions, embeddings and more; see /docs.

    MODEL is what `mlc chat` takes: a compiled folder, its name under dist/ or in the cache, an address, or a source,
    which is compiled first.

    Every option can be given as an environment variable: --max-batch-size as MLC_SERVE_MAX_BATCH_SIZE, and so on.

    \b
      mlc serve SmolLM2-135M-Instruct
      mlc serve dist/Llama-3.2-1B-Instruct-q4f16_1-MLC --mode server --host 0.0.0.0 --port 8080
      MLC_SERVE_API_KEY=sk-... mlc serve SmolLM2-135M-Instruct
    """
    _refuse_unsupported(flags)
    engine_overrides, compiled_with = split_overrides(overrides)
    limits: dict[str, Any] = {
        "max_num_sequence": max_batch_size,
        "max_total_sequence_length": max_total_seq_length,
        "prefill_chunk_size": prefill_chunk_size,
        "num_threads": threads,
        "speculative_mode": flags["speculative_mode"],
        "prefix_cache_mode": flags["prefix_cache_mode"],
        **engine_overrides,
    }
    from ..serve.server.run import listen, run, url

    settings = settings_of(model, host, flags)
    with listen(host, port) as listener:  # before loading: a port that is in use is known at once
        address = url(host, listener.getsockname()[1])

        def load() -> "ServingEngine":
            return _load(model, model_lib, device, mode, compiled_with, limits, flags)

        def ready(engine: "ServingEngine") -> None:
            click.echo(_ready_line(model, engine, address))

        _log_to_stderr()
        run(load, settings, listener, ready)


def _refuse_unsupported(flags: dict[str, Any]) -> None:
    """Refuse the values of upstream's flags that this version cannot honour. Raises UsageError."""
    not_yet = "is not supported yet: leave it out"
    if flags["speculative_mode"] in ("eagle", "medusa"):
        raise refuse("--speculative-mode", flags["speculative_mode"], not_yet)
    if flags["embedding_model_lib"] is not None and flags["embedding_model"] is None:
        raise UsageError("--embedding-model-lib is the library of --embedding-model, which is not given")
    if flags["enable_tracing"] and not flags["enable_debug"]:
        raise refuse("--enable-tracing", "", "give --enable-debug too: POST /debug/dump_event_trace returns the trace")


def split_overrides(overrides: str) -> tuple[dict[str, float], str]:
    """The limits of the engine among `overrides`, and what is left for the model. Raises UsageError."""
    limits: dict[str, float] = {}
    rest = []
    for item in filter(None, (part.strip() for part in overrides.split(";"))):
        key, _, value = (part.strip() for part in item.partition("="))
        if key not in _ENGINE_OVERRIDES:
            rest.append(item)
            continue
        name, kind = _ENGINE_OVERRIDES[key]
        try:
            limits[name] = kind(value)
        except ValueError:
            raise UsageError(f"--overrides {item[:80]}: expected a number") from None
    return limits, ";".join(rest)


def _load(
    model: str, model_lib: Path | None, device: str, mode: Any, overrides: str, limits: dict[str, Any],
    flags: dict[str, Any],
) -> "ServingEngine":  # fmt: skip
    """The engine, compiling its models first where they have to be. Raises UsageError, ModelFileError, EngineError."""
    from ..serve.async_engine import AsyncMLCEngine
    from ..serve.config import EngineConfig
    from .models import find_or_compile

    compiled = find_or_compile(model, None, device, overrides)
    if limits["max_total_sequence_length"] is None:
        limits["max_total_sequence_length"] = compiled.context_limit
    limits["additional_models"] = tuple(_draft(text, device) for text in flags["additional_models"])
    embedding_model, embedding_model_lib = flags["embedding_model"], flags["embedding_model_lib"]
    if embedding_model is not None:
        embedding_model = str(find_or_compile(embedding_model, None, device, "").folder)
    return AsyncMLCEngine(
        str(compiled.folder),
        device,
        model_lib=None if model_lib is None else str(model_lib),
        mode=mode,
        engine_config=EngineConfig(**{name: value for name, value in limits.items() if value is not None}),
        max_waiting=flags["max_waiting"],
        enable_tracing=flags["enable_tracing"],
        embedding_model=embedding_model,
        embedding_model_lib=None if embedding_model_lib is None else str(embedding_model_lib),
    )


def _draft(text: str, device: str) -> str | tuple[str, str]:
    """MODEL or MODEL,LIB as EngineConfig has it, compiled where it has to be."""
    from .models import find_or_compile

    model, comma, library = text.partition(",")
    folder = str(find_or_compile(model, None, device, "").folder)
    return (folder, library) if comma else folder


def _ready_line(model: str, engine: "ServingEngine", address: str) -> str:
    """What is printed when requests are taken."""
    return f"{address} serves {model}: {engine.limits}; a page to chat is there, the API at {address}/docs"


def _log_to_stderr() -> None:
    """Our log from INFO on, which has a line for each request; of others only warnings."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.WARNING)
    logging.getLogger(__package__.partition(".")[0]).setLevel(logging.INFO)
