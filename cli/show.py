"""`mlc show`: what a model folder, a model library or a source of weights is."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..runtime.errors import MLCError, UsageError
from .output import count, print_json, print_table, size

if TYPE_CHECKING:
    from ..compiler.compile import CompilePlan
    from ..runtime.artifact import ChatConfig, LibraryMetadata, TensorCache


@click.command("show", short_help="Print what a folder, a library or a source is.")
@click.argument("path")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def command(path: str, as_json: bool) -> None:
    """Print what PATH is: a compiled model folder, a model library (.so, .dylib), or a source of weights.

    Of a compiled model at HF://org/name, only the configuration is downloaded to be shown.

    A library is loaded to be asked, which runs code that is in it: show only libraries that you trust.
    """
    from ..runtime.artifact import is_address
    from ..runtime.published import fetch_published, published_place

    place = Path(path).expanduser()
    if place.name == "mlc-chat-config.json":
        place = place.parent
    published = fetch_published(path, weights=False) if is_address(path) else None
    if published is not None:
        facts, rows = show_folder(published, place=published_place(path))
    elif place.suffix in (".so", ".dylib"):
        facts, rows = show_library(place)
    elif (place / "mlc-chat-config.json").exists():
        facts, rows = show_folder(place)
    else:
        facts, rows = show_source(path)
    if as_json:
        print_json(facts)
    else:
        print_table(rows)


Shown = tuple[dict[str, Any], list[tuple[str, str]]]


def show_library(path: Path) -> Shown:
    """A model library. Raises ModelFileError."""
    from ..runtime.library import read_metadata

    if not path.is_file():
        raise UsageError(f"{path} is {'not a file' if path.exists() else 'missing'}: expected a model library")
    metadata = read_metadata(path)
    nbytes = path.stat().st_size
    facts = {"kind": "library", "path": str(path), "bytes": nbytes, **metadata.model_dump()}
    return facts, [
        ("library", f"{path} ({size(nbytes)})"),
        ("model type", metadata.model_type),
        ("quantization", metadata.quantization),
        ("context", _context(metadata)),
        ("sequences", f"up to {metadata.max_batch_size} at once"),
        ("KV cache", f"{size(metadata.kv_cache.bytes_per_token)} per token, {metadata.kv_cache.dtype}"),
        ("device", f"{metadata.device} ({metadata.target.get('mcpu', 'generic')}, {metadata.host_triple})"),
        ("needs", " ".join(metadata.cpu_features) or "no particular instruction set"),
        ("made by", f"mlc-aot {metadata.package_version}, TVM {metadata.tvm_version}"),
        ("model hash", metadata.model_hash),
    ]


def show_folder(folder: Path, *, place: Path | None = None) -> Shown:
    """A compiled model folder, by MLC or by us; `place` is where it is to be. Raises ModelFileError."""
    from ..runtime.artifact import load_chat_config, load_tensor_cache, model_hash

    place = place or folder

    config = load_chat_config(folder)
    _, cache = load_tensor_cache(folder)
    nbytes = sum(shard.nbytes for shard in cache.records)
    plan = _plan_or_reason(str(folder))
    parameters = _parameters(cache)
    missing = [shard.dataPath for shard in cache.records if not _is_whole(folder / shard.dataPath, shard.nbytes)]
    inside = (path for suffix in (".so", ".dylib") for path in folder.glob(f"*{suffix}"))
    libraries = sorted(str(path) for path in {*inside, *_libraries(folder, config, plan)})
    facts: dict[str, Any] = {
        "kind": "folder",
        "path": str(place),
        "bytes": nbytes,
        "parameters": parameters,
        "bits_per_weight": nbytes * 8 / parameters if parameters else None,
        "template": _template(config),
        "model_hash": model_hash(config),
        "missing_shards": missing,
        "libraries": libraries,
        "memory": plan if isinstance(plan, str) else {
            name: plan.to_dict()[name]
            for name in ("weight_bytes", "kv_bytes_per_token", "kv_cache_bytes", "activation_bytes", "memory_bytes")
        },
        "config": config.model_dump(by_alias=True),
    }  # fmt: skip
    bits = f", {facts['bits_per_weight']:.2f} bits per weight" if parameters else ""
    absent = f"; missing or cut short: {', '.join(missing)}" if missing else ""
    if place != folder:
        absent = "; not downloaded yet"
    rows = [
        ("model folder", str(place)),
        ("model type", config.model_type),
        ("quantization", f"{config.quantization}{bits}"),
        ("parameters", f"{count(parameters)} ({parameters})" if parameters else "not recorded"),
        (
            "weights",
            f"{size(nbytes)} in {len(cache.records)} files{absent}",
        ),
        ("context", _context(config)),
        ("template", facts["template"]),
        ("tokenizer", ", ".join(config.tokenizer_files) or "none"),
        *_memory_rows(plan),
        ("libraries", ", ".join(libraries) or "none yet: run `mlc compile` on the folder"),
        ("format", f"MLC {config.version}, model hash {facts['model_hash']}"),
    ]
    return facts, rows


def show_source(model: str) -> Shown:
    """A model that can be compiled. Raises UsageError, ModelFileError."""
    from ..compiler.compile import CompileOptions, plan
    from .compile import plan_rows

    numbers = plan(CompileOptions(model=model))
    return {"kind": "source", "path": model, **numbers.to_dict()}, [
        ("source", model),
        *plan_rows(numbers),
        ("compiles to", f"{numbers.folder}"),
    ]  # fmt: skip


def _plan_or_reason(folder: str) -> "CompilePlan | str":
    """The memory figures, or why this version cannot tell: published folders may hold any architecture."""
    from ..compiler.compile import CompileOptions, plan

    try:
        return plan(CompileOptions(model=folder))
    except MLCError as error:
        return str(error)


def _memory_rows(plan: "CompilePlan | str") -> list[tuple[str, str]]:
    if isinstance(plan, str):
        return [("memory", f"unknown: {plan}")]
    return [
        ("KV cache", f"{size(plan.kv_bytes_per_token)} per token, {size(plan.kv_cache_bytes)} for a full context"),
        ("memory", f"about {size(plan.memory_bytes)} for one conversation of full context on {plan.device}"),
    ]


def _libraries(folder: Path, config: "ChatConfig", plan: "CompilePlan | str") -> list[Path]:
    """The libraries that are kept elsewhere: beside the folder, and in the cache."""
    from ..runtime.artifact import cached_library

    if isinstance(plan, str):
        return []
    return [path for path in (plan.library, cached_library(folder, config, plan.device)) if path.is_file()]


def _parameters(cache: "TensorCache") -> int | None:
    """The number of parameters, from the totals that the quantizer left in the index."""
    nbytes, bits = cache.metadata.get("ParamBytes"), cache.metadata.get("BitsPerParam")
    if isinstance(nbytes, (int, float)) and isinstance(bits, (int, float)) and bits > 0:
        return round(nbytes * 8 / bits)
    return None


def _is_whole(path: Path, nbytes: int) -> bool:
    return path.is_file() and path.stat().st_size == nbytes


def _template(config: "ChatConfig") -> str:
    """Which conversation template is in force."""
    if config.prompt_format == "jinja" or config.conv_template is None:
        return "the tokenizer's chat template"
    if isinstance(config.conv_template, str):
        return config.conv_template
    return str(config.conv_template.get("name") or "an unnamed conv_template")


def _context(limits: "ChatConfig | LibraryMetadata") -> str:
    window = f", sliding window {limits.sliding_window_size}" if limits.sliding_window_size > 0 else ""
    return f"{limits.context_window_size} tokens{window}, prefill in chunks of {limits.prefill_chunk_size}"
